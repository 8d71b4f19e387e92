"""
What is different when a physical backup is taken from a standby.

A standby writes no WAL: it cannot end a segment, it waits for its archive only with ``archive_mode = always``, and what
it holds may be older than what a backup of another server holds already. That ``full_page_writes`` was off at the
primary, or that the standby was promoted while it was copied, the server itself notices at the stop.
"""

from __future__ import annotations

import threading
import time

from pgkeep.errors import ServerError
from pgkeep.modes.contract import Say
from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.server import queries
from pgkeep.server.connection import Server

POLL_SECONDS = 0.2


def catch_up(server: Server, held: WalPosition | None, *, timeout_seconds: float, say: Say) -> Lsn:
    """
    Wait until the standby *server* has the WAL that earlier backups hold, and return up to where it has WAL.

    A backup of another server, the primary perhaps, may have ended a moment ago.

    Raises:
        ServerError: It does not get there in time: a backup would be older than the newest one.
    """
    flushed = queries.flushed_lsn(server)
    if held is None or flushed >= held.lsn:
        return flushed
    say(f"the standby has WAL up to {flushed}, the newest backup holds it up to {held.lsn}: waiting")
    deadline = time.monotonic() + timeout_seconds
    pause = threading.Event()
    while (flushed := queries.flushed_lsn(server)) < held.lsn:
        if time.monotonic() > deadline:
            raise ServerError(
                f"the standby at {server.where} lags behind: it has WAL up to {flushed}, the newest backup holds it up "
                f"to {held.lsn}",
                hint="wait until it has caught up, or back up another server",
            )
        pause.wait(POLL_SECONDS)
    return flushed


def warn_of_archive(server: Server, *, wants_wait: bool, warn: Say) -> None:
    """Warn when the backup shall wait for the archive of a standby that does not archive."""
    mode = queries.archiving(server).mode
    if wants_wait and mode != "always":
        warn(f"stop_wait_wal_archive has no meaning at a standby with archive_mode = {mode}: only with always it waits")
