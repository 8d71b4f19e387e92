"""Where one record of WAL may end and the next begin, within a segment of which nothing else is known."""

from __future__ import annotations

from collections.abc import Iterator

from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import LONG_HEADER_BYTES, parse_wal_header
from pgkeep.pg.wal_reader import LARGEST_PAGE_BYTES
from pgkeep.pg.wal_walk import FIRST_IS_CONTRECORD, PAGE_HEADER, Walk, WalkEnd, walk_wal
from pgkeep.server.wal_supply import WalContent
from pgkeep.streams.item import Buffer

_LOOK_BYTES = 256 << 10
"""So much is looked at behind the place; a longer record there says nothing."""

_SAYS_NOTHING = (WalkEnd.PIECE_END, WalkEnd.OPEN)


def may_begin_at(lsn: Lsn, content: WalContent) -> bool:
    """
    Tell whether a record of *content* begins at *lsn*, within it; True when it is too long to be looked at whole.

    Something must have been written there.

    Raises:
        FormatError: It does not begin as a segment does.
    """
    segment = content.segment
    skipped = lsn - segment.start_lsn
    first = skipped - skipped % LARGEST_PAGE_BYTES
    head, behind = _head_and_behind(content.chunks(), first)
    header = parse_wal_header(head)
    page = skipped - skipped % header.block_size
    # What is not written yet is zeros, and no page; but for the rest of the page itself.
    written = content.held_until - segment.start_lsn - page
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


def _head_and_behind(chunks: Iterator[Buffer], first: int) -> tuple[bytes, bytes]:
    """Return a segment's header, and as much as is looked at from offset *first* on."""
    head, behind, offset = bytearray(), bytearray(), 0
    for chunk in chunks:
        head += chunk[: LONG_HEADER_BYTES - len(head)]
        behind += chunk[max(0, first - offset) :]
        offset += len(chunk)
        if len(behind) >= _LOOK_BYTES:
            break
    return bytes(head), bytes(behind)
