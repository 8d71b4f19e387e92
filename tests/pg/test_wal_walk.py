from __future__ import annotations

import contextlib
import dataclasses
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.segment_index import Ending, close_index, index_segment, joined_ends
from pgkeep.pg.wal import PAGE_MAGIC_BY_MAJOR, WalSegment
from pgkeep.pg.wal_reader import WalReader
from pgkeep.pg.wal_record import Event, RestorePoint, TransactionEnd
from pgkeep.pg.wal_walk import Walk, WalkEnd, native_walk, walk_in_python
from tests.pg.made_records import (
    MIB,
    Made,
    WalWriter,
    abort,
    commit,
    heap,
    pieces_of,
    restore_point,
    switch,
)

records = st.lists(
    st.one_of(
        st.integers(0, 300).map(heap),
        st.integers(8000, 20_000).map(heap),
        st.builds(commit, st.integers(1, 2**32 - 1), st.integers(-(2**50), 2**50)),
        st.builds(abort, st.integers(1, 2**32 - 1), st.integers(-(2**50), 2**50)),
        st.text("abcäö ", min_size=1, max_size=20).map(restore_point),
        st.just(switch()),
    ),
    max_size=120,
)


def written(made: list[Made], *, page_bytes: int = 8192, major: int = 15) -> WalWriter:
    """Return a writer that has written *made*."""
    writer = WalWriter(page_bytes=page_bytes, major=major)
    for one in made:
        writer.write(one)
    return writer


def walk_of(segment: WalSegment, *, page_bytes: int, major: int = 15, checks_all: bool) -> Walk:
    """Return a walk that begins with *segment*."""
    return Walk(
        segment.start_lsn, segment.size, page_bytes, PAGE_MAGIC_BY_MAJOR[major], segment.timeline, checks_all=checks_all
    )


def read_all(
    segments: list[tuple[WalSegment, bytes]], piece_size: int, **arguments: bool
) -> tuple[WalReader, list[Event]]:
    """Read *segments* in pieces of *piece_size* bytes, as far as the WAL goes."""
    reader, events = WalReader(**arguments), []
    for segment, content in segments:
        if reader.ended is not None and reader.ended is not WalkEnd.SWITCHED:
            break
        reader.enter(segment)
        for piece in pieces_of(content, piece_size):
            events += reader.feed(piece)
    return reader, events


def expected(made: list[Made], starts: list[Lsn]) -> list[tuple[object, ...]]:
    """Return what reading *made* should tell."""
    found: list[tuple[object, ...]] = []
    for one, lsn in zip(made, starts, strict=True):
        if one.rmgr == 1:
            found.append((lsn, one.xid, int.from_bytes(one.data[:8], "little", signed=True), one.info == 0))
        elif one.info == 0x70:
            found.append((lsn, one.data[8:].rstrip(b"\0").decode()))
    return found


def told(events: list[Event]) -> list[tuple[object, ...]]:
    """Return what *events* tell, in the same form."""
    found: list[tuple[object, ...]] = []
    for event in events:
        if isinstance(event, TransactionEnd):
            found.append(tuple(event))
        elif isinstance(event, RestorePoint):
            found.append((event.lsn, event.name))
    return found


@given(
    made=records, page_bytes=st.sampled_from([1024, 8192, 65536]), pages=st.integers(1, 64), checks_all=st.booleans()
)
def test_whatever_is_written_is_read(made: list[Made], page_bytes: int, pages: int, checks_all: bool) -> None:
    """Every commit, abort and restore point is found where it was written, however the WAL is cut into pieces."""
    writer = written(made, page_bytes=page_bytes)
    reader, events = read_all(writer.segments(), pages * page_bytes, checks_all=checks_all)
    assert told(events) == expected(made, writer.starts)
    assert reader.last == (writer.starts[-1] if made else None)
    if made and made[-1] != switch():
        assert reader.end == writer.position
        assert reader.ended in (WalkEnd.ZEROS, None)


@given(
    made=records,
    page_bytes=st.sampled_from([1024, 8192]),
    checks_all=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 2**24), st.integers(0, 7)), max_size=4),
    cut=st.integers(1, 128),
    previous=st.booleans(),
)
def test_the_twin_in_c_finds_what_python_finds(
    *,
    made: list[Made],
    page_bytes: int,
    checks_all: bool,
    flips: list[tuple[int, int]],
    cut: int,
    previous: bool,
) -> None:
    """Right WAL, cut WAL and WAL with flipped bits give the same records and the same end from both."""
    native = native_walk()
    assert native is not None, "native/wal_walk.c was not built: run ./dev setup"
    writer = written(made, page_bytes=page_bytes)
    for segment, content in writer.segments():
        used = writer.position - segment.start_lsn
        damaged = bytearray(content[: cut * page_bytes])
        for at, bit in flips:
            damaged[at % min(len(damaged), max(used, 1))] ^= 1 << bit
        piece = bytes(damaged)
        one = walk_of(segment, page_bytes=page_bytes, checks_all=checks_all)
        one.previous = 1 if previous else 0
        other = dataclasses.replace(one)
        assert native(piece, one) == walk_in_python(piece, other)
        assert one == other


