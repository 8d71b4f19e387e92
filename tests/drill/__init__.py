"""Drills: restores that prove a point and are thrown away."""
