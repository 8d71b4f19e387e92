"""
The socket of a session, lent by libpq while it is idle: messages are framed here, in one large buffer.

libpq takes a few kilobytes at a time, and copies each message twice before it gives it away. For an answer of gigabytes
that is most of what receiving costs, so such an answer is read past it. That is right for two reasons. First, libpq
holds nothing back: a server that has said that it is ready says nothing more until it is asked, but for a report of
its own end, a whole message that libpq is made to take first. Second, the socket is given back only after the server
has said again that it is ready, so that libpq never sees that it was away; when it is not given back, the session is
over.

Content goes straight to where it is wanted, by a guess: that it comes in messages of one size. Heads and bodies are
then read to different places by one call. When a head is not what was guessed, nothing is lost: what was read, put back
in order, is taken apart like everything else.

Only a socket that nobody encrypts can be lent: with TLS or GSSAPI in use, bytes have meaning to libpq alone.

Source: PostgreSQL manual, "Message Flow"; ``src/interfaces/libpq/fe-misc.c``, ``pqReadData``, ``fe-protocol3.c``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgkeep.errors import ServerError
from pgkeep.pg.server_message import COPY_DATA, FRAME, LENGTH_BYTES
from pgkeep.server.refusals import refusal
from pgkeep.server.waiting import TICK_SECONDS, SocketWait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

BUFFER_BYTES = 256 << 10
"""As much as a Unix socket holds; more would leave the processor's cache before it is passed on."""

LARGEST_BYTES = 16 << 20
"""The largest message that is taken; servers send content in messages of 32 KiB."""

_KIND_BYTES = 1
_MESSAGES_AT_ONCE = 32
_ENOUGH_BYTES = 128 << 10
_TICK = struct.pack("ll", 0, int(TICK_SECONDS * 1_000_000))


