"""COPY from the client: bytes go to the server as they are, many rows at a time, and other threads run meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ExecStatus

from pgkeep.server.refusals import query_refusal, refusal
from pgkeep.server.waiting import SocketWait
from pgkeep.streams.item import Buffer

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

SEND_BYTES = 256 << 10
"""At once: libpq copies it into a buffer of its own, which then stays in the processor's cache."""
_SQLSTATE = ord("C")


def copy_in(
    session: psycopg.Connection[Any],
    command: str,
    pieces: Iterable[Buffer],
    *,
    where: str,
    cancelled: threading.Event | None = None,
) -> int:
    """
    Run *command*, a ``COPY … FROM STDIN``, with *pieces* as its input; return how many rows went in.

    Pieces need not end with a row. After an error the session is to be closed: that ends the COPY without a row.

    Raises:
        ServerError: The server refuses, or another thread has set *cancelled*.
    """
    libpq = session.pgconn
    # Blocking calls would hold the interpreter's lock while the server is busy.
    libpq.nonblocking = 1
    wait = SocketWait(libpq.socket, where=where, cancelled=cancelled)
    try:
        libpq.send_query(command.encode())
        _flush(libpq, wait)
        _expect(libpq, wait, ExecStatus.COPY_IN, where=where)
        for piece in pieces:
            view = memoryview(piece)
            for offset in range(0, len(view), SEND_BYTES):
                # It takes all: its buffer grows, and is emptied at once.
                libpq.put_copy_data(view[offset : offset + SEND_BYTES])
                _flush(libpq, wait)
        libpq.put_copy_end()
        _flush(libpq, wait)
        done = _expect(libpq, wait, ExecStatus.COMMAND_OK, where=where)
        while libpq.get_result() is not None:
            pass
    except psycopg.Error as error:
        raise query_refusal(error, where=where) from error
    finally:
        libpq.nonblocking = 0
    return done.command_tuples or 0


def _flush(libpq: PGconn, wait: SocketWait) -> None:
    while libpq.flush():
        wait.writable()
        # A server that has something to say, such as an error, may wait for us to listen.
        libpq.consume_input()


def _expect(libpq: PGconn, wait: SocketWait, status: ExecStatus, *, where: str) -> PGresult:
    while libpq.is_busy():
        wait.readable()
        libpq.consume_input()
    result = libpq.get_result()
    if result is None or result.status != status:
        message = libpq.get_error_message() if result is None else result.get_error_message()
        state = None if result is None else (result.error_field(_SQLSTATE) or b"").decode() or None
        raise refusal(state, message, where=where)
    return result
