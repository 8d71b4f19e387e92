"""PostgreSQL backup and point-in-time recovery, beside Bacula or alone on an embedded vault."""

__version__ = "0.1.0"
