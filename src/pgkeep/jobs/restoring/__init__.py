"""The six phases of a restore, each from the state that the one before has left."""
