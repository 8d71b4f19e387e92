"""WAL that is received as it is written: into a spool, and from there into the vault."""
