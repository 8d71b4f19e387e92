"""WAL segments: names, arithmetic for every legal segment size, and the header of the first page."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline

MIN_SEGMENT_SIZE = 1 << 20
MAX_SEGMENT_SIZE = 1 << 30
DEFAULT_SEGMENT_SIZE = 16 << 20
PARTIAL_SUFFIX = ".partial"
"""Behind a segment's name, where not all of it is there."""

_SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
_PARTIAL_NAME = re.compile(r"([0-9A-F]{24})\.partial")
_HISTORY_NAME = re.compile(r"([0-9A-F]{8})\.history")
_LABEL_NAME = re.compile(r"([0-9A-F]{24})\.([0-9A-F]{8})\.backup")

# XLogPageHeaderData: magic, info, timeline, page address, rest of record; then, in a long header, system
# identifier, segment size, WAL block size (src/include/access/xlog_internal.h). Little-endian hosts only write so.
_LONG_HEADER = struct.Struct("<HHIQI4xQII")
_XLP_LONG_HEADER = 0x0002
LONG_HEADER_BYTES = _LONG_HEADER.size

# XLOG_PAGE_MAGIC per major, src/include/access/xlog_internal.h of each branch.
PAGE_MAGIC_BY_MAJOR = {12: 0xD101, 13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}
MAJOR_BY_PAGE_MAGIC = {magic: major for major, magic in PAGE_MAGIC_BY_MAJOR.items()}


def check_segment_size(size: int) -> int:
    """Return *size*, in bytes, when it is a legal WAL segment size: a power of two, 1 MiB to 1 GiB."""
    if not MIN_SEGMENT_SIZE <= size <= MAX_SEGMENT_SIZE or size & (size - 1):
        raise FormatError(f"WAL segment size must be a power of two from 1 MiB to 1 GiB, found {size} bytes")
    return size


