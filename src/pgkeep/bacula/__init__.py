"""The door to Bacula: the backend that the bridge runs, one process for each Plugin line of a job."""
