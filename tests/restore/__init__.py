"""Restores, proved by the row digests of the server that came back."""
