"""Records and archived WAL as the choice of a recovery sees them, without a server: one segment is one hour."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from pgkeep.jobs.recovery.plan import RecoveryPlan, plan_recovery
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.timeline import TimelineFork, TimelineHistory
from pgkeep.streams.record import Level, RecordHead, Tablespace, WalRange

SEGMENT = 16 << 20
NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)


def lsn(segment: float) -> Lsn:
    """Return the place *segment* segments into the WAL."""
    return Lsn(int(segment * SEGMENT))


def moment(hour: float) -> dt.datetime:
    """Return the moment *hour* hours after noon."""
    return NOON + dt.timedelta(hours=hour)


def head(
    backup_id: str,
    *,
    stop: float,
    timeline: int = 1,
    at: float | None = None,
    tablespaces: Sequence[int] = (),
    **more: Any,
) -> RecordHead:
    """Return the record of a base backup from segment *stop* - 1 to *stop*, at the hour *at* (the same as *stop*)."""
    values: dict[str, Any] = {
        "level": Level.FULL,
        "files_from": backup_id,
        "system_identifier": "7312345678901234567",
        "start_lsn": str(lsn(stop - 1)),
        "stop_lsn": str(lsn(stop)),
        "stop_time": moment(stop if at is None else at).isoformat(),
        "wal": WalRange(timeline=timeline, start=str(lsn(stop - 1)), stop=str(lsn(stop)), segment_size=SEGMENT),
        "tablespaces": [Tablespace(oid=oid, name=f"t{oid}", location=f"/srv/{oid}") for oid in tablespaces],
    }
    return RecordHead(backup_id=backup_id, cluster="main", mode="pitr", timeline=timeline, **(values | more))


def fork(timeline: int, parent: int, at: float) -> TimelineHistory:
    """Return the history of *timeline*, which left *parent* at segment *at*."""
    return TimelineHistory(Timeline(timeline), (TimelineFork(Timeline(parent), lsn(at)),))


class Holdings:
    """WAL of each timeline from 0 up to a segment, archived at the hour of its end unless *at* says another."""

    def __init__(self, ends: dict[int, float], *histories: TimelineHistory, at: dict[int, float] | None = None) -> None:
        self._ends = ends
        self._at = at or {}
        self._histories = [TimelineHistory.single(Timeline(1)), *histories]

    def held_through(self, timeline: Timeline, start: Lsn) -> Lsn:
        """Return the end of the timeline, or *start*."""
        return max(start, lsn(self._ends.get(timeline, 0)))

    def histories(self) -> list[TimelineHistory]:
        """Return all histories."""
        return self._histories

    def without_history(self) -> list[Timeline]:
        """Return the timelines that have an end and no history."""
        known = {history.timeline for history in self._histories}
        return [Timeline(timeline) for timeline in sorted(self._ends.keys() - known)]

    def end_of(self, timeline: Timeline) -> Lsn | None:
        """Return the end of the timeline."""
        return lsn(self._ends[timeline]) if timeline in self._ends else None

    def archived_at(self, timeline: Timeline, end: Lsn) -> dt.datetime | None:
        """Return the hour of the timeline's last segment."""
        if self.end_of(timeline) != end:
            return None
        return moment(self._at.get(timeline, self._ends[timeline]))


def plan(
    heads: Sequence[RecordHead], holdings: Holdings, target: RecoveryTarget | None = None, *, backup_id: str = ""
) -> RecoveryPlan:
    """Return the plan for *target*, the end of the WAL unless it is given, a week later."""
    chosen = target or RecoveryTarget(kind=TargetKind.LATEST)
    return plan_recovery(heads, chosen, holdings, now=moment(168), backup_id=backup_id)
