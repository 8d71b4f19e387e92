"""A running PostgreSQL server: connections, questions, base backups and WAL."""
