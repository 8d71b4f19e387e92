"""What is done to WAL, and why it ends there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pgkeep.errors import FormatError
from pgkeep.pg.segment_index import Ending, index_segment
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_reader import WalReader
from pgkeep.pg.wal_record import read_record
from tests.pg.made_records import MIB, Made, WalWriter, commit, heap, pieces_of

PAGE = 8192


@dataclass(frozen=True)
class Damage:
    does: Callable[[bytearray], None]
    message: str
    commits: int = 2
    checks_all: bool = False
    ending: Ending = Ending.INVALID


def at(offset: int, code: str, value: int) -> Callable[[bytearray], None]:
    """Return what puts *value* at *offset*."""
    return lambda content: struct.pack_into(code, content, offset, value)


def flip(offset: int) -> Callable[[bytearray], None]:
    """Return what flips a bit of the byte at *offset*."""

    def does(content: bytearray) -> None:
        content[offset] ^= 4

    return does


def zero_from(offset: int) -> Callable[[bytearray], None]:
    """Return what leaves only zeros from *offset* on."""

    def does(content: bytearray) -> None:
        content[offset:] = bytes(len(content) - offset)

    return does


# What `written` returns has records at 28, 50, 2C8, 4198, 41C0 and 45C8, the first, fourth and last of them commits.
DAMAGES = {
    "nothing": Damage(
        lambda content: None, "WAL ends at 0/003045F0: zeros follow from 0/003045F0 on", 3, ending=Ending.ZEROS
    ),
    "a length too short": Damage(at(0x2C8, "<I", 7), "WAL record at 0/003002C8 has 7 bytes, expected at least 24", 1),
    "a length that leads elsewhere": Damage(
        at(0x50, "<I", 0x180), "WAL record at 0/003001D0 links back to A5A5A5A5/A5A5A5A5, expected 0/00300050", 1
    ),
    "a link to elsewhere": Damage(
        at(0x2C8 + 8, "<Q", 0x300028), "WAL record at 0/003002C8 links back to 0/00300028, expected 0/00300050", 1
    ),
    "a commit's time": Damage(flip(0x28 + 30), "WAL record at 0/00300028 has CRC 6338D439, its bytes give 81DF33E3", 0),
    "a record nobody looks into": Damage(
        flip(0x100), "WAL ends at 0/003045F0: zeros follow from 0/003045F0 on", 3, ending=Ending.ZEROS
    ),
    "the same, when everything is checked": Damage(
        flip(0x100), "WAL record at 0/00300050 has CRC 447150CC, its bytes give E4F569DA", 1, checks_all=True
    ),
    "the magic of a page": Damage(at(PAGE, "<H", 0xD118), "WAL page at 0/00302000 has magic D118, expected D110", 1),
    "the address of a page": Damage(
        at(PAGE + 8, "<Q", 0x102000), "WAL page at 0/00302000 has the address 0/00102000", 1
    ),
    "the timeline of a page": Damage(at(PAGE + 4, "<I", 2), "WAL page at 0/00302000 is of timeline 2, expected 1", 1),
    "a long header where none belongs": Damage(
        at(PAGE + 2, "<H", 3), "WAL page at 0/00302000 has flags 0003, which do not belong there", 1
    ),
    "unknown flags": Damage(
        at(PAGE + 2, "<H", 0x21), "WAL page at 0/00302000 has flags 0021, which do not belong there", 1
    ),
    "another rest of a record": Damage(
        at(PAGE + 16, "<I", 5), "WAL page at 0/00302000 has 5 bytes of a record left, expected 8549", 1
    ),
    "no rest of a record": Damage(
        at(PAGE + 2, "<H", 0), "WAL page at 0/00302000 has 0 bytes of a record left, expected 8549", 1
    ),
    "a page that was not written": Damage(
        zero_from(PAGE), "WAL ends at 0/003002C8: zeros follow from 0/00302000 on", 1, ending=Ending.ZEROS
    ),
    "a record that was not written": Damage(
        zero_from(0x50), "WAL ends at 0/00300050: zeros follow from 0/00300050 on", 1, ending=Ending.ZEROS
    ),
}


def written() -> tuple[WalSegment, bytes]:
    """Return a segment: a commit, a short record, one longer than a page, commits."""
    writer = WalWriter()
    for made in (commit(1, 10), heap(600), heap(16_000), commit(2, 20), heap(1000), commit(3, 30)):
        writer.write(made)
    return writer.segments()[0]


def message_of(damage: Damage, piece_bytes: int) -> tuple[str, int, Ending]:
    """Return why the WAL ends, after how many commits, and how."""
    segment, content = written()
    damaged = bytearray(content)
    damage.does(damaged)
    index = index_segment(segment, pieces_of(bytes(damaged), piece_bytes), checks_all=damage.checks_all)
    return index.trouble, index.commits.count if index.commits else 0, index.ending


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage(damage: Damage) -> None:
    """The WAL ends before the damage, with the reason, however it is cut into pieces."""
    found = {message_of(damage, size) for size in (PAGE, 2 * PAGE, MIB)}
    assert found == {(damage.message, damage.commits, damage.ending)}


@pytest.mark.parametrize(
    ("rmgr", "info", "data", "kind"),
    [
        (1, 0x00, b"1234", "resource manager 1 and kind 00"),
        (1, 0xB0, struct.pack("<qI", 0, 0x12), "resource manager 1 and kind B0"),
        (0, 0x70, bytes(8) + b"no end", "resource manager 0 and kind 70"),
        (0, 0x10, bytes(20), "resource manager 0 and kind 10"),
        (4, 0x00, bytes(6), "resource manager 4 and kind 00"),
        (5, 0x00, b"12", "resource manager 5 and kind 00"),
    ],
)
def test_a_record_that_its_kind_does_not_promise(rmgr: int, info: int, data: bytes, kind: str) -> None:
    """A record with the right CRC and too little in it is named."""
    record = WalWriter().render(Made(rmgr, info, data))
    with pytest.raises(FormatError) as caught:
        read_record(record, 0x300028, major=15)
    assert caught.value.message == f"WAL record at 0/00300028 of {kind} is not as PostgreSQL 15 writes it"


def test_segments_out_of_order() -> None:
    """A reader takes the segment that follows, and no other."""
    segment, content = written()
    reader = WalReader()
    reader.enter(segment)
    reader.feed(content)
    with pytest.raises(FormatError) as caught:
        reader.enter(segment.next().next())
    assert caught.value.message == ("WAL segment 000000010000000000000005 begins at 0/00500000, expected 0/00400000")
