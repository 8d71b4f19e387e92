"""Which WAL jobs of mode cdp hold that are known to have succeeded: that may leave the spool."""

from __future__ import annotations

from collections.abc import Iterable

from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.streams.record import RecordHead


class HeldByJobs:
    """
    Whole segments that jobs hold.

    Args:
        heads: Of the jobs.
        system_identifier: Of the cluster; what a job holds of another one does not count.
    """

    def __init__(self, heads: Iterable[RecordHead], system_identifier: SystemIdentifier) -> None:
        # Of each job the history of its WAL, the number of its first segment, and its end: segments are many.
        self._jobs = [
            (
                TimelineHistory.parse(head.history, timeline=Timeline(head.timeline)),
                WalSegment.parse(head.wal.first_segment, size=head.wal.segment_size).number,
                Lsn.parse(head.wal.stop),
            )
            for head in heads
            if head.wal is not None and head.wal.first_segment and head.system_identifier == str(int(system_identifier))
        ]

    def has(self, segment: WalSegment) -> bool:
        """Tell whether one of the jobs has all of *segment*."""
        return any(
            first <= segment.number
            and segment.end_lsn <= stop
            and next(history.segment_timelines(segment.number, size=segment.size)) == segment.timeline
            for history, first, stop in self._jobs
        )
