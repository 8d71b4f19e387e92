"""WAL that was received and is not yet in the vault: files on a disk of this host."""
