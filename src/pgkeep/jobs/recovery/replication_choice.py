"""Which backup's replication state a restore goes by: the newest that is surely not later than its target."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.replication_state import ReplicationState
from pgkeep.streams.record import RecordHead


def replication_at(
    target: RecoveryTarget, base: RecordHead, heads: Sequence[RecordHead], *, stop_lsn: Lsn | None = None
) -> ReplicationState | None:
    """
    Return the replication state for a restore of *base* to *target*; None where no backup recorded one.

    Args:
        target: Where replay stops.
        base: The backup whose files are laid down.
        heads: Backups along the history that is followed, oldest first.
        stop_lsn: Where replay stops, as the WAL says; None when that is not known.
    """
    chosen = base.replication
    for head in heads:
        is_later = head.backup_id > base.backup_id
        if is_later and head.replication is not None and _is_reached(target, head, stop_lsn):
            chosen = head.replication
    return chosen


def _is_reached(target: RecoveryTarget, head: RecordHead, stop_lsn: Lsn | None) -> bool:
    """Tell whether replay surely passes the end of *head*."""
    end = Lsn.parse(head.wal.stop if head.wal is not None else head.stop_lsn)
    if target.kind is TargetKind.LATEST:
        return True
    if target.kind is TargetKind.LSN:
        return end <= target.lsn
    if stop_lsn is not None:
        return end <= stop_lsn
    if target.kind is TargetKind.TIME:
        return bool(head.stop_time) and dt.datetime.fromisoformat(head.stop_time) <= target.time
    return False
