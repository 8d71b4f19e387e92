"""How each kind of backup is made and put back; one file per mode."""
