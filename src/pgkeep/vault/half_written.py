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
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import PARTIAL_SUFFIX, segments_between
from pgkeep.pg.wal_blocks import BlockReference, BlockSearch
from pgkeep.streams.record import RecordHead
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import timelines


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
    search = BlockSearch(pages)
    # WAL that is damaged or missing proves nothing; it has findings of its own.
    with contextlib.suppress(ArchiveError, FormatError, VaultError):
        for name in _wal_names(archive, head):
            if not search.left:
                break
            search.enter()
            for piece in archive.read(name):
                search.feed(piece)
    return frozenset(search.left)


def _wal_names(archive: WalArchive, head: RecordHead) -> Iterator[str]:
    """Yield what the archive's files of the WAL from the backup's start to its stop are called, up to the first gap."""
    start, stop, timeline = Lsn.parse(head.start_lsn), Lsn.parse(head.stop_lsn), Timeline(head.timeline)
    held = [one for one in timelines(archive) if one <= timeline]
    for segment in segments_between(start, stop, timeline=timeline, size=archive.segment_size):
        names = [segment.on(one).name for one in sorted(held, reverse=True)]
        # The last one of a standby's backup is not complete.
        found = next((name for name in (*names, names[0] + PARTIAL_SUFFIX) if archive.has(name)), "") if names else ""
        if not found:
            return
        yield found
