"""
Rows of a COPY to the client: the content of CopyData messages without their frames.

In text format a server sends each row as a message of its own, newline included. Taking millions of them apart is work
for C: where ``native/copy_rows.c`` was built it is done there, and other threads run meanwhile.

Source: PostgreSQL manual, "Message Formats", CopyData.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import sys
from collections.abc import Callable

from pgkeep.pg.server_message import COPY_DATA, FRAME, LENGTH_BYTES

MAX_LENGTH = 0x7FFFFFFF
"""The length of a message is a signed number of four bytes."""


class CopyState(enum.IntEnum):
    """Why the taking apart stopped."""

    MORE = 0
    """The input is used up, but for a part of a frame."""
    ENOUGH = 1
    """A message has ended, and as much as was wanted is there."""
    OTHER = 2
    """A message of another type comes next."""
    BROKEN = 3
    """What comes next is no message."""


class CopyProgress(ctypes.Structure):
    """
    What is kept between two calls, and what a call tells.

    Attributes:
        left: Bytes that the message begun lacks; 0 between two messages.
        consumed: Bytes of the input that the call took.
        produced: Bytes that it put out.
        rows: Messages that ended.
    """

    _fields_ = (
        ("left", ctypes.c_uint64),
        ("consumed", ctypes.c_uint64),
        ("produced", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
    )


TakeRows = Callable[[memoryview, memoryview, int, CopyProgress], CopyState]


def take_rows(source: memoryview, destination: memoryview, wanted: int, progress: CopyProgress) -> CopyState:
    """
    Put the bodies of the CopyData messages in *source* one after the other.

    Args:
        source: What came from the server, from the rest of a message begun, or the next message, on; writable.
        destination: Has room for as much.
        wanted: Stop at the first end of a message that makes it this many bytes; more than 0.
        progress: Told, and kept between calls.
    """
    filled, rows, left = 0, 0, progress.left
    state = CopyState.MORE
    position, end = 0, len(source)
    while True:
        if left:
            part = min(left, end - position)
            destination[filled : filled + part] = source[position : position + part]
            position += part
            filled += part
            left -= part
            if left:
                break
            rows += 1
            if filled >= wanted:
                state = CopyState.ENOUGH
                break
        if end - position < FRAME.size:
            break
        kind, length = FRAME.unpack_from(source, position)
        if kind != COPY_DATA:
            state = CopyState.OTHER
            break
        # A row has at least its newline: an empty message is none.
        if not LENGTH_BYTES < length <= MAX_LENGTH:
            state = CopyState.BROKEN
            break
        left = length - LENGTH_BYTES
        position += FRAME.size
    progress.left, progress.consumed, progress.produced, progress.rows = left, position, filled, rows
    return state


@functools.cache
def native_take_rows() -> TakeRows | None:
    """Return the twin of ``take_rows`` in C; None where it was not built."""
    try:
        function = ctypes.CDLL(f"{sys.prefix}/lib/pgkeep/copy_rows.so").pgkeep_copy_rows
    except OSError:
        return None
    function.restype = ctypes.c_int
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.POINTER(CopyProgress),
    ]

    def native(source: memoryview, destination: memoryview, wanted: int, progress: CopyProgress) -> CopyState:
        assert len(destination) >= len(source)
        given = (ctypes.c_char * len(source)).from_buffer(source)
        room = (ctypes.c_char * len(destination)).from_buffer(destination)
        return CopyState(function(given, len(source), room, wanted, ctypes.byref(progress)))

    return native


def row_taker() -> TakeRows:
    """Return the faster of the two that is there."""
    return native_take_rows() or take_rows
