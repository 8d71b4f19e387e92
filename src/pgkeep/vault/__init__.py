"""The embedded vault: layout, volumes, WAL archive, records, retention."""
