"""
Whether the server's WAL goes on from the WAL that is held.

A server whose files were put back to an earlier state, and which went on writing, has other WAL under the same names
and on the same timeline. A backup that continued the held WAL with it could not be restored, or only to the past that
was given up. What joins two pieces of WAL is the link of each record to the one before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from pgkeep.errors import ArchiveError, FormatError, ServerError
from pgkeep.modes.contract import History
from pgkeep.modes.physical_base import ServerFacts
from pgkeep.modes.physical_wal import WalOptions, choose_supply
from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.pg.wal import LONG_HEADER_BYTES, WalSegment, parse_wal_header
from pgkeep.pg.wal_reader import LARGEST_PAGE_BYTES, WalReader, take_pages
from pgkeep.pg.wal_walk import FIRST_IS_CONTRECORD, PAGE_HEADER, Walk, WalkEnd, walk_wal
from pgkeep.server.connection import Server
from pgkeep.server.wal_supply import WalContent
from pgkeep.streams.item import Buffer

_LOOK_BYTES = 256 << 10
"""So much is looked at behind the end of what is held; a longer record there says nothing."""

_SAYS_NOTHING = (WalkEnd.PIECE_END, WalkEnd.OPEN)


def lost_past(
    server: Server,
    facts: ServerFacts,
    options: WalOptions,
    history: History,
    *,
    held: WalPosition | None,
    flushed: Lsn,
    is_local: bool,
) -> str:
    """
    Return why the server's WAL does not go on from what is held; empty when it does, or when nobody can say.

    Args:
        server: The server.
        facts: What it said of itself.
        options: How its WAL is found.
        history: What is held.
        held: Up to where; None when nothing is.
        flushed: Up to where the server has WAL.
        is_local: Whether its pg_wal can be read here.
    """
    # A standby has its primary's WAL. Behind a promotion the names differ, and the history file says where.
    if held is None or held.timeline != facts.identity.timeline or facts.identity.is_in_recovery:
        return ""
    if flushed < held.lsn:
        return _put_back(f"WAL is held up to {held.lsn}, the server's ends at {flushed}")
    if flushed == held.lsn:
        return ""
    segment = WalSegment.containing(held.lsn, timeline=held.timeline, size=facts.segment_size)
    trouble = ""
    # What cannot be had now is missed, with the reason, when it is to be carried.
    with (
        contextlib.suppress(ArchiveError, FormatError, ServerError),
        contextlib.closing(choose_supply(server, facts, replace(options, slot_name=""), is_local=is_local)) as supply,
    ):
        content = supply.fetch(segment, through=flushed, deadline=0.0)
        if held.lsn > segment.start_lsn:
            trouble = _no_record(content, held.lsn)
        elif (last := history.last_record(held)) is not None:
            trouble = _broken_link(content, last)
    return _put_back(trouble) if trouble else ""


def _put_back(trouble: str) -> str:
    return f"{trouble}: its files were put back to an earlier state"


def _broken_link(content: WalContent, last: Lsn) -> str:
    """Return what is wrong with the first record that begins in a segment: it must link to the one at *last*."""
    reader = WalReader()
    reader.enter(content.segment)
    reader.last = last
    arrived = bytearray()
    for chunk in content.chunks():
        arrived += chunk
        if pages := take_pages(arrived):
            reader.feed(pages)
        if reader.ended is WalkEnd.LINK:
            return reader.trouble
        if reader.ended is not None or reader.last != last:
            break
    return ""


def _no_record(content: WalContent, at: Lsn) -> str:
    """Return what is wrong where a record must begin, at *at* within a segment; something has been written there."""
    segment = content.segment
    skipped = at - segment.start_lsn
    first = skipped - skipped % LARGEST_PAGE_BYTES
    head, behind = _head_and_behind(content.chunks(), first)
    header = parse_wal_header(head)
    page = skipped - skipped % header.block_size
    # What is not written yet is zeros, and no page; but for the rest of the page itself.
    written = content.held_until - segment.start_lsn - page
    pages = max(header.block_size, written - written % header.block_size)
    piece = behind[page - first : page - first + pages]
    walk = Walk(segment.start_lsn + page, segment.size, header.block_size, header.magic, segment.timeline, True)
    walk.skipped_to = skipped - page
    is_continued = False
    if not walk.skipped_to:
        walk.skipped_to = walk.header_bytes(0)
        is_continued = bool(PAGE_HEADER.unpack_from(piece)[1] & FIRST_IS_CONTRECORD)
    if not is_continued:
        walk_wal(piece, walk)
        if walk.last < len(piece) or walk.reason in _SAYS_NOTHING:
            return ""
    return f"WAL is held up to {at}, but no record of the server's WAL begins there"


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
