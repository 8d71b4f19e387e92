"""A data directory on disk: scan, read, lay down, recovery files, start and stop."""