@dataclass(frozen=True, slots=True, order=True)
class WalSegment:
    """
    One WAL file.

    Attributes:
        timeline: The timeline that its name carries.
        number: Counted from LSN 0; ``start_lsn`` is ``number * size``.
        size: Bytes; the server's ``wal_segment_size``.
    """

    timeline: Timeline
    number: int
    size: int = DEFAULT_SEGMENT_SIZE

    @classmethod
    def parse(cls, name: str, *, size: int) -> WalSegment:
        """Return the segment called *name*, 24 upper-case hexadecimal digits; raise FormatError for another name."""
        if _SEGMENT_NAME.fullmatch(name) is None:
            raise FormatError(f'not the name of a WAL segment: expected 24 hexadecimal digits, found "{name}"')
        per_id = 0x1_0000_0000 // check_segment_size(size)
        low = int(name[16:], 16)
        if low >= per_id:
            raise FormatError(f"WAL segment {name} cannot exist with segments of {size} bytes")
        return cls(Timeline(int(name[:8], 16)), int(name[8:16], 16) * per_id + low, size)

    @classmethod
    def containing(cls, lsn: Lsn, *, timeline: Timeline, size: int) -> WalSegment:
        """Return the segment that holds the byte at *lsn* (``XLByteToSeg``)."""
        return cls(timeline, lsn // check_segment_size(size), size)

    @classmethod
    def ending_at(cls, lsn: Lsn, *, timeline: Timeline, size: int) -> WalSegment:
        """
        Return the segment that holds the byte before *lsn* (``XLByteToPrevSeg``).

        An LSN on a segment boundary belongs to the segment before it: a backup that stops there needs no byte after it.
        """
        if lsn == 0:
            raise FormatError("no WAL segment ends at LSN 0/00000000")
        return cls(timeline, (lsn - 1) // check_segment_size(size), size)

    @property
    def name(self) -> str:
        """24 upper-case hexadecimal digits: timeline, high part, low part."""
        per_id = 0x1_0000_0000 // self.size
        return f"{int(self.timeline):08X}{self.number // per_id:08X}{self.number % per_id:08X}"

    @property
    def start_lsn(self) -> Lsn:
        """The first byte of the segment."""
        return Lsn(self.number * self.size)

    @property
    def end_lsn(self) -> Lsn:
        """The first byte after the segment."""
        return Lsn((self.number + 1) * self.size)

    def next(self) -> WalSegment:
        """Return the following segment of the same timeline."""
        return WalSegment(self.timeline, self.number + 1, self.size)

    def on(self, timeline: Timeline) -> WalSegment:
        """Return the segment of the same position on another timeline."""
        return WalSegment(timeline, self.number, self.size)


def segments_between(start: Lsn, end: Lsn, *, timeline: Timeline, size: int) -> Iterator[WalSegment]:
    """Yield, oldest first, the segments that hold the bytes from *start* up to but not including *end*."""
    if end <= start:
        return
    last = WalSegment.ending_at(end, timeline=timeline, size=size)
    segment = WalSegment.containing(start, timeline=timeline, size=size)
    while segment.number <= last.number:
        yield segment
        segment = segment.next()


def is_segment_name(name: str) -> bool:
    """Tell whether *name* is that of a complete WAL segment."""
    return _SEGMENT_NAME.fullmatch(name) is not None


def is_partial_name(name: str) -> bool:
    """Tell whether *name* is that of a partial WAL segment."""
    return _PARTIAL_NAME.fullmatch(name) is not None


def is_history_name(name: str) -> bool:
    """Tell whether *name* is that of a timeline history file."""
    return _HISTORY_NAME.fullmatch(name) is not None


def is_backup_label_name(name: str) -> bool:
    """Tell whether *name* is that of a backup history file, ``SEGMENT.OFFSET.backup``."""
    return _LABEL_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class WalHeader:
    """The long header of a segment's first page."""

    magic: int
    timeline: Timeline
    page_address: Lsn
    system_identifier: SystemIdentifier
    segment_size: int
    block_size: int


def parse_wal_header(first_bytes: bytes | memoryview) -> WalHeader:
    """Return the header found in the first 40 bytes of a segment; raise FormatError when they are not one."""
    if len(first_bytes) < LONG_HEADER_BYTES:
        raise FormatError(f"WAL header needs {LONG_HEADER_BYTES} bytes, found {len(first_bytes)}")
    magic, info, timeline, address, _rest, system, segment_size, block_size = _LONG_HEADER.unpack_from(first_bytes)
    if magic not in PAGE_MAGIC_BY_MAJOR.values():
        raise FormatError(f"not a WAL segment of PostgreSQL 12 to 18: page magic is {magic:04X}")
    if not info & _XLP_LONG_HEADER:
        raise FormatError("not the first page of a WAL segment: its header is a short one")
    return WalHeader(
        magic, Timeline(timeline), Lsn(address), SystemIdentifier(system), check_segment_size(segment_size), block_size
    )


def check_wal_header(
    first_bytes: bytes | memoryview, segment: WalSegment, *, system_identifier: SystemIdentifier
) -> WalHeader:
    """
    Return the header of *segment*, or raise FormatError when the bytes are those of another one.

    A segment after a timeline switch may carry the name of the new timeline and pages of the old one, so an older
    timeline in the header is legal; a newer one is not (``XLogReaderValidatePageHeader``).
    """
    header = parse_wal_header(first_bytes)
    if header.system_identifier != system_identifier:
        raise FormatError(
            f"WAL segment {segment.name} belongs to system identifier {header.system_identifier}, "
            f"not to {system_identifier}"
        )
    if header.segment_size != segment.size:
        raise FormatError(f"WAL segment {segment.name} has segments of {header.segment_size} bytes, not {segment.size}")
    if header.page_address != segment.start_lsn:
        raise FormatError(f"WAL segment {segment.name} starts at {header.page_address}, not at {segment.start_lsn}")
    if header.timeline > segment.timeline:
        raise FormatError(f"WAL segment {segment.name} carries pages of the later timeline {header.timeline}")
    return header
