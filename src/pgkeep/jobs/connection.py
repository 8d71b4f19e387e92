"""From settings to the server that a job talks to; both doors need it."""

from __future__ import annotations

from collections.abc import Callable

from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.server.standby import open_standby, standby_targets
from pgkeep.settings import Resolved


def open_source(settings: Resolved, *, say: Callable[[str], None], warn: Callable[[str], None]) -> Server:
    """
    Connect to the server that a backup is taken from: the one that *settings* name, or a standby where they ask for it.

    Raises:
        ServerError: It cannot be reached, or none of the hosts is a standby.
    """
    target = connection_target(settings)
    if not settings.flag("backup_from_standby"):
        return Server.open(target)
    return open_standby(standby_targets(target, settings.names("standby_host")), say=say, warn=warn)


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
