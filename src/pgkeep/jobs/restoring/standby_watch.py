"""Watching a restored standby until it follows its primary: the WAL held is replayed, and the rest streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg

from pgkeep.datadir.instance import Instance, PrivateAccess, ServerStatus
from pgkeep.errors import RecoveryFailed, ServerError
from pgkeep.jobs.recovery.standby_state import StandbyState
from pgkeep.jobs.restoring.replay import ReplayEnd, ReplayOverdue, open_private
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server.connection import Server

POLL_SECONDS = 0.2
SAY_SECONDS = 30.0
STALL_SECONDS = 60.0
"""How long a standby may neither replay nor stream: by then it has tried to reach its primary several times."""

HOPELESS_SECONDS = 8.0
"""The same when the server's log says that trying again will not help."""

_LOG_LINES = 400
_HOPELESS = ("has already been removed", "forked off", "identifier differs")
_TELLING = ("FATAL:", "PANIC:", "forked off", "could not ")
Say = Callable[[str], None]


def watch_standby(
    instance: Instance,
    access: PrivateAccess,
    standby: StandbyState,
    *,
    superuser: str,
    timeout_seconds: float,
    say: Say,
) -> ReplayEnd:
    """
    Wait until the server that was started streams from its primary.

    Args:
        instance: Started, with ``standby.signal``.
        access: Its private socket.
        standby: What it shall follow.
        superuser: Name of the role with OID 10.
        timeout_seconds: 0 waits for ever.
        say: Takes a line of progress now and then.

    Raises:
        RecoveryFailed: The server stopped, or it cannot follow, with what its log says.
        ReplayOverdue: The time is over; the server goes on.
    """
    watch = _Watch(instance, standby, timeout_seconds=timeout_seconds, say=say)
    while True:
        watch.check(instance.wait_for({ServerStatus.READY, ServerStatus.STANDBY}, timeout_seconds=timeout_seconds))
        try:
            with open_private(access, superuser=superuser) as server:
                return watch.follow(server)
        except (ServerError, psycopg.Error):
            # Not consistent yet, so nobody is let in; or a conflict with recovery ended the session.
            watch.pause()


class _Watch:
    def __init__(self, instance: Instance, standby: StandbyState, *, timeout_seconds: float, say: Say) -> None:
        now = time.monotonic()
        self._instance = instance
        self._standby = standby
        self._deadline = now + timeout_seconds if timeout_seconds else float("inf")
        self._say = say
        self._lsn = Lsn(0)
        self._moved_at = self._said_at = now
        self._pause = threading.Event()

    def pause(self) -> None:
        """Wait a moment."""
        self._pause.wait(POLL_SECONDS)

    def check(self, status: ServerStatus) -> None:
        """Raise when the time is over."""
        if time.monotonic() > self._deadline:
            raise ReplayOverdue(
                f"the standby is still {status.value or 'stopped'} and does not stream from its primary yet",
                hint=f"it goes on, behind its fence; see {self._instance.log_path}",
            )

    def follow(self, server: Server) -> ReplayEnd:
        """Return where the standby is when it streams; raises as ``watch_standby`` does."""
        while True:
            lsn, timeline, last_commit = server.row(
                "SELECT pg_last_wal_replay_lsn()::text, "
                "(SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'), "
                "pg_last_xact_replay_timestamp()"
            )
            if timeline is not None and timeline >= self._standby.timeline:
                return ReplayEnd(Lsn.parse(lsn or "0/0"), Timeline(timeline), last_commit, is_promoted=False)
            self._note(Lsn.parse(lsn or "0/0"), is_streaming=timeline is not None)
            self.check(self._instance.status())
            self.pause()

    def _note(self, lsn: Lsn, *, is_streaming: bool) -> None:
        now = time.monotonic()
        if lsn != self._lsn or is_streaming:
            self._lsn, self._moved_at = lsn, now
        if now - self._said_at > SAY_SECONDS:
            self._said_at = now
            self._say(f"replayed to {lsn}")
        stalled = now - self._moved_at
        if stalled > HOPELESS_SECONDS and (stalled > STALL_SECONDS or self._is_hopeless()):
            raise RecoveryFailed(
                f"the standby is at {lsn} and does not stream from its primary at {self._standby.where}: "
                f"{self._last_words()}",
                hint=f"see {self._instance.log_path}",
            )

    def _is_hopeless(self) -> bool:
        return any(word in self._last_words() for word in _HOPELESS)

    def _last_words(self) -> str:
        lines = [line for line in self._instance.log_tail(_LOG_LINES) if any(word in line for word in _TELLING)]
        return lines[-1].strip() if lines else "its log does not say why"
