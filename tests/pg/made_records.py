"""WAL written by hand: pages, records, and whatever a server may do between them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import PAGE_MAGIC_BY_MAJOR, WalSegment
from pgkeep.pg.wal_walk import record_crc

SYSTEM = 7_312_345_678_901_234_567
MIB = 1 << 20
HEAP_RMGR = 10

_CONTRECORD, _LONG, _OVERWRITE = 0x1, 0x2, 0x8


@dataclass(frozen=True)
class Made:
    """A record to be written; *data* is its main data."""

    rmgr: int
    info: int
    data: bytes = b""
    xid: int = 0
    before: bytes = b""

    def parts(self) -> bytes:
        """Return the record after its header."""
        if not self.data:
            return self.before
        short = len(self.data) < 256
        head = struct.pack("<BB", 255, len(self.data)) if short else struct.pack("<BI", 254, len(self.data))
        return self.before + head + self.data


def heap(size: int = 30) -> Made:
    """Return a record that nobody looks into."""
    return Made(HEAP_RMGR, 0x20, b"\xa5" * size, xid=700)


def commit(xid: int, microseconds: int) -> Made:
    """Return a plain commit."""
    return Made(1, 0x00, struct.pack("<q", microseconds), xid)


def abort(xid: int, microseconds: int) -> Made:
    """Return a plain abort."""
    return Made(1, 0x20, struct.pack("<q", microseconds), xid)


def restore_point(name: str, microseconds: int = 0) -> Made:
    """Return a restore point."""
    return Made(0, 0x70, struct.pack("<q64s", microseconds, name.encode()))


def switch() -> Made:
    """Return the end of a segment before its time."""
    return Made(0, 0x40)


class WalWriter:
    """
    Writes records from the start of segment *number* on, as the server does.

    Attributes:
        position: LSN of the next record, or of the page header before it.
        starts: LSN of each record written, oldest first.
    """

    def __init__(
        self,
        *,
        number: int = 3,
        segment_size: int = MIB,
        page_bytes: int = 8192,
        major: int = 15,
        timeline: int = 1,
    ) -> None:
        self.number, self.segment_size, self.page_bytes = number, segment_size, page_bytes
        self.major, self.timeline = major, timeline
        self.origin = self.position = number * segment_size
        self.previous = 0
        self.starts: list[Lsn] = []
        self._bytes = bytearray()

    def write(self, made: Made) -> Lsn:
        """Append a record; return where it begins."""
        start = self._begin()
        record = self.render(made)
        self._put(record)
        self.previous = start
        self.starts.append(Lsn(start))
        if made.rmgr == 0 and made.info == 0x40:
            self._pad_segment()
        return Lsn(start)

    def write_torn(self, made: Made, *, pages: int = 0) -> Lsn:
        """Begin a record, and give it up, as in a crash, at the end of its page or *pages* later."""
        start = self._begin()
        record = self.render(made)
        left = self.page_bytes - self.position % self.page_bytes + pages * (self.page_bytes - 24)
        assert len(record) > left
        self._put(record[:left], whole=len(record))
        self._page(_OVERWRITE, 0)
        return Lsn(start)

    def render(self, made: Made) -> bytes:
        """Return the record as it would be written next."""
        parts = made.parts()
        head = struct.pack("<IIQBB2xI", 24 + len(parts), made.xid, self.previous, made.info, made.rmgr, 0)
        crc = record_crc(head + parts)
        return head[:20] + crc.to_bytes(4, "little") + parts

    def segments(self) -> list[tuple[WalSegment, bytes]]:
        """Return all segments written, the last one filled with zeros."""
        whole = -len(self._bytes) % self.segment_size
        content = bytes(self._bytes) + bytes(whole)
        return [
            (
                WalSegment(Timeline(self.timeline), self.number + index, self.segment_size),
                content[at : at + self.segment_size],
            )
            for index, at in enumerate(range(0, len(content), self.segment_size))
        ]

    def _begin(self) -> int:
        if self.position % self.page_bytes == 0:
            self._page(0, 0)
        return self.position

    def _put(self, record: bytes, *, whole: int | None = None) -> None:
        left = len(record) if whole is None else whole
        at = 0
        while at < len(record):
            if self.position % self.page_bytes == 0:
                self._page(_CONTRECORD, left)
            span = min(self.page_bytes - self.position % self.page_bytes, len(record) - at)
            self._append(record[at : at + span])
            at += span
            left -= span
        self._append(bytes(-self.position % 8))

    def _page(self, flags: int, left: int) -> None:
        is_first = self.position % self.segment_size == 0
        magic = PAGE_MAGIC_BY_MAJOR[self.major]
        flags |= _LONG if is_first else 0
        header = struct.pack("<HHIQI4x", magic, flags, self.timeline, self.position, left)
        if is_first:
            header += struct.pack("<QII", SYSTEM, self.segment_size, self.page_bytes)
        self._append(header)

    def _pad_segment(self) -> None:
        self._append(bytes(-self.position % self.segment_size))

    def _append(self, content: bytes) -> None:
        self._bytes += content
        self.position += len(content)


def pieces_of(content: bytes, size: int = MIB) -> Iterator[bytes]:
    """Yield *content* in pieces of *size* bytes."""
    for at in range(0, len(content), size):
        yield content[at : at + size]
