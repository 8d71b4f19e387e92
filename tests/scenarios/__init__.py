"""One table of restores, run through both doors."""
