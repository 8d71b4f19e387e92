"""
Pages that a base backup holds without their head: damaged on the server, or read half-way through their first write.

The server does not look at a page that has no ``pd_upper`` when it sends a base backup, so such pages arrive. Whether
one matters the WAL of the backup tells: a page that was first written while the backup ran has a record there that
writes it anew, and replay does so before anybody reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from pgkeep.errors import ArchiveError, FormatError, VaultError
from pgkeep.pg.data_directory import Fork
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment, segments_between
from pgkeep.pg.wal_blocks import BlockReference, BlockSearch
from pgkeep.streams.record import RecordHead
from pgkeep.vault.wal_archive import WalArchive

MAX_HEADLESS = 10_000
"""Pages without a head that are judged by WAL; in a sound backup there are a few, and more of them are damage."""


def not_written_anew(
    archive: WalArchive, head: RecordHead, pages: Iterable[BlockReference]
) -> frozenset[BlockReference]:
    """
    Return those of *pages* that replay does not write anew, or of which that cannot be told.

    Args:
        archive: Of the cluster.
        head: Of the base backup that holds the pages.
        pages: Without a head.
    """
    # A standby writes no WAL of its free space maps, and the server takes a damaged page of one for an empty one
    # (fsm_readbuf in src/backend/storage/freespace/freespace.c).
    left = frozenset(page for page in pages if page.fork is not Fork.FREE_SPACE_MAP)
    if not left:
        return left
    start, stop = Lsn.parse(head.start_lsn), Lsn.parse(head.stop_lsn)
    search = BlockSearch(left, start=start, stop=stop)
    # WAL that is damaged or missing proves nothing; it has findings of its own.
    with contextlib.suppress(ArchiveError, FormatError, VaultError):
        for segment, name in _wal_files(archive, start, stop, Timeline(head.timeline)):
            search.enter(segment.start_lsn)
            for piece in archive.read(name):
                search.feed(piece)
            # Only now its digest is known to be right.
            left = frozenset(search.left)
            if not left:
                break
    return left


def _wal_files(archive: WalArchive, start: Lsn, stop: Lsn, timeline: Timeline) -> Iterator[tuple[WalSegment, str]]:
    """Yield the segments from *start* to *stop* with what the archive calls their files, up to the first gap."""
    text = archive.history(timeline)
    history = TimelineHistory.single(timeline) if text is None else TimelineHistory.parse(text, timeline=timeline)
    for segment in segments_between(start, stop, timeline=timeline, size=archive.segment_size):
        names = [segment.on(one).name for one in history.segment_timelines(segment.number, size=segment.size)]
        # The last one of a standby's backup is not complete.
        found = next((name for name in (*names, names[0] + PARTIAL_SUFFIX) if archive.has(name)), "")
        if not found:
            return
        yield segment, found
