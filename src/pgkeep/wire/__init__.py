"""What the bridge and the backend say to each other: pure code, no input or output."""
