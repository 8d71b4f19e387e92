"""Where one piece of WAL joins the next: each record links to the one before it, and begins where that one ends."""

from __future__ import annotations

from collections.abc import Iterable

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import LONG_HEADER_BYTES, WalSegment, parse_wal_header
from pgkeep.pg.wal_reader import LARGEST_PAGE_BYTES, WalReader, take_pages
from pgkeep.pg.wal_walk import FIRST_IS_CONTRECORD, PAGE_HEADER, Walk, WalkEnd, walk_wal

Buffer = bytes | bytearray | memoryview

_LOOK_BYTES = 256 << 10
"""So much is looked at behind a place; a longer record there says nothing."""

_SAYS_NOTHING = (WalkEnd.PIECE_END, WalkEnd.OPEN)


class LastRecord:
    """The record with which a segment ends, found while its bytes pass; what is written next links to it."""

    def __init__(self, segment: WalSegment) -> None:
        self._reader = WalReader()
        self._reader.enter(segment)
        self._arrived = bytearray()
        self._is_wal = True

    def feed(self, chunk: Buffer) -> None:
        """Take the next bytes of the segment, however divided."""
        if not self._is_wal:
            return
        self._arrived += chunk
        try:
            if pages := take_pages(self._arrived):
                self._reader.feed(pages)
        except FormatError:
            # Whether it can be replayed is not asked here.
            self._is_wal = False

    @property
    def lsn(self) -> Lsn | None:
        """Where it begins, when all has passed; None when the WAL ends within the segment."""
        if not self._is_wal or self._reader.ended not in (None, WalkEnd.SWITCHED):
            return None
        return self._reader.open.lsn if self._reader.open is not None else self._reader.last


def broken_link(segment: WalSegment, chunks: Iterable[Buffer], last: Lsn) -> str:
    """
    Return why the first record that begins in *segment* does not link to the one at *last*; empty when it does.

    Raises:
        FormatError: The bytes do not begin as a segment does.
    """
    reader, arrived = WalReader(), bytearray()
    reader.enter(segment)
    reader.last = last
    for chunk in chunks:
        arrived += chunk
        if pages := take_pages(arrived):
            reader.feed(pages)
        if reader.ended is WalkEnd.LINK:
            return reader.trouble
        if reader.ended is not None or reader.last != last:
            break
    return ""


def may_begin_at(lsn: Lsn, segment: WalSegment, chunks: Iterable[Buffer], *, held_until: Lsn) -> bool:
    """
    Tell whether a record begins at *lsn*, within *segment*; True when it is too long to be looked at whole.

    Args:
        lsn: The place; something has been written there.
        segment: Which one.
        chunks: Its bytes in order; only as many are taken as are needed.
        held_until: From here on they are zeros that mean nothing.

    Raises:
        FormatError: The bytes do not begin as a segment does.
    """
    skipped = lsn - segment.start_lsn
    first = skipped - skipped % LARGEST_PAGE_BYTES
    head, behind = _head_and_behind(chunks, first)
    header = parse_wal_header(head)
    page = skipped - skipped % header.block_size
    # What is not written yet is no page; but for the rest of the page itself.
    written = held_until - segment.start_lsn - page
    pages = max(header.block_size, written - written % header.block_size)
    piece = behind[page - first : page - first + pages]
    walk = Walk(
        segment.start_lsn + page,
        segment.size,
        header.block_size,
        header.magic,
        segment.timeline,
        checks_all=True,
        skipped_to=skipped - page,
    )
    if not walk.skipped_to:
        if PAGE_HEADER.unpack_from(piece)[1] & FIRST_IS_CONTRECORD:
            return False
        walk.skipped_to = walk.header_bytes(0)
    walk_wal(piece, walk)
    return walk.last < len(piece) or walk.reason in _SAYS_NOTHING


def _head_and_behind(chunks: Iterable[Buffer], first: int) -> tuple[bytes, bytes]:
    """Return a segment's header, and as much as is looked at from offset *first* on."""
    head, behind, offset = bytearray(), bytearray(), 0
    for chunk in chunks:
        head += chunk[: LONG_HEADER_BYTES - len(head)]
        behind += chunk[max(0, first - offset) :]
        offset += len(chunk)
        if len(behind) >= _LOOK_BYTES:
            break
    return bytes(head), bytes(behind)