class PlainLine:
    """
    What comes from a server, message by message.

    Bodies are valid until the next message is asked for.

    Args:
        descriptor: The socket, which does not block; libpq owns it.
        where: The server's place, for messages.
        wait: For the same socket.
        largest_bytes: The largest message that is taken.
    """

    def __init__(self, descriptor: int, *, where: str, wait: SocketWait, largest_bytes: int = LARGEST_BYTES) -> None:
        self.where = where
        self._largest_bytes = largest_bytes
        self._descriptor = descriptor
        self._wait = wait
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._is_dry = True

    def send(self, message: bytes) -> None:
        """Send the whole of *message*."""
        left = memoryview(message)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                self._wait.writable()
            except OSError as error:
                raise self._lost(f"could not send data to server: {error.strerror}") from error

    def message(self) -> tuple[int, memoryview]:
        """Return the type and the body of the next message."""
        while True:
            start, after = self._next_message()
            if after <= self._end:
                self._start = after
                return self._buffer[start], self._view[start + FRAME.size : after]
            self._receive(after - start)

    @property
    def unread(self) -> memoryview:
        """What has come and was not taken yet, for who takes messages apart himself; valid until more is received."""
        return self._view[self._start : self._end]

    def take(self, count: int) -> None:
        """Count the first *count* bytes of ``unread`` as taken."""
        self._start += count

    def receive(self) -> None:
        """Wait for more behind what is unread; something of a full buffer must have been taken before."""
        self._receive(0)

    def copy_data(self) -> Iterator[memoryview]:
        """Yield the bodies of the CopyData messages that come next, up to a message of another type."""
        frame = FRAME.unpack_from
        while True:
            # Afresh each time: between two messages the reader may have called copy_into.
            start = self._start
            if start + FRAME.size <= self._end:
                kind, length = frame(self._buffer, start)
                if kind != COPY_DATA:
                    return
                after = start + _KIND_BYTES + length
                if after <= self._end and length >= LENGTH_BYTES:
                    self._start = after
                    yield self._view[start + FRAME.size : after]
                    continue
            _, after = self._next_message()
            self._receive(after - start)

    def copy_into(self, destination: memoryview, *, prefix: bytes, unit: int) -> int:
        """
        Fill *destination* from CopyData messages whose bodies are *prefix* and *unit* bytes of content.

        Returns:
            Bytes of content taken, a multiple of *unit*: less than there is room for when a message of another form
            comes next.
        """
        head = FRAME.pack(COPY_DATA, LENGTH_BYTES + len(prefix) + unit) + prefix
        stride = len(head) + unit
        wanted = len(destination) // unit * unit
        filled = 0
        while filled < wanted and self._end - self._start >= stride and self._buffer.startswith(head, self._start):
            after = self._start + stride
            destination[filled : filled + unit] = self._view[after - unit : after]
            filled += unit
            self._start = after
        begun = self._view[self._start : self._end]
        # What is there may be less than a head, but is the beginning of one or the guess is wrong already.
        if filled == wanted or begun[: len(head)] != head[: len(begun)]:
            return filled
        guess = _Guess(head, destination[filled:wanted], unit)
        guess.put(begun)
        self._start = self._end = 0
        with self._blocking() as line:
            while guess.is_right and (places := guess.places()):
                guess.received += self._read_all(line, places)
        self._put_back(guess.refused())
        return filled + guess.content_bytes

    def _next_message(self) -> tuple[int, int]:
        """Return where the next message starts and where it, or at least its frame, ends."""
        start = self._start
        if start + FRAME.size > self._end:
            return start, start + FRAME.size
        kind, length = FRAME.unpack_from(self._buffer, start)
        if not LENGTH_BYTES <= length <= self._largest_bytes:
            raise ServerError(
                f"PostgreSQL at {self.where} broke the protocol: a message of type {bytes((kind,))!r} "
                f"has the length {length}, expected {LENGTH_BYTES} to {self._largest_bytes}"
            )
        return start, start + _KIND_BYTES + length

    def _receive(self, wanted: int) -> None:
        """Take what there is, at least a byte; make room for *wanted* bytes from the start of the next message on."""
        self._make_room(wanted)
        self._end += self._read([self._view[self._end :]])

    def _read(self, places: list[memoryview]) -> int:
        """Read what there is, at least a byte, to *places* one after the other; return how many bytes."""
        while True:
            # A small read has probably emptied the socket; to wait in vain costs little.
            if self._is_dry:
                self._wait.readable()
            else:
                self._wait.check()
            try:
                taken = os.readv(self._descriptor, places)
            except BlockingIOError:
                self._is_dry = True
                continue
            except OSError as error:
                raise self._lost(f"could not receive data from server: {error.strerror}") from error
            if not taken:
                raise self._lost("server closed the connection unexpectedly")
            self._is_dry = taken < _ENOUGH_BYTES
            return taken

    @contextlib.contextmanager
    def _blocking(self) -> Iterator[socket.socket]:
        """Let reading wait in the kernel, for a tick at most; the descriptor stays libpq's."""
        line = socket.socket(fileno=self._descriptor)
        try:
            os.set_blocking(self._descriptor, True)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TICK)
            yield line
        finally:
            os.set_blocking(line.detach(), False)

    def _read_all(self, line: socket.socket, places: list[memoryview]) -> int:
        """
        Read until *places* are full; return how many bytes came within a tick, perhaps none.

        A server sends 8 KiB at a time, and waking up for each of them costs more than to take it.
        """
        self._wait.check()
        try:
            taken = line.recvmsg_into(places, 0, socket.MSG_WAITALL)[0]
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(f"could not receive data from server: {error.strerror}") from error
        if not taken:
            raise self._lost("server closed the connection unexpectedly")
        return taken

    def _put_back(self, content: bytes) -> None:
        """Have *content*, which came before all that is to come, taken apart message by message."""
        self._make_room(max(len(content), BUFFER_BYTES))
        self._view[: len(content)] = content
        self._end = len(content)

    def _make_room(self, wanted: int) -> None:
        """Move the beginning of a message to the front, into a larger buffer when it does not fit."""
        kept = self._end - self._start
        if wanted > len(self._buffer):
            buffer = bytearray(wanted)
            buffer[:kept] = self._view[self._start : self._end]
            self._buffer, self._view = buffer, memoryview(buffer)
        elif self._start:
            self._view[:kept] = self._view[self._start : self._end]
        self._start, self._end = 0, kept

    def _lost(self, reason: str) -> ServerError:
        return refusal(None, reason, where=self.where)