@given(content=st.binary(min_size=0, max_size=4096), checks_all=st.booleans())
def test_any_bytes_end_a_walk(content: bytes, checks_all: bool) -> None:
    """Bytes that are no WAL end the walk in both languages alike; reading them raises nothing but FormatError."""
    native = native_walk()
    assert native is not None
    writer = WalWriter(page_bytes=1024)
    writer.write(heap())
    [(segment, segment_content)] = writer.segments()
    piece = (segment_content[:72] + content).ljust(5120, b"\0")[:5120]
    one = walk_of(segment, page_bytes=1024, checks_all=checks_all)
    other = dataclasses.replace(one)
    assert native(piece, one) == walk_in_python(piece, other)
    assert one == other
    reader = WalReader()
    reader.enter(segment)
    with contextlib.suppress(FormatError):
        reader.feed(piece)


@given(st.binary(max_size=200))
def test_crc_in_two_steps(data: bytes) -> None:
    """A CRC goes on where an earlier one ended."""
    assert crc32c(data[7:], crc32c(data[:7])) == crc32c(data)
    assert crc32c(b"123456789") == 0xE3069283


def test_a_record_given_up_is_overwritten() -> None:
    """After a crash the server begins anew on the next page, and says so in its header."""
    for pages in (0, 2):
        writer = WalWriter()
        writer.write(commit(1, 10))
        writer.write(heap(8000))
        writer.write_torn(heap(60_000), pages=pages)
        writer.write(commit(3, 30))
        reader, events = read_all(writer.segments(), MIB, checks_all=True)
        assert told(events) == [(writer.starts[0], 1, 10, True), (writer.starts[2], 3, 30, True)]
        assert reader.last == writer.starts[-1]
        # The same when the page that says so is in another piece than the record.
        assert told(read_all(writer.segments(), 8192)[1]) == told(events)


def test_a_record_longer_than_segments() -> None:
    """A record may fill whole segments, which then have no record of their own."""
    writer = WalWriter()
    writer.write(commit(1, 10))
    writer.write(heap(3 * MIB))
    writer.write(commit(2, 20))
    segments = writer.segments()
    assert len(segments) == 4
    assert told(read_all(segments, 8192)[1]) == [(writer.starts[0], 1, 10, True), (writer.starts[2], 2, 20, True)]
    # Whoever begins in the middle passes over the rest of it.
    reader, events = read_all(segments[1:], 65536)
    assert told(events) == [(writer.starts[2], 2, 20, True)]
    assert reader.first == writer.starts[2]


@pytest.mark.parametrize("room", [8, 16])
@pytest.mark.parametrize("piece_size", [1024, MIB])
def test_a_header_shared_by_two_pages(room: int, piece_size: int) -> None:
    """The header of a record may begin on one page and end on the next, in one piece or in two."""
    writer = WalWriter(page_bytes=1024)
    writer.write(heap(1024 - 40 - 24 - 5 - room))
    assert 1024 - writer.position % 1024 == room
    writer.write(commit(5, 50))
    writer.write(commit(6, 60))
    _, events = read_all(writer.segments(), piece_size)
    assert told(events) == [(writer.starts[1], 5, 50, True), (writer.starts[2], 6, 60, True)]


@given(made=records, pages=st.integers(16, 128), fill=st.integers(110, 125))
@settings(max_examples=25)
def test_segments_alone_tell_what_all_together_tell(made: list[Made], pages: int, fill: int) -> None:
    """The indexes of segments, each closed with the next, have every commit once, and know where their records end."""
    # Commits with more information in them than fits a page, so that many segments end within one.
    longer = Made(1, 0x80, struct.pack("<qI", 77, 0) + bytes(9_000), xid=7)
    made = [*([longer] * fill), *made, longer, commit(8, 88)]
    writer = written(made)
    segments = writer.segments()
    indexes = []
    for number, (segment, content) in enumerate(segments):
        index = index_segment(segment, pieces_of(content, pages * 8192))
        if index.needs_next:
            assert index.open is not None
            following, next_content = segments[number + 1]
            at = writer.starts.index(index.open.lsn)
            index = close_index(index, following, pieces_of(next_content, pages * 8192))
            assert (index.last, index.open, index.ending) == (writer.starts[at], None, Ending.FULL)
            # Records begin at multiples of 8; a page header may come before the next one.
            assert writer.starts[at + 1] - index.end in (0, 24, 40)
        indexes.append(index)
    commits = joined_ends(index.commits for index in indexes)
    assert commits is not None
    assert commits.count == sum(one.rmgr == 1 and one.info != 0x20 for one in made)
    assert (commits.last.xid, commits.last.lsn) == (8, writer.starts[-1])
