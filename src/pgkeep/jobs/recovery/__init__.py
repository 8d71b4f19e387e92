"""The choice of a recovery: from which backup, along which WAL, to where. Nothing is touched."""
