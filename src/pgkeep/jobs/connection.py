"""From settings to the server that a job talks to; both doors need it."""

from __future__ import annotations

from pgkeep.server.connection import ConnectionTarget
from pgkeep.settings import Resolved


def connection_target(settings: Resolved) -> ConnectionTarget:
    """Return how to reach the server that *settings* name."""
    return ConnectionTarget(
        host=settings.text("host") or "",
        port=settings.optional_number("port") or 0,
        user=settings.text("user") or "",
        password=settings.text("password") or "",
        pgpass_file=settings.text("pgpass_file") or "",
        service=settings.text("service") or "",
        dbname=settings.text("dbname") or "",
        sslmode=settings.text("sslmode") or "",
        sslrootcert=settings.text("sslrootcert") or "",
        sslcert=settings.text("sslcert") or "",
        sslkey=settings.text("sslkey") or "",
        connect_timeout_seconds=settings.number("connection_timeout"),
        role=settings.text("role") or "",
    )
