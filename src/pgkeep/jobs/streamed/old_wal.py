"""
WAL that a restore from a stream has without the stream: in the old ``pg_wal``, or left by an earlier run of it.

Phase 1 knows the WAL that comes by its names alone, so whether the old WAL continues it shows when it comes: the newest
segment that both have is held first, and another one under its name is refused.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from pathlib import Path

from pgkeep.errors import FormatError
from pgkeep.jobs.recovery.promised_wal import PromisedWal
from pgkeep.jobs.restoring.old_wal import OldWal, find_old_wal
from pgkeep.jobs.restoring.private_wal import PrivateWal
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.recovery import RecoveryTarget
from pgkeep.pg.segment_index import index_segment
from pgkeep.pg.wal import WalSegment
from pgkeep.streams.item import Buffer
from pgkeep.streams.record import RecordHead
from pgkeep.vault.wal_holdings import partial_segments, ranges, timelines
from pgkeep.vault.wal_view import WalView


def promise_old_wal(
    wal: PromisedWal, data_directory: Path, heads: Sequence[RecordHead], target: RecoveryTarget, *, segment_size: int
) -> OldWal | None:
    """
    Add to *wal* what the old ``pg_wal`` in *data_directory* has beyond it, and return that.

    Args:
        wal: What will come.
        data_directory: Where the restore goes.
        heads: Physical backups of the cluster, oldest first.
        target: Of the restore.
        segment_size: Bytes.
    """
    if not heads:
        return None
    old = find_old_wal(data_directory, _Promised(wal, heads, segment_size), heads, target, wal)
    for found in old.segments if old is not None else ():
        moment = dt.datetime.fromtimestamp(found.written_ns / 1e9, dt.UTC)
        wal.add(found.segment, found.end, moment)
    return old


def promise_kept_wal(wal: PromisedWal, private: PrivateWal) -> None:
    """Add to *wal* what an earlier run of the restore has in *private*: its old ``pg_wal`` is moved, or gone."""
    archive = private.archive
    if not private.is_begun:
        return
    with WalView(archive) as view:
        for timeline in timelines(archive):
            ends = {
                WalSegment(timeline, number, archive.segment_size): Lsn((number + 1) * archive.segment_size)
                for held in ranges(archive, timeline)
                for number in range(held.first.number, held.last.number + 1)
            }
            for partial in partial_segments(archive, timeline):
                ends.setdefault(partial, view.held_through(timeline, partial.start_lsn))
            for segment, end in ends.items():
                moment = view.archived_at(timeline, end)
                if moment is not None and not wal.has(segment):
                    wal.add(segment, end, moment)


class _Promised:
    """The WAL that will come, as the search for old WAL asks for it."""

    def __init__(self, wal: PromisedWal, heads: Sequence[RecordHead], segment_size: int) -> None:
        self._wal = wal
        self._histories = {Timeline(head.timeline): head.history.encode() for head in heads if head.history}
        self.system_identifier = SystemIdentifier(int(heads[-1].system_identifier))
        self.segment_size = segment_size

    def has(self, name: str) -> bool:
        return self._wal.has(WalSegment.parse(name, size=self.segment_size))

    def holds(self, name: str, content: Iterable[Buffer]) -> bool:
        # What is not even that segment is a file which the server keeps for its future.
        try:
            index_segment(WalSegment.parse(name, size=self.segment_size), map(bytes, content), checks_all=True)
        except (FormatError, OSError):
            return False
        return True

    def history(self, timeline: Timeline) -> bytes | None:
        return self._histories.get(timeline)
