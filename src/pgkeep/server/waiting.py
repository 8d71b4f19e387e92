"""Waiting for a socket: apart from the conversation, which can then be read as the protocol."""

from __future__ import annotations

import select
import threading
import time

from pgkeep.errors import ServerError

TICK_SECONDS = 0.25
"""How long a cancellation may go unnoticed while nothing arrives."""


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
        self._readable = select.poll()
        self._readable.register(descriptor, select.POLLIN)
        self._both = select.poll()
        self._both.register(descriptor, select.POLLIN | select.POLLOUT)

    def readable(self, *, at_most_seconds: float = TICK_SECONDS) -> None:
        """
        Return when there is something to read, or after *at_most_seconds*.

        Callers read in either case: a TLS record that libpq has taken only a part of leaves nothing in the socket.
        """
        self.check()
        deadline = time.monotonic() + at_most_seconds
        while True:
            left = deadline - time.monotonic()
            if self._readable.poll(max(0.0, min(left, TICK_SECONDS)) * 1000) or left <= TICK_SECONDS:
                break
            self.check()
        self.check()

    def writable(self) -> None:
        """Return when the socket can be written, when there is something to read first, or after a tick."""
        self.check()
        self._both.poll(TICK_SECONDS * 1000)
        self.check()

    def check(self) -> None:
        """Raise ServerError when the job was cancelled."""
        if self._cancelled is not None and self._cancelled.is_set():
            raise ServerError(f"cancelled in the conversation with PostgreSQL at {self._where}")
