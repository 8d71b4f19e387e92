"""Until when all commits are surely in the WAL that a restore brings, as the records of its backups say it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from pgkeep.jobs.recovery.promised_wal import CDP_MODE
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment
from pgkeep.streams.record import RecordHead


def proved_times(heads: Iterable[RecordHead]) -> dict[str, int]:
    """
    Return, by the name of the WAL file in which one of *heads* ends, a time in nanoseconds of the epoch.

    Every commit before it is in that file or one before it. What a daemon knows of a file's time is whole seconds, and
    of a segment in the middle nobody asks.

    Args:
        heads: Oldest first.
    """
    proved = {}
    for head in heads:
        name = last_wal_file(head)
        if name and head.stop_time and not head.from_standby:
            proved[name] = round(dt.datetime.fromisoformat(head.stop_time).timestamp() * 1e6) * 1000
    return proved


def last_wal_file(head: RecordHead) -> str:
    """Return the name of the WAL file in which the backup of *head* ends; empty when it sent none."""
    if head.wal is None or not head.wal.last_segment:
        return ""
    segment = WalSegment.parse(head.wal.last_segment, size=head.wal.segment_size)
    is_partial = head.mode == CDP_MODE and Lsn.parse(head.wal.stop) < segment.end_lsn
    return segment.name + (PARTIAL_SUFFIX if is_partial else "")
