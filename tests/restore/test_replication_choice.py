"""Which backup's slots a restore makes again: those that were there at its target."""

from __future__ import annotations

import datetime as dt

import pytest

from pgkeep.jobs.recovery.replication_choice import replication_at
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.replication_state import ReplicationState
from pgkeep.streams.record import Level, RecordHead, WalRange


def head(hour: int, level: Level, end: str, *, is_tracked: bool = True) -> RecordHead:
    """Return the head of a backup of *hour* o'clock whose WAL ends at *end*."""
    return RecordHead(
        backup_id=f"20261120T{hour:02}0000Z-{level.value}",
        cluster="main",
        mode="pitr",
        level=level,
        stop_time=f"2026-11-20T{hour:02}:00:00+00:00",
        stop_lsn=end,
        wal=WalRange(timeline=1, start="0/1000000", stop=end, segment_size=16 << 20),
        replication=ReplicationState(captured_at=str(hour)) if is_tracked else None,
    )


HEADS = [
    head(1, Level.FULL, "0/2000000"),
    head(2, Level.FULL, "0/3000000"),
    head(3, Level.INCREMENTAL, "0/4000000"),
    head(4, Level.INCREMENTAL, "0/5000000", is_tracked=False),
    head(5, Level.INCREMENTAL, "0/6000000"),
]
NOON = dt.datetime(2026, 11, 20, 4, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("target", "stop", "chosen"),
    [
        (RecoveryTarget(TargetKind.LATEST), None, "5"),
        (RecoveryTarget(TargetKind.IMMEDIATE), None, "2"),
        (RecoveryTarget(TargetKind.TIME, NOON), None, "3"),
        (RecoveryTarget(TargetKind.TIME, NOON), "0/3800000", "2"),
        (RecoveryTarget(TargetKind.LSN, Lsn.parse("0/6000000")), None, "5"),
        (RecoveryTarget(TargetKind.LSN, Lsn.parse("0/5FFFFFF")), None, "3"),
        (RecoveryTarget(TargetKind.XID, 700), None, "2"),
        (RecoveryTarget(TargetKind.XID, 700), "0/4000001", "3"),
    ],
)
def test_the_newest_state_that_is_surely_not_too_late(target: RecoveryTarget, stop: str | None, chosen: str) -> None:
    """A state counts when the replay surely passes the end of its backup; the base's own always does."""
    found = replication_at(target, HEADS[1], HEADS, stop_lsn=Lsn.parse(stop) if stop else None)
    assert found is not None
    assert found.captured_at == chosen


def test_no_state_where_none_was_recorded() -> None:
    """A base without a state has none, whatever an earlier backup says."""
    untracked = head(2, Level.FULL, "0/3000000", is_tracked=False)
    assert replication_at(RecoveryTarget(TargetKind.LATEST), untracked, [HEADS[0], untracked]) is None
