"""
Whether the server's WAL goes on from the WAL that is held.

A server whose files were put back to an earlier state, and which went on writing, has other WAL under the same names
and on the same timeline. A backup that continued the held WAL with it could not be restored, or only to the past that
was given up. What joins two pieces of WAL is the link of each record to the one before it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from pgkeep.errors import ArchiveError, FormatError, ServerError
from pgkeep.modes.contract import History
from pgkeep.modes.physical_base import ServerFacts
from pgkeep.modes.physical_wal import WalOptions, choose_supply
from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_joints import broken_link, may_begin_at
from pgkeep.server.connection import Server


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
    # An archive may have the WAL of the past that was given up. What cannot be had now is missed, with the reason, when
    # it is to be carried.
    own = replace(options, slot_name="", archive_dir="")
    with (
        contextlib.suppress(ArchiveError, FormatError, ServerError),
        contextlib.closing(choose_supply(server, facts, own, is_local=is_local)) as supply,
    ):
        content = supply.fetch(segment, through=flushed, deadline=0.0)
        if held.lsn > segment.start_lsn:
            if not may_begin_at(held.lsn, segment, content.chunks(), held_until=content.held_until):
                trouble = f"WAL is held up to {held.lsn}, but no record of the server's WAL begins there"
        elif (last := history.last_record(held)) is not None:
            trouble = broken_link(segment, content.chunks(), last)
    return _put_back(trouble) if trouble else ""


def _put_back(trouble: str) -> str:
    return f"{trouble}: its files were put back to an earlier state"
