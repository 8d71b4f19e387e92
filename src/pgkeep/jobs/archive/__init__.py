"""WAL that the server hands over and fetches again: the archive commands and their service."""
