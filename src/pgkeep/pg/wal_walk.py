"""
The walk over WAL from record to record: which records there are, and where they end.

WAL is walked in pieces of whole pages. Of most records only the header is read; those of interest have their CRC
checked and their offset reported. What ends a walk early ends PostgreSQL's replay too: the checks are those of
``src/backend/access/transam/xlogreader.c``, but for the CRC of records that nobody looks into, which is computed only
when asked for. That each record links to the one before is always checked.

Where ``native/wal_walk.c`` was built, it does the same many times as fast and leaves the other threads alone.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pgkeep.pg.crc32c import crc32c

RECORD_HEADER = struct.Struct("<IIQBB2xI")
"""XLogRecord: total length, xid, link to the record before, info, resource manager, CRC."""

PAGE_HEADER = struct.Struct("<HHIQI")
"""XLogPageHeaderData: magic, flags, timeline, address, bytes left of the record that continues on the page."""

SHORT_HEADER_BYTES = 24
LONG_HEADER_BYTES = 40

FIRST_IS_CONTRECORD = 0x0001
IS_LONG_HEADER = 0x0002
FIRST_IS_OVERWRITE_CONTRECORD = 0x0008
_ALL_FLAGS = 0x000F

XLOG_RMGR, XACT_RMGR, DBASE_RMGR, TBLSPC_RMGR = 0, 1, 4, 5
XLOG_SWITCH = 0x40

_INFO_OFFSET = 16
_CRC_OFFSET = 20
_LENGTH_AND_KIND = struct.Struct("<I4xQBB")
_NO_RECORD = -1


def _kinds(*infos: int) -> int:
    return functools.reduce(lambda bits, info: bits | 1 << (info >> 4), infos, 0)


# By resource manager, one bit for each value of the upper half of the info byte (src/include/access/rmgrlist.h).
INTEREST = (
    # Checkpoints, switch, end of backup, parameter change, restore point, end of recovery.
    _kinds(0x00, 0x10, XLOG_SWITCH, 0x50, 0x60, 0x70, 0x90),
    # Commit and abort, each also of a prepared transaction, with and without more information.
    _kinds(0x00, 0x80, 0x20, 0xA0, 0x30, 0xB0, 0x40, 0xC0),
    0,
    0,
    _kinds(0x00, 0x10, 0x20),
    _kinds(0x00, 0x10),
)


class WalkEnd(enum.IntEnum):
    """Why a walk ended; from ``ZEROS`` on, the WAL itself ends there."""

    PIECE_END = 0
    OPEN = 1
    SWITCHED = 2
    ZEROS = 3
    LENGTH = 4
    LINK = 5
    CRC = 6
    PAGE = 7
    CONTINUATION = 8
    # Inside a walk only: the server gave a record up that it had begun before it crashed.
    ABANDONED = 9


@dataclass(slots=True)
class Walk:
    """
    What a walk is told, and what it found.

    Attributes:
        lsn: Of the piece's first byte.
        segment_bytes: Size of a segment: its first page has a long header.
        page_bytes: Size of a page, a power of two.
        magic: Of the pages.
        timeline: The last one that pages may carry.
        checks_all: Whether to compute the CRC of every record.
        skipped_to: Offset of the first record, when the caller knows; 0 to take the first page's word.
        page_timeline: Of the last page seen: it never goes back.
        previous: LSN of the last whole record, to which the next must link; 0 when that is not known.
        first: Offset where the first record begins, which may be the end.
        last: Offset of the last whole record; the piece's size when there is none.
        end: Offset of the first byte that does not belong to a whole record.
        reason: Why it ended.
        page: Offset of the page that was looked at last; with ``PAGE`` and its like, the wrong one.
    """

    lsn: int
    segment_bytes: int
    page_bytes: int
    magic: int
    timeline: int
    checks_all: bool = False
    skipped_to: int = 0
    page_timeline: int = 1
    previous: int = 0
    first: int = 0
    last: int = 0
    end: int = 0
    reason: WalkEnd = WalkEnd.PIECE_END
    page: int = 0

    def header_bytes(self, page: int) -> int:
        """Return the length of the header of the page at offset *page*."""
        return SHORT_HEADER_BYTES if (self.lsn + page) % self.segment_bytes else LONG_HEADER_BYTES


def walk_wal(piece: bytes, walk: Walk) -> list[int]:
    """Go through *piece*, whole pages, and return the offsets of the whole records of interest, in order."""
    return (native_walk() or walk_in_python)(piece, walk)


def walk_in_python(piece: bytes, walk: Walk) -> list[int]:  # noqa: C901, PLR0912, PLR0915 - a call costs a record
    """Do what ``walk_wal`` does, where there is no compiler."""
    found: list[int] = []
    size = len(piece)
    walk.first = walk.last = size
    reason, position = _begin(piece, walk)
    if reason is WalkEnd.OPEN:
        walk.end, walk.reason = size, WalkEnd.PIECE_END
        return found
    walk.first = walk.end = position
    last, page_end = _NO_RECORD, 0
    lsn, previous, page_bytes, checks_all = walk.lsn, walk.previous, walk.page_bytes, walk.checks_all
    unpack = _LENGTH_AND_KIND.unpack_from
    while reason is WalkEnd.PIECE_END and position < size:
        if position >= page_end:
            page_end = position - position % page_bytes + page_bytes
            if position == page_end - page_bytes:
                reason = _check_first(piece, position, walk)
                if reason is not WalkEnd.PIECE_END:
                    break
                position += walk.header_bytes(position)
        whole_header = position + RECORD_HEADER.size <= page_end
        total, link, info, rmgr = unpack(piece, position) if whole_header else (*_length(piece, position), 0, 0, 0)
        if total < RECORD_HEADER.size:
            reason = WalkEnd.LENGTH if total else WalkEnd.ZEROS
            walk.page = page_end - page_bytes
            break
        if whole_header and link != previous and previous:
            reason = WalkEnd.LINK
            break
        following = position + total
        if following <= page_end:
            following = (following + 7) & ~7
        else:
            reason, following = carry(piece, page_end, following - page_end, walk)
            if reason is WalkEnd.ABANDONED:
                reason, position = WalkEnd.PIECE_END, following
                continue
            if reason is not WalkEnd.PIECE_END:
                break
            if not whole_header:
                _, link, info, rmgr = _LENGTH_AND_KIND.unpack(
                    gather(piece, position, RECORD_HEADER.size, walk)[: _LENGTH_AND_KIND.size]
                )
                if link != previous and previous:
                    reason = WalkEnd.LINK
                    break
        is_of_interest = rmgr < len(INTEREST) and INTEREST[rmgr] >> (info >> 4) & 1
        if (is_of_interest or checks_all) and not has_right_crc(gather(piece, position, total, walk)):
            reason = WalkEnd.CRC
            break
        if is_of_interest:
            found.append(position)
            if rmgr == XLOG_RMGR and info & 0xF0 == XLOG_SWITCH:
                reason = WalkEnd.SWITCHED
        last, previous, position = position, lsn + position, following
    walk.end, walk.reason = position, reason
    if last != _NO_RECORD:
        walk.last, walk.previous = last, previous
    return found


def carry(piece: bytes, page: int, left: int, walk: Walk) -> tuple[WalkEnd, int]:
    """
    Go over the *left* bytes of a record that continues on the page at offset *page*.

    Returns:
        ``PIECE_END`` and the offset of what follows the record; ``ABANDONED`` and the offset of the page on which the
        server gave it up; ``OPEN`` and the number of bytes still left, when it does not end in this piece; or what is
        wrong, and 0.
    """
    while page < len(piece):
        reason, flags, remaining = _check_page(piece, page, walk)
        if reason is not WalkEnd.PIECE_END:
            return reason, 0
        if flags & FIRST_IS_OVERWRITE_CONTRECORD:
            return WalkEnd.ABANDONED, page
        if not flags & FIRST_IS_CONTRECORD or remaining != left:
            return WalkEnd.CONTINUATION, 0
        header = walk.header_bytes(page)
        if left <= walk.page_bytes - header:
            return WalkEnd.PIECE_END, (page + header + left + 7) & ~7
        left -= walk.page_bytes - header
        page += walk.page_bytes
    return WalkEnd.OPEN, left


def gather(piece: bytes, start: int, count: int, walk: Walk) -> bytes:
    """Return *count* bytes of a record from offset *start* on, or what the piece has of them, without page headers."""
    page_end = start - start % walk.page_bytes + walk.page_bytes
    if start + count <= page_end:
        return piece[start : start + count]
    spans = [piece[start:page_end]]
    count -= page_end - start
    while count > 0 and page_end < len(piece):
        begin = page_end + walk.header_bytes(page_end)
        page_end += walk.page_bytes
        spans.append(piece[begin : min(begin + count, page_end)])
        count -= page_end - begin
    return b"".join(spans)


def has_right_crc(record: bytes) -> bool:
    """Tell whether a whole record has the CRC that its header says: of its data, then of its header up to the CRC."""
    return record_crc(record) == int.from_bytes(record[_CRC_OFFSET : RECORD_HEADER.size], "little")


def record_crc(record: bytes) -> int:
    """Return the CRC that a whole record should carry."""
    return crc32c(record[:_CRC_OFFSET], crc32c(record[RECORD_HEADER.size :]))


def _begin(piece: bytes, walk: Walk) -> tuple[WalkEnd, int]:
    """Return where the first record begins."""
    if walk.skipped_to or not piece:
        return WalkEnd.PIECE_END, walk.skipped_to
    reason, flags, remaining = _check_page(piece, 0, walk)
    if reason is WalkEnd.PIECE_END and flags & FIRST_IS_CONTRECORD:
        reason, position = carry(piece, 0, remaining, walk)
        if reason in (WalkEnd.PIECE_END, WalkEnd.ABANDONED):
            return WalkEnd.PIECE_END, position
    return reason, 0


def _check_first(piece: bytes, page: int, walk: Walk) -> WalkEnd:
    """Look at the header of a page on which a record must begin."""
    reason, flags, _ = _check_page(piece, page, walk)
    if reason is WalkEnd.PIECE_END and flags & FIRST_IS_CONTRECORD:
        return WalkEnd.CONTINUATION
    return reason


def _check_page(piece: bytes, page: int, walk: Walk) -> tuple[WalkEnd, int, int]:
    """Return what is wrong with the header of the page at offset *page*, its flags, and what it says is left."""
    magic, flags, timeline, address, remaining = PAGE_HEADER.unpack_from(piece, page)
    walk.page = page
    if magic == 0:
        return WalkEnd.ZEROS, 0, 0
    is_long = walk.header_bytes(page) == LONG_HEADER_BYTES
    if (
        magic != walk.magic
        or flags & ~_ALL_FLAGS
        or bool(flags & IS_LONG_HEADER) != is_long
        or address != walk.lsn + page
        or not walk.page_timeline <= timeline <= walk.timeline
    ):
        return WalkEnd.PAGE, flags, remaining
    walk.page_timeline = timeline
    return WalkEnd.PIECE_END, flags, remaining


def _length(piece: bytes, position: int) -> tuple[int]:
    return (int.from_bytes(piece[position : position + 4], "little"),)


class _NativeWalk(ctypes.Structure):
    """``struct walk`` of the twin."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("lsn", "segment_bytes", "page_bytes", "magic", "timeline", "checks_all", "skipped_to"),
            *("page_timeline", "previous"),
            *("first", "last", "end", "reason", "page", "found"),
        )
    ]


_GIVEN = ("lsn", "segment_bytes", "page_bytes", "magic", "timeline", "checks_all", "skipped_to")
_KEPT = ("page_timeline", "previous")
_FOUND = ("first", "last", "end", "page")


@functools.cache
def native_walk() -> Callable[[bytes, Walk], list[int]] | None:
    """Return the twin of ``walk_in_python`` in C; None where it was not built."""
    try:
        function = ctypes.CDLL(f"{sys.prefix}/lib/pgkeep/wal_walk.so").pgkeep_wal_walk
    except OSError:
        return None
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p]
    interest = (ctypes.c_uint16 * len(INTEREST))(*INTEREST)

    def native(piece: bytes, walk: Walk) -> list[int]:
        state = _NativeWalk(**{name: int(getattr(walk, name)) for name in (*_GIVEN, *_KEPT)})
        offsets = (ctypes.c_uint32 * (len(piece) // RECORD_HEADER.size + 1))()
        function(ctypes.byref(state), piece, len(piece), interest, offsets)
        for name in (*_KEPT, *_FOUND):
            setattr(walk, name, getattr(state, name))
        walk.reason = WalkEnd(state.reason)
        return offsets[: state.found]

    return native
