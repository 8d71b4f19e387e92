"""A relation's file put together as a stream is what the increments make of it one after the other."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.incremental_file import IncrementalHeader
from pgkeep.streams.item import Buffer, ItemHeader
from pgkeep.streams.rolled_file import OrderedContent, RolledFile

BLOCK = 8192


@dataclass(eq=False)
class MadeItem:
    """A detached item of bytes."""

    header: ItemHeader
    content: bytes

    def read_extent(self, offset: int, length: int) -> Buffer:
        return self.content[offset : offset + length]

    def close(self) -> None:
        """Nothing is open."""


class Sources:
    """Items whose reading is taken note of."""

    def __init__(self) -> None:
        self.items: list[MadeItem] = []
        self.read: dict[str, tuple[int, int]] = {}

    def content(self, content: bytes) -> OrderedContent:
        """Return *content* as a source."""
        path = f"@postgresql/{len(self.items)}"
        self.items.append(MadeItem(ItemHeader(path, size=len(content)), content))
        return OrderedContent(self.items[-1], lambda size, crc: self.read.update({path: (size, crc)}))

    def assert_are_read(self) -> None:
        """Assert that every source was read to its end, and once."""
        assert self.read == {item.header.path: (len(item.content), crc32c(item.content, 0)) for item in self.items}


def block(number: int) -> bytes:
    """Return a block that is no other's."""
    return struct.pack("<I", number + 1) * (BLOCK // 4)


def applied(content: bytes, header: IncrementalHeader, blocks: list[bytes]) -> bytes:
    """Return what an increment makes of *content*, by its definition."""
    changed = bytearray(content[: header.kept_bytes].ljust(header.kept_bytes, b"\0"))
    for number, new in zip(header.blocks, blocks, strict=True):
        changed.extend(bytes(max(0, (number + 1) * BLOCK - len(changed))))
        changed[number * BLOCK : (number + 1) * BLOCK] = new
    return bytes(changed)


INCREMENTS = st.lists(st.tuples(st.integers(0, 300), st.sets(st.integers(0, 320), max_size=40)), min_size=1, max_size=4)


@settings(max_examples=40)
@given(whole=st.integers(0, 300), tail=st.sampled_from([0, 1, 4096]), increments=INCREMENTS)
def test_stream_is_what_the_increments_make(whole: int, tail: int, increments: list[tuple[int, set[int]]]) -> None:
    """Cut off, grown, with gaps and half a block at the end: the same bytes, and every source is read to its end."""
    sources, serial = Sources(), 0
    expected = b"".join(block(serial + number) for number in range(whole)) + b"t" * tail
    first = sources.content(expected)
    contents = []
    for truncation, numbers in increments:
        header = IncrementalHeader(truncation, tuple(sorted(numbers)))
        serial += 1000
        blocks = [block(serial + number) for number in header.blocks]
        contents.append(sources.content(header.render() + b"".join(blocks)))
        expected = applied(expected, header, blocks)
    rolled = RolledFile(first, contents)
    assert rolled.size == len(expected)
    assert b"".join(rolled.chunks()) == expected
    sources.assert_are_read()


def test_extents_do_not_show() -> None:
    """Sources of several extents, whose blocks do not end where extents do, give the same bytes."""
    sources = Sources()
    expected = b"".join(block(number) for number in range(1300))
    first = sources.content(expected)
    header = IncrementalHeader(1290, tuple(range(3, 1300, 2)))
    blocks = [block(5000 + number) for number in header.blocks]
    rolled = RolledFile(first, [sources.content(header.render() + b"".join(blocks))])
    assert b"".join(rolled.chunks()) == applied(expected, header, blocks)
    sources.assert_are_read()


def test_blocks_that_do_not_ascend_are_refused() -> None:
    """One pass needs them in their order; nothing is guessed."""
    header = IncrementalHeader(9, (4, 2))
    content = Sources().content(header.render() + block(4) + block(2))
    with pytest.raises(FormatError, match=r"^@postgresql/0: incremental file has block numbers that do not ascend$"):
        RolledFile(Sources().content(b""), [content])


def test_what_is_no_increment_is_refused() -> None:
    """The message names the file."""
    with pytest.raises(FormatError, match=r"^@postgresql/0: incremental file begins with 0x78787878, expected 0x"):
        RolledFile(Sources().content(b""), [Sources().content(b"x" * 100)])
