"""
COPY to the client, into buffers of our own.

Where nobody encrypts the line, its socket is read past libpq (see ``plain_line.py`` for why that is right), and rows
are taken out of their messages a buffer at a time. With TLS or GSSAPI libpq gives one row after the other: correct, but
the interpreter is the bottleneck then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg.pq import ExecStatus

from pgkeep.errors import ServerError
from pgkeep.pg import server_message as messages
from pgkeep.pg.copy_rows import CopyProgress, CopyState, row_taker
from pgkeep.server.plain_line import BUFFER_BYTES, PlainLine, is_plain
from pgkeep.server.refusals import query_refusal, refusal
from pgkeep.server.waiting import SocketWait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

_LARGEST_ASIDE = 1 << 20


class Chunk:
    """
    A buffer that rows come into; ``content`` is what is in it.

    Args:
        wanted: How many bytes are enough.
        buffer: One that is used again, with whatever room it has; None for a new one.
        ask: Called before it gets room for *count* bytes in all, when a row is larger than the room that there is.
    """

    def __init__(
        self, wanted: int, buffer: bytearray | None = None, *, ask: Callable[[int], None] = lambda _: None
    ) -> None:
        self.wanted = wanted
        self._ask = ask
        # Pages that nobody writes to cost nothing.
        self.buffer = bytearray(wanted + BUFFER_BYTES) if buffer is None else buffer
        self.filled = 0
        self.rows = 0

    @property
    def content(self) -> memoryview:
        """What is in it; to be released before more comes in."""
        return memoryview(self.buffer)[: self.filled]

    @property
    def is_full(self) -> bool:
        """Whether enough is in it."""
        return self.filled >= self.wanted

    def make_room(self, count: int) -> None:
        """Make room for *count* more bytes."""
        lacking = self.filled + count - len(self.buffer)
        if lacking > 0:
            self._ask(self.filled + count)
            # Only for a large row, in steps that grow with it: what is extended is paid for.
            beyond = self.filled + count - self.wanted
            self.buffer.extend(bytes(max(lacking, beyond // 4)))


class CopyOut(Protocol):
    """The answer to one COPY."""

    def read(self, chunk: Chunk) -> bool:
        """Put rows into *chunk* until it is full; return whether the COPY is over. Rows are never cut."""
        ...


def copy_out(
    session: psycopg.Connection[Any], command: str, *, where: str, cancelled: threading.Event | None = None
) -> CopyOut:
    """
    Begin *command*, a ``COPY … TO STDOUT`` in text format, and return its answer, to be read to its end.

    When another thread sets *cancelled*, reading ends with a ServerError. After any error the session is to be closed.
    """
    libpq = session.pgconn
    wait = SocketWait(libpq.socket, where=where, cancelled=cancelled)
    if is_plain(libpq):
        return _PlainCopy(libpq.socket, command, where=where, wait=wait)
    return _LibpqCopy(libpq, command, where=where, wait=wait)


class _PlainCopy:
    """A COPY that is read from the socket itself, up to where the server is ready again."""

    def __init__(self, descriptor: int, command: str, *, where: str, wait: SocketWait) -> None:
        # Rows come in parts, so that only what comes between them has a limit.
        self._line = PlainLine(descriptor, where=where, wait=wait, largest_bytes=_LARGEST_ASIDE)
        self._has_begun = False
        self._progress = CopyProgress()
        self._take = row_taker()
        self._line.send(messages.render_query(command))

    def read(self, chunk: Chunk) -> bool:
        """Put rows into *chunk* until it is full; return whether the COPY is over."""
        line, progress = self._line, self._progress
        while not self._has_begun:
            self._has_begun = self._next_kind() == messages.COPY_OUT
        while True:
            unread = line.unread
            chunk.make_room(len(unread))
            left = max(1, chunk.wanted - chunk.filled)
            with memoryview(chunk.buffer) as room:
                state = self._take(unread, room[chunk.filled :], left, progress)
            chunk.filled += progress.produced
            chunk.rows += progress.rows
            line.take(progress.consumed)
            if state is CopyState.MORE:
                line.receive()
            elif state is CopyState.ENOUGH:
                return False
            elif state is CopyState.BROKEN:
                raise ServerError(f"PostgreSQL at {line.where} broke the protocol in COPY: a row without content")
            elif self._next_kind() == messages.READY_FOR_QUERY:
                return True

    def _next_kind(self) -> int:
        """Take the next message, which holds no row, and return its type; raise ServerError when it is an error."""
        kind, body = self._line.message()
        if kind == messages.ERROR:
            report = messages.parse_report(body)
            raise refusal(
                report.state, report.message_primary or "", where=self._line.where, hint=report.message_hint or ""
            )
        return kind


class _LibpqCopy:
    """A COPY that libpq reads, because the line is encrypted."""

    def __init__(self, libpq: PGconn, command: str, *, where: str, wait: SocketWait) -> None:
        self._libpq = libpq
        self._where = where
        self._wait = wait
        libpq.send_query(command.encode())
        self._expect(ExecStatus.COPY_OUT)

    def read(self, chunk: Chunk) -> bool:
        """Put rows into *chunk* until it is full; return whether the COPY is over."""
        with self._as_ours():
            while not chunk.is_full:
                length, row = self._libpq.get_copy_data(1)
                if length > 0:
                    chunk.make_room(length)
                    chunk.buffer[chunk.filled : chunk.filled + length] = row
                    chunk.filled += length
                    chunk.rows += 1
                elif length == 0:
                    self._wait.readable()
                    self._libpq.consume_input()
                else:
                    self._expect(ExecStatus.COMMAND_OK)
                    while self._libpq.get_result() is not None:
                        pass
                    return True
        return False

    def _expect(self, status: ExecStatus) -> None:
        with self._as_ours():
            while self._libpq.is_busy():
                self._wait.readable()
                self._libpq.consume_input()
            result = self._libpq.get_result()
            if result is None or result.status != status:
                message = self._libpq.get_error_message() if result is None else result.get_error_message()
                state = None if result is None else (result.error_field(67) or b"").decode() or None
                raise refusal(state, message, where=self._where)

    def _as_ours(self) -> _AsServerError:
        return _AsServerError(self._where)


class _AsServerError:
    """Turns what libpq raises into a ServerError; a class, since it is entered for every chunk."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, psycopg.Error):
            raise query_refusal(error, where=self._where) from error
