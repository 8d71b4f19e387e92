"""Rows are taken out of CopyData messages, whatever the pieces in which they come."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.pg.copy_rows import CopyProgress, CopyState, TakeRows, native_take_rows, take_rows


def message(body: bytes, kind: bytes = b"d") -> bytes:
    """Return one message."""
    return kind + struct.pack(">I", len(body) + 4) + body


def native() -> TakeRows:
    """Return the twin in C."""
    found = native_take_rows()
    assert found is not None, "native/copy_rows.c was not built: run ./dev setup"
    return found


def taken_apart(take: TakeRows, stream: bytes, pieces: list[int], wanted: int) -> tuple[list[bytes], int, CopyState]:
    """Return the chunks of *stream* when it comes in *pieces*, the number of rows, and how it ended."""
    progress = CopyProgress()
    chunks, rows, current = [], 0, bytearray()
    pending, position, sizes = bytearray(), 0, iter(pieces)
    while True:
        room = bytearray(len(pending) + 3)
        with memoryview(pending) as source, memoryview(room) as destination:
            state = take(source, destination[3:], max(1, wanted - len(current)), progress)
        assert room[:3] == bytes(3)
        current += room[3 : 3 + progress.produced]
        rows += progress.rows
        del pending[: progress.consumed]
        if state is CopyState.ENOUGH:
            chunks.append(bytes(current))
            current = bytearray()
        elif state is not CopyState.MORE or position == len(stream):
            return [*chunks, bytes(current)], rows, state
        else:
            size = next(sizes, len(stream))
            pending += stream[position : position + size]
            position = min(len(stream), position + size)


@given(
    bodies=st.lists(st.binary(min_size=1, max_size=40), max_size=12),
    pieces=st.lists(st.integers(1, 30), max_size=40),
    wanted=st.integers(1, 100),
    other=st.booleans(),
)
def test_rows_are_whole_and_in_order(bodies: list[bytes], pieces: list[int], wanted: int, other: bool) -> None:
    """Both twins give the bodies in order, cut only between rows, and stop at a message of another type."""
    stream = b"".join(map(message, bodies)) + (message(b"", b"c") if other else b"")
    found = [taken_apart(take, stream, pieces, wanted) for take in (take_rows, native())]
    assert found[0] == found[1]
    chunks, rows, state = found[0]
    assert b"".join(chunks) == b"".join(bodies)
    assert rows == len(bodies)
    assert state is (CopyState.OTHER if other else CopyState.MORE)
    ends = {sum(map(len, bodies[:index])) for index in range(len(bodies) + 1)}
    cut = 0
    for chunk in chunks:
        cut += len(chunk)
        assert cut in ends
    assert all(len(chunk) >= wanted for chunk in chunks[:-1])


@pytest.mark.parametrize("length", [0, 3, 4, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("take", [take_rows, None], ids=["python", "native"])
def test_impossible_lengths_end_it(take: TakeRows | None, length: int) -> None:
    """A message that says it is shorter than its own length, empty, or longer than can be, is no message."""
    stream = message(b"a\n") + b"d" + struct.pack(">I", length) + b"xxxxx"
    assert taken_apart(take or native(), stream, [], 100) == ([b"a\n"], 1, CopyState.BROKEN)
