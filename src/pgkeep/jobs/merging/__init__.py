"""A Full made of a chain of increments, without the server."""
