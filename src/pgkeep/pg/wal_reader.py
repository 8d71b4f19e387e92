"""Reading WAL piece by piece: the records of interest, joined across pages, pieces and segments."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import LONG_HEADER_BYTES, MAJOR_BY_PAGE_MAGIC, WalSegment, parse_wal_header
from pgkeep.pg.wal_record import XACT_ABORT, XACT_COMMIT, Event, TransactionEnd, read_record
from pgkeep.pg.wal_walk import (
    FIRST_IS_CONTRECORD,
    INTEREST,
    PAGE_HEADER,
    RECORD_HEADER,
    XACT_RMGR,
    Walk,
    WalkEnd,
    carry,
    gather,
    has_right_crc,
    record_crc,
    walk_wal,
)

# The header of a record, the header of short main data, and the time that a commit or abort begins with.
_TRANSACTION = struct.Struct("<IIQBB2xIBBq")
_SHORT_MAIN_DATA = 255

LARGEST_PAGE_BYTES = 64 << 10
"""Of WAL, in any build; a segment is a multiple of it."""


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """
    A record of which the end has not been seen.

    Attributes:
        lsn: Where it begins.
        size_bytes: All of it.
        held_bytes: What has been seen of it.
        content: What has been seen, when the record is of interest or may be; empty when it certainly is not.
    """

    lsn: Lsn
    size_bytes: int
    held_bytes: int
    content: bytes = b""


class WalReader:
    """
    Reads WAL in order, and says where it ends and why.

    ``enter`` a segment, ``feed`` its bytes, ``enter`` the next one and so on. A record belongs to where it begins; the
    rest of one that began before the first segment is passed over.

    Args:
        checks_all: Compute the CRC of every record, not only of those that are looked into: for WAL that may end
            anywhere, as in a server's ``pg_wal``.

    Attributes:
        position: LSN of the next byte that is expected.
        first: LSN of the first record seen to begin; None before that.
        last: LSN of the last whole record; None before that.
        end: LSN of the first byte after it.
        open: The record that the last piece left open.
        joined_end: LSN after the last record that more than one piece holds; None before that.
        ended: Why the WAL ends here; None while it goes on. After a switch the rest of the segment is passed over, and
            reading goes on in the next.
        trouble: Where and why it ended, as one line; empty while it goes on, and after a switch.
    """

    def __init__(self, *, checks_all: bool = False) -> None:
        self.position = Lsn(0)
        self.first: Lsn | None = None
        self.last: Lsn | None = None
        self.end = Lsn(0)
        self.open: OpenRecord | None = None
        self.joined_end: Lsn | None = None
        self.ended: WalkEnd | None = None
        self.trouble = ""
        self._checks_all = checks_all
        self._is_new_segment = False
        self._segment: WalSegment | None = None
        self._magic = self._page_bytes = 0
        self._page_timeline = 1
        # Whether the last piece ended where a record ended.
        self._ended_cleanly = False

    @classmethod
    def resumed(cls, record: OpenRecord, *, last: Lsn | None, at: WalSegment) -> WalReader:
        """Return a reader that another one left at the beginning of segment *at* with *record* open."""
        reader = cls()
        reader.open, reader.last, reader.end = record, last, record.lsn
        reader.position = at.start_lsn
        reader.enter(at)
        return reader

    def enter(self, segment: WalSegment) -> None:
        """Say whose bytes come next; raise FormatError when they do not follow what came before."""
        if self._segment is None and self.open is None:
            self.position = self.end = segment.start_lsn
        if segment.start_lsn != self.position and self.ended is not WalkEnd.SWITCHED:
            raise FormatError(f"WAL segment {segment.name} begins at {segment.start_lsn}, expected {self.position}")
        if self.ended is WalkEnd.SWITCHED:
            self.ended = None
            self.end = segment.start_lsn
        self.position = segment.start_lsn
        self._segment = segment
        self._is_new_segment = True

    def feed(self, piece: bytes) -> list[Event]:
        """
        Take the next bytes of the segment, whole pages, and return what the records that end in them say, in order.

        Raises:
            FormatError: The segment's header is not one, or a record is not what its kind promises.
        """
        assert self._segment is not None
        if self._is_new_segment:
            header = parse_wal_header(piece[:LONG_HEADER_BYTES])
            self._magic, self._page_bytes = header.magic, header.block_size
            if header.block_size < 1024 or header.block_size & (header.block_size - 1):
                raise FormatError(f"WAL pages must be a power of two from 1 KiB on, found {header.block_size} bytes")
            self._is_new_segment = False
        if len(piece) % self._page_bytes:
            raise FormatError(f"WAL comes in pages of {self._page_bytes} bytes, found {len(piece)} bytes")
        walk = self._new_walk()
        self.position = Lsn(self.position + len(piece))
        if self.ended is not None or not piece:
            return []
        events: list[Event] = []
        if self.open is not None and not self._close(piece, walk, events):
            return events
        if walk.skipped_to < len(piece):
            self._walk(piece, walk, events)
        return events

    def _new_walk(self) -> Walk:
        assert self._segment is not None
        return Walk(
            self.position,
            self._segment.size,
            self._page_bytes,
            self._magic,
            self._segment.timeline,
            self._checks_all,
            page_timeline=self._page_timeline,
            previous=self.last or 0,
        )

    def _close(self, piece: bytes, walk: Walk, events: list[Event]) -> bool:
        """Go on with the open record; tell whether it no longer is."""
        record = self.open
        assert record is not None
        left = record.size_bytes - record.held_bytes
        reason, result = carry(piece, 0, left, walk)
        if reason is WalkEnd.ABANDONED:
            self.open = None
            walk.skipped_to = result
            return True
        if reason not in (WalkEnd.PIECE_END, WalkEnd.OPEN):
            held = len(gather(piece[: walk.page], walk.header_bytes(0), left, walk)) if walk.page else 0
            self._stop(piece, walk, reason, at=record.lsn, left=left - held)
            return False
        content = record.content
        if content:
            content += gather(piece, walk.header_bytes(0), left, walk)
        if reason is WalkEnd.OPEN:
            if not _may_be_of_interest(content, checks_all=self._checks_all):
                content = b""
            self.open = OpenRecord(record.lsn, record.size_bytes, record.size_bytes - result, content)
            return False
        return self._take(record, content, walk, result, events)

    def _take(self, record: OpenRecord, content: bytes, walk: Walk, end: int, events: list[Event]) -> bool:
        """Check and read a record that was open; tell whether it is right."""
        if content:
            link = RECORD_HEADER.unpack_from(content)[2]
            if self.last is not None and link != self.last:
                self._fail(WalkEnd.LINK, _link_trouble(record.lsn, link, self.last))
                return False
            is_of_interest = _may_be_of_interest(content, checks_all=False)
            if (is_of_interest or self._checks_all) and not has_right_crc(content):
                self._fail(WalkEnd.CRC, _crc_trouble(record.lsn, content))
                return False
            event = read_record(content, record.lsn, major=MAJOR_BY_PAGE_MAGIC[self._magic]) if is_of_interest else None
            if event is not None:
                events.append(event)
        self.open = None
        self.last = record.lsn
        self.end = self.joined_end = Lsn(walk.lsn + end)
        walk.skipped_to, walk.previous = end, record.lsn
        self._ended_cleanly = True
        return True

    def _walk(self, piece: bytes, walk: Walk, events: list[Event]) -> None:
        if walk.skipped_to == 0 and self._ended_cleanly and PAGE_HEADER.unpack_from(piece)[1] & FIRST_IS_CONTRECORD:
            walk.end = 0
            self._stop(piece, walk, WalkEnd.CONTINUATION, at=Lsn(walk.lsn), left=0)
            return
        found = walk_wal(piece, walk)
        self._page_timeline = walk.page_timeline
        self._read(piece, walk, found, events)
        if self.first is None and walk.first < len(piece):
            self.first = Lsn(walk.lsn + walk.first)
        if walk.last < len(piece):
            self.last = Lsn(walk.lsn + walk.last)
        self.end = Lsn(walk.lsn + walk.end)
        self._ended_cleanly = walk.reason is WalkEnd.PIECE_END and walk.first < len(piece)
        if walk.reason is WalkEnd.OPEN:
            self._leave_open(piece, walk)
        elif walk.reason is WalkEnd.SWITCHED:
            self.ended = WalkEnd.SWITCHED
            self._ended_cleanly = True
        elif walk.reason is not WalkEnd.PIECE_END:
            self._stop(piece, walk, walk.reason, at=self.end)

    def _leave_open(self, piece: bytes, walk: Walk) -> None:
        start = walk.end
        size = int.from_bytes(piece[start : start + 4], "little")
        page_end = start - start % walk.page_bytes + walk.page_bytes
        _, left = carry(piece, page_end, size - (page_end - start), walk)
        head = gather(piece, start, RECORD_HEADER.size, walk)
        # The walk reads a header that two pages share only at the record's end.
        if len(head) == RECORD_HEADER.size and self.last not in (None, RECORD_HEADER.unpack(head)[2]):
            self._stop(piece, walk, WalkEnd.LINK, at=self.end)
            return
        is_wanted = _may_be_of_interest(head, checks_all=self._checks_all)
        content = gather(piece, start, size, walk) if is_wanted else b""
        self.open = OpenRecord(Lsn(walk.lsn + start), size, size - left, content)

    def _read(self, piece: bytes, walk: Walk, found: list[int], events: list[Event]) -> None:
        """Append what the records at the offsets *found* say."""
        major, lsn, page_bytes = MAJOR_BY_PAGE_MAGIC[self._magic], walk.lsn, walk.page_bytes
        unpack, needed = _TRANSACTION.unpack_from, page_bytes - _TRANSACTION.size
        append = events.append
        for offset in found:
            if offset % page_bytes <= needed:
                total, xid, _, info, rmgr, _, part, _, microseconds = unpack(piece, offset)
                kind = info & 0x70
                # Nearly all of them are plain commits: nothing more of those is read.
                if rmgr == XACT_RMGR and part == _SHORT_MAIN_DATA and kind in (XACT_COMMIT, XACT_ABORT):
                    append(TransactionEnd(lsn + offset, xid, microseconds, kind == XACT_COMMIT))
                    continue
            total = int.from_bytes(piece[offset : offset + 4], "little")
            event = read_record(gather(piece, offset, total, walk), lsn + offset, major=major)
            if event is not None:
                append(event)

    def _stop(self, piece: bytes, walk: Walk, reason: WalkEnd, *, at: Lsn, left: int | None = None) -> None:
        """End here: what is at *at* is no whole record."""
        self.end = at
        page = Lsn(walk.lsn + walk.page)
        if reason is WalkEnd.ZEROS:
            trouble = f"WAL ends at {at}: zeros follow from {max(at, page)} on"
        elif reason is WalkEnd.LENGTH:
            length = int.from_bytes(piece[walk.end : walk.end + 4], "little")
            trouble = f"WAL record at {at} has {length} bytes, expected at least {RECORD_HEADER.size}"
        elif reason is WalkEnd.LINK:
            link = RECORD_HEADER.unpack(gather(piece, walk.end, RECORD_HEADER.size, walk))[2]
            trouble = _link_trouble(at, link, walk.previous)
        elif reason is WalkEnd.CRC:
            length = int.from_bytes(piece[walk.end : walk.end + 4], "little")
            trouble = _crc_trouble(at, gather(piece, walk.end, length, walk))
        else:
            trouble = _page_trouble(piece, walk, reason, left=_left_at(piece, walk) if left is None else left)
        self._fail(reason, trouble)

    def _fail(self, reason: WalkEnd, trouble: str) -> None:
        self.ended, self.trouble = reason, trouble


def take_pages(arrived: bytearray) -> bytes:
    """Take out of *arrived*, the next bytes of a segment however divided, what ``WalReader.feed`` takes."""
    whole = len(arrived) - len(arrived) % LARGEST_PAGE_BYTES
    pages = bytes(arrived[:whole])
    del arrived[:whole]
    return pages


def _may_be_of_interest(content: bytes, *, checks_all: bool) -> bool:
    if len(content) < RECORD_HEADER.size:
        return bool(content)
    _, _, _, info, rmgr, _ = RECORD_HEADER.unpack_from(content)
    return checks_all or (rmgr < len(INTEREST) and bool(INTEREST[rmgr] >> (info >> 4) & 1))


def _link_trouble(lsn: Lsn, link: int, expected: int) -> str:
    return f"WAL record at {lsn} links back to {Lsn(link)}, expected {Lsn(expected)}"


def _crc_trouble(lsn: Lsn, record: bytes) -> str:
    stored = RECORD_HEADER.unpack_from(record)[5]
    return f"WAL record at {lsn} has CRC {stored:08X}, its bytes give {record_crc(record):08X}"


def _page_trouble(piece: bytes, walk: Walk, reason: WalkEnd, *, left: int | None) -> str:
    """Return what is wrong with the page at ``walk.page``."""
    magic, flags, timeline, address, remaining = PAGE_HEADER.unpack_from(piece, walk.page)
    page = f"WAL page at {Lsn(walk.lsn + walk.page)}"
    if reason is WalkEnd.CONTINUATION:
        found = f"{page} has {remaining if flags & FIRST_IS_CONTRECORD else 0} bytes of a record left"
        return f"{found}, which does not go with the page before" if left is None else f"{found}, expected {left}"
    if magic != walk.magic:
        return f"{page} has magic {magic:04X}, expected {walk.magic:04X}"
    if address != walk.lsn + walk.page:
        return f"{page} has the address {Lsn(address)}"
    if not walk.page_timeline <= timeline <= walk.timeline:
        return f"{page} is of timeline {timeline}, expected {_between(walk.page_timeline, walk.timeline)}"
    return f"{page} has flags {flags:04X}, which do not belong there"


def _left_at(piece: bytes, walk: Walk) -> int | None:
    """Return how many bytes of the record at ``walk.end`` belong on ``walk.page``; None when that is not known."""
    if walk.page < walk.end or (walk.page == walk.end and walk.first < walk.end):
        return 0
    if walk.end % walk.page_bytes == 0:
        return None
    size = int.from_bytes(piece[walk.end : walk.end + 4], "little")
    return size - len(gather(piece[: walk.page], walk.end, size, walk))


def _between(low: int, high: int) -> str:
    return str(high) if low >= high else f"{low} to {high}"
