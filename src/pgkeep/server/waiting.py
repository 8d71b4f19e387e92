"""Waiting for a socket: apart from the conversation, which can then be read as the protocol."""

from __future__ import annotations

import select
import threading

from pgkeep.errors import ServerError

TICK_SECONDS = 0.25
"""How long a cancellation may go unnoticed while nothing arrives."""

_TICK_MILLISECONDS = TICK_SECONDS * 1000


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
