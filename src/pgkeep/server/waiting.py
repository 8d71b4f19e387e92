"""Waiting for a socket: apart from the conversation, which can then be read as the protocol."""

from __future__ import annotations

import contextlib
import os
import select
import threading

from pgkeep.errors import ServerError

TICK_SECONDS = 0.25
"""How long a cancellation may go unnoticed while nothing arrives."""

_TICK_MILLISECONDS = TICK_SECONDS * 1000


def let_arrivals_gather() -> None:
    """
    Have this thread not push a busy process aside each time something arrives for it.

    A server on the same processors sends 8 KiB at a time: to be woken for each costs both sides more than the reading.
    With a processor free nothing changes. Children that the thread starts are scheduled as usual.
    """
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))


class SocketWait:
    """
    Wait until a socket can be read or written, with an ear for cancellation.

    Args:
        descriptor: The socket.
        where: The server's place, for the message.
        cancelled: Set by another thread; what waits then raises ServerError.
    """

    def __init__(self, descriptor: int, *, where: str, cancelled: threading.Event | None = None) -> None:
        self._where = where
        self._cancelled = cancelled
        readable = select.poll()
        readable.register(descriptor, select.POLLIN)
        self._poll_readable = readable.poll
        both = select.poll()
        both.register(descriptor, select.POLLIN | select.POLLOUT)
        self._poll_both = both.poll

    def readable(self) -> None:
        """
        Return when there is something to read, or after a tick.

        Callers read in either case: a TLS record that libpq has taken only a part of leaves nothing in the socket.
        """
        # Once per 32 KiB of a base backup.
        self._poll_readable(_TICK_MILLISECONDS)
        if self._cancelled is not None:
            self.check()

    def writable(self) -> None:
        """Return when the socket can be written, when there is something to read first, or after a tick."""
        self._poll_both(_TICK_MILLISECONDS)
        self.check()

    def check(self) -> None:
        """Raise ServerError when the job was cancelled."""
        if self._cancelled is not None and self._cancelled.is_set():
            raise ServerError(f"cancelled in the conversation with PostgreSQL at {self._where}")