class _Guess:
    """
    Messages of one form that may be coming: their heads to a place of their own, their content to *content*.

    *content* is as long as a number of messages. ``received`` counts bytes of the stream.
    """

    def __init__(self, head: bytes, content: memoryview, unit: int) -> None:
        messages = len(content) // unit
        self._head_bytes = len(head)
        self._stride = len(head) + unit
        self._expected = head * messages
        self._heads = bytearray(len(self._expected))
        heads = memoryview(self._heads)
        self._places: list[memoryview] = []
        for index in range(messages):
            self._places.append(heads[index * len(head) : (index + 1) * len(head)])
            self._places.append(content[index * unit : (index + 1) * unit])
        self.received = 0

    @property
    def is_right(self) -> bool:
        """Tell whether all heads that have come, the last perhaps in part, are as expected."""
        messages, rest = divmod(self.received, self._stride)
        known = messages * self._head_bytes + min(rest, self._head_bytes)
        return self._expected.startswith(self._heads[:known])

    @property
    def content_bytes(self) -> int:
        """Bytes of content of the messages that were as expected."""
        return self._good * (self._stride - self._head_bytes)

    def put(self, begun: memoryview) -> None:
        """Take the beginning of the first message."""
        head, body = self._places[:2]
        in_head = min(len(begun), len(head))
        head[:in_head] = begun[:in_head]
        body[: len(begun) - in_head] = begun[in_head:]
        self.received = len(begun)

    def places(self) -> list[memoryview]:
        """Return where the next bytes of the stream belong; nothing when all have come."""
        message, offset = divmod(self.received, self._stride)
        first = 2 * message
        if offset >= self._head_bytes:
            first += 1
            offset -= self._head_bytes
        places = self._places[first : first + 2 * _MESSAGES_AT_ONCE]
        if places:
            places[0] = places[0][offset:]
        return places

    def refused(self) -> bytes:
        """Return what was received from the first message on that is not as expected; nothing when all are."""
        return b"".join(self._places[2 * self._good :])[: self.received - self._good * self._stride]

    @property
    def _good(self) -> int:
        messages = self.received // self._stride
        size = self._head_bytes
        return next(
            (
                index
                for index in range(messages)
                if self._heads[index * size : (index + 1) * size] != self._expected[:size]
            ),
            messages,
        )


def is_plain(libpq: PGconn) -> bool:
    """Tell whether nobody encrypts what goes through the socket of *libpq*."""
    with socket.socket(fileno=os.dup(libpq.socket)) as line:
        if line.family == socket.AF_UNIX:
            return True
    return not libpq.ssl_in_use and not _gss_in_use(libpq)


def _gss_in_use(libpq: PGconn) -> bool:
    """Tell whether GSSAPI encrypts, or whether that cannot be known."""
    # psycopg does not pass the question on, so it goes to the libpq that psycopg has loaded.
    implementation = sys.modules.get("psycopg_binary.pq") or sys.modules.get("psycopg_c.pq")
    address = getattr(libpq, "pgconn_ptr", None)
    if implementation is None or implementation.__file__ is None or address is None:
        return True
    question = getattr(ctypes.CDLL(implementation.__file__), "PQgssEncInUse", None)
    if question is None:
        return True
    question.argtypes, question.restype = [ctypes.c_void_p], ctypes.c_int
    return bool(question(address))
