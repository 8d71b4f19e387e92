"""Items, and the stages that they pass on their way between a server, a data directory, the vault and Bacula."""
