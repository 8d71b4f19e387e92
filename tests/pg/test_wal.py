from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg import wal
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.wal import WalSegment, check_wal_header, parse_wal_header, segments_between

VECTORS = json.loads((Path(__file__).parent / "vectors" / "wal_header.json").read_text())
SIZES = [1 << bits for bits in range(20, 31)]

sizes = st.sampled_from(SIZES)
timelines = st.integers(1, 2**32 - 1).map(Timeline)


@st.composite
def segments(draw: st.DrawFn) -> WalSegment:
    """Draw a segment of any legal size."""
    size = draw(sizes)
    return WalSegment(draw(timelines), draw(st.integers(0, 2**64 // size - 2)), size)


@given(segments())
def test_a_segments_name_leads_back_to_it(segment: WalSegment) -> None:
    """A segment survives its name, for every legal size."""
    assert wal.is_segment_name(segment.name)
    assert WalSegment.parse(segment.name, size=segment.size) == segment


@given(segments(), st.data())
def test_a_segment_holds_its_bytes_and_no_others(segment: WalSegment, data: st.DataObject) -> None:
    """Every LSN from start to end lies in the segment; its end is the next one's start."""
    lsn = Lsn(data.draw(st.integers(segment.start_lsn, segment.end_lsn - 1)))
    assert WalSegment.containing(lsn, timeline=segment.timeline, size=segment.size) == segment
    assert segment.next().start_lsn == segment.end_lsn
    assert WalSegment.ending_at(segment.end_lsn, timeline=segment.timeline, size=segment.size) == segment


@pytest.mark.parametrize("size", SIZES)
def test_a_boundary_belongs_to_both_sides(size: int) -> None:
    """At a boundary the byte is in the next segment, and what ends there needs only the one before."""
    boundary = Lsn(3 * size)
    assert WalSegment.containing(boundary, timeline=Timeline(1), size=size).number == 3
    assert WalSegment.ending_at(boundary, timeline=Timeline(1), size=size).number == 2


def test_names_follow_the_servers_arithmetic() -> None:
    """The examples are pg_walfile_name()'s, with segments of 16 MiB and of 1 MiB."""
    assert WalSegment.containing(Lsn.parse("2/FF000028"), timeline=Timeline(3), size=16 << 20).name == (
        "0000000300000002000000FF"
    )
    assert WalSegment.containing(Lsn.parse("2/FF000028"), timeline=Timeline(3), size=1 << 20).name == (
        "000000030000000200000FF0"
    )


def test_no_segment_ends_at_zero() -> None:
    """LSN 0/0 ends no segment."""
    with pytest.raises(FormatError) as caught:
        WalSegment.ending_at(Lsn(0), timeline=Timeline(1), size=16 << 20)
    assert str(caught.value) == "no WAL segment ends at LSN 0/00000000"


@given(segments(), st.integers(0, 6), st.integers(0, 6))
def test_a_range_is_gapless_and_complete(first: WalSegment, start_offset: int, count: int) -> None:
    """The segments of a range touch each other and hold its first and its last byte."""
    start = Lsn(min(first.start_lsn + start_offset, 2**64 - 1))
    end = Lsn(min(start + count * first.size // 2, 2**64 - 1))
    found = list(segments_between(start, end, timeline=first.timeline, size=first.size))
    if end <= start:
        assert found == []
        return
    assert found[0].start_lsn <= start < found[0].end_lsn
    assert found[-1].start_lsn < end <= (found[-1].number + 1) * first.size
    assert [segment.number for segment in found] == list(range(found[0].number, found[-1].number + 1))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 3 << 20, 2 << 30])
def test_an_illegal_size_is_refused(size: int) -> None:
    """Only powers of two from 1 MiB to 1 GiB are sizes."""
    with pytest.raises(FormatError) as caught:
        wal.check_segment_size(size)
    assert str(caught.value) == f"WAL segment size must be a power of two from 1 MiB to 1 GiB, found {size} bytes"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", 'not the name of a WAL segment: expected 24 hexadecimal digits, found ""'),
        (
            "00000001000000000000000a",
            'not the name of a WAL segment: expected 24 hexadecimal digits, found "00000001000000000000000a"',
        ),
        (
            "000000010000000000000100",
            "WAL segment 000000010000000000000100 cannot exist with segments of 16777216 bytes",
        ),
        ("000000000000000000000001", "timeline out of range: 0"),
    ],
)
def test_a_wrong_name_is_refused(name: str, message: str) -> None:
    """A name is refused that no server with this segment size gives."""
    with pytest.raises(FormatError) as caught:
        WalSegment.parse(name, size=16 << 20)
    assert str(caught.value) == message


def test_each_kind_of_name_is_told_from_the_others() -> None:
    """Segments, partial segments, histories and backup labels have names of their own."""
    kinds = {
        "000000010000000000000001": wal.is_segment_name,
        "000000010000000000000001.partial": wal.is_partial_name,
        "00000002.history": wal.is_history_name,
        "000000010000000000000001.00000028.backup": wal.is_backup_label_name,
    }
    for name, is_kind in kinds.items():
        assert [other for other in kinds.values() if other(name)] == [is_kind]


@pytest.mark.parametrize("version", sorted(VECTORS, key=int))
def test_real_headers_are_read(version: str) -> None:
    """The header that a server of each major wrote is recognised as its segment's."""
    vector = VECTORS[version]
    segment = WalSegment.parse(vector["name"], size=16 << 20)
    header = check_wal_header(
        bytes.fromhex(vector["first_bytes"]),
        segment,
        system_identifier=SystemIdentifier(vector["system_identifier"]),
    )
    assert header.magic == wal.PAGE_MAGIC_BY_MAJOR[int(version)]
    assert (header.timeline, header.page_address) == (segment.timeline, segment.start_lsn)
    assert (header.segment_size, header.block_size) == (16 << 20, 8192)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_header_or_a_format_error(data: bytes) -> None:
    """No bytes make the parser fail in another way."""
    with contextlib.suppress(FormatError):
        parse_wal_header(data)


SYSTEM = SystemIdentifier(VECTORS["18"]["system_identifier"])
SEGMENT = WalSegment.parse(VECTORS["18"]["name"], size=16 << 20)
HEADER = bytes.fromhex(VECTORS["18"]["first_bytes"])


def _patched(offset: int, code: str, value: int) -> bytes:
    damaged = bytearray(HEADER)
    struct.pack_into("<" + code, damaged, offset, value)
    return bytes(damaged)


DAMAGE = [
    ("cut off", HEADER[:39], "WAL header needs 40 bytes, found 39"),
    ("other magic", _patched(0, "H", 0xD0FF), "not a WAL segment of PostgreSQL 12 to 18: page magic is D0FF"),
    ("zeros", bytes(40), "not a WAL segment of PostgreSQL 12 to 18: page magic is 0000"),
    ("short header", _patched(2, "H", 0), "not the first page of a WAL segment: its header is a short one"),
    (
        "other cluster",
        _patched(24, "Q", 5),
        f"WAL segment {SEGMENT.name} belongs to system identifier 5, not to {SYSTEM}",
    ),
    (
        "other size",
        _patched(32, "I", 1 << 20),
        f"WAL segment {SEGMENT.name} has segments of 1048576 bytes, not 16777216",
    ),
    (
        "other place: a segment recycled before it was written",
        _patched(8, "Q", 0x1000000),
        f"WAL segment {SEGMENT.name} starts at 0/01000000, not at {SEGMENT.start_lsn}",
    ),
    ("later timeline", _patched(4, "I", 9), f"WAL segment {SEGMENT.name} carries pages of the later timeline 9"),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_segment_that_is_not_what_its_name_says_is_refused(data: bytes, message: str) -> None:
    """Each way to have the wrong bytes under a segment's name has its own message."""
    check_wal_header(HEADER, SEGMENT, system_identifier=SYSTEM)
    with pytest.raises(FormatError) as caught:
        check_wal_header(data, SEGMENT, system_identifier=SYSTEM)
    assert str(caught.value) == message


def test_an_older_timeline_in_the_header_is_legal() -> None:
    """The first segment of a new timeline starts with pages of the old one."""
    check_wal_header(HEADER, SEGMENT.on(Timeline(7)), system_identifier=SYSTEM)
