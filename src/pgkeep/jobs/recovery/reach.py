"""
Whether replay from one base can get to a target, and what it meets on the way.

The names of the archived segments give the bounds: ``check_bounds``. What is in the segments tells the rest,
``find_stop``: whether the transaction or the restore point is there, behind which record the WAL ends, which
tablespaces the replay makes. Both refuse with the nearest moment that can be reached.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.recovery.base import complete_until
from pgkeep.jobs.recovery.history import WalHoldings, furthest_end, held_along
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.segment_index import Moment
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_record import ParameterChange, TablespaceCreated
from pgkeep.streams.record import RecordHead
from pgkeep.vault.wal_times import TimePlace, WalTimes

Times = Callable[[TimelineHistory, Lsn, Lsn], WalTimes]
"""Returns what the archived WAL of a history says from one LSN up to another."""

_XID_SPACE = 1 << 32
# Before a record there may be the padding of the one before it, and the header of a page: the long one of a segment.
_BEFORE_A_RECORD = 48
_POINTS_SAID = 5


class StopsTooEarly(RestoreRefused):
    """Replay would stop before the backup is consistent: an older backup may do."""


class NeededWalMissing(RestoreRefused):
    """The WAL that makes the backup consistent is not there."""


@dataclass(frozen=True, slots=True)
class Span:
    """
    The WAL that is held for one base, along one history.

    Attributes:
        base: The backup.
        history: What replay follows.
        start: First LSN that replay needs.
        archived: End of what is held without a hole; *start* when nothing is.
        end: The same, with what the backup itself holds.
        reach: No commit before *end* is later than this.
        has_hole: Whether more is held, behind a hole that begins at *end*.
    """

    base: RecordHead
    history: TimelineHistory
    start: Lsn
    archived: Lsn
    end: Lsn
    reach: dt.datetime
    has_hole: bool

    @classmethod
    def of(cls, base: RecordHead, history: TimelineHistory, wal: WalHoldings) -> Span:
        """Return the span of *base* along *history*."""
        timeline, size = Timeline(base.timeline), segment_size(base)
        start = Lsn.parse(base.start_lsn)
        archived = held_along(history, timeline, start, size, wal)
        end = max(archived, Lsn.parse(base.stop_lsn))
        moments = [moment for other in history.timelines if (moment := wal.archived_at(other, archived))]
        reach = max([*moments, complete_until(base)])
        return cls(base, history, start, archived, end, reach, furthest_end(history, timeline, size, wal) > end)

    @property
    def stop(self) -> Lsn:
        """Where the backup is consistent."""
        return Lsn.parse(self.base.stop_lsn)

    @property
    def words(self) -> str:
        """What a message calls it."""
        return "the WAL held without a hole" if self.has_hole else "the WAL held"


def segment_size(base: RecordHead) -> int:
    """Return the size of the WAL segments of *base*, in bytes."""
    return base.wal.segment_size if base.wal is not None else 16 << 20


def check_bounds(span: Span, target: RecoveryTarget, *, now: dt.datetime) -> None:
    """
    Refuse what no WAL that is held can bring.

    Raises:
        NeededWalMissing: The backup cannot become consistent.
        RestoreRefused: The target has not happened yet.
    """
    _check_needed(span)
    if target.kind is TargetKind.TIME and target.time > now:
        raise RestoreRefused(f"target time {_text(target.time)} is in the future", hint=_latest(span))


def check_names(span: Span, target: RecoveryTarget) -> None:
    """
    Refuse what is beyond the WAL by the names of the segments and the times of their arrival.

    It is for who cannot look into them; RestoreRefused is raised.
    """
    if target.kind is TargetKind.LSN and target.lsn > span.end:
        raise RestoreRefused(
            f"target LSN {target.lsn} is beyond {span.words}, which ends at {span.end}",
            hint="leave the target out to recover to the end of the WAL held",
        )
    if target.kind is TargetKind.TIME and target.time > span.reach:
        raise _beyond(span, target, hint=_latest(span))


def _beyond(span: Span, target: RecoveryTarget, *, hint: str) -> RestoreRefused:
    return RestoreRefused(
        f"target time {_text(target.time)} is beyond {span.words}, whose newest segment was written at "
        f"{span.reach.isoformat(sep=' ', timespec='seconds')}",
        hint=hint,
    )


def _latest(span: Span) -> str:
    if span.has_hole:
        # There the end is refused, and a time needs a commit behind it.
        return f"WAL is missing from {span.end} on: only a moment before that can be reached"
    to_the_end = "leave the target out to recover to the end of the WAL held"
    return f"the latest reachable moment is {_text(span.reach)}; {to_the_end}"


def _check_needed(span: Span) -> None:
    base, size = span.base, segment_size(span.base)
    # A standby's last segment is among the files, as far as it goes.
    needed = Lsn(span.stop - span.stop % size) if base.from_standby else span.stop
    if span.archived < needed:
        missing = WalSegment.containing(span.archived, timeline=span.history.timeline_at(span.archived), size=size)
        raise NeededWalMissing(
            f"WAL segment {missing.name} is missing: backup {base.backup_id} needs the WAL from {span.start} to "
            f"{span.stop} to become consistent",
            hint="bring the segment back with pgkeep archive-push, or take another backup: --backup-id=ID",
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """
    Where replay stops, as the WAL says.

    Attributes:
        lsn: Where the record begins at which it stops; None for the end of the WAL.
        tablespaces: Those that it makes before that.
        changes: Settings that it asks for before that.
        notes: What the reader should know, one line each.
    """

    lsn: Lsn | None
    tablespaces: Sequence[TablespaceCreated]
    changes: Sequence[ParameterChange]
    notes: list[str] = field(default_factory=list)


def find_stop(span: Span, target: RecoveryTarget, times_of: Times) -> Stop:
    """
    Return where replay to *target* stops.

    Raises:
        StopsTooEarly: That is before the backup is consistent.
        RestoreRefused: The WAL does not have it.
        ArchiveError: A segment is damaged.
    """
    times = times_of(span.history, span.start, span.archived)
    notes: list[str] = []
    match target.kind:
        case TargetKind.TIME:
            lsn = _stop_at_time(span, target, times, notes)
        case TargetKind.LSN:
            lsn = _stop_at_lsn(span, target, times)
        case TargetKind.XID:
            lsn = _stop_at_transaction(span, target, times, notes)
        case TargetKind.NAME:
            lsn = _stop_at_restore_point(span, target, times, notes)
        case TargetKind.IMMEDIATE:
            lsn = span.stop
        case TargetKind.LATEST:
            lsn = None
            _check_to_the_end(span, times)
    if lsn is not None and lsn < span.stop:
        raise StopsTooEarly(
            f"replay to {target} stops at {lsn}, before the end of backup {span.base.backup_id} at {span.stop}",
            hint=f"the earliest reachable LSN is {span.stop}, the earliest moment {span.base.stop_time}",
        )
    if lsn is None:
        end = span.archived
    else:
        # Replay to an LSN stops behind the first record that begins there or later.
        end = min(span.archived, Lsn(lsn + _BEFORE_A_RECORD) if target.kind is TargetKind.LSN else lsn)
    before = times_of(span.history, span.start, end)
    return Stop(lsn, before.tablespaces_created(), before.parameter_changes(), notes)


def _stop_at_time(span: Span, target: RecoveryTarget, times: WalTimes, notes: list[str]) -> Lsn | None:
    found = times.find_time(target.time, inclusive=target.inclusive, proved_until=span.reach)
    if found.stop is None:
        _check_readable(span, times)
    if found.stop is None and span.has_hole:
        # A server stops at a time only when a later commit comes.
        hint = f"{_last_commit(found.before)}; to recover to where WAL is missing: --target-lsn={times.last_record()}"
        raise _beyond(span, target, hint=hint)
    if found.place is TimePlace.BEYOND:
        raise _beyond(span, target, hint=_latest(span))
    if found.stop is None:
        last = f", which was at {_text(found.before.time)}" if found.before is not None else ""
        notes.append(f"the target time is after the last commit held{last}: replay goes to the end of the WAL")
    return found.stop.lsn if found.stop is not None else None


def _stop_at_lsn(span: Span, target: RecoveryTarget, times: WalTimes) -> Lsn:
    last = times.last_record()
    # What is behind the archive, in the files of a standby's backup, is not looked into.
    if target.lsn > (last or span.start) and span.archived >= span.stop:
        raise RestoreRefused(
            f"target LSN {target.lsn} is beyond {span.words}, whose last record begins at {last}",
            hint=f"the latest reachable LSN is {last}",
        )
    return target.lsn


def _stop_at_transaction(span: Span, target: RecoveryTarget, times: WalTimes, notes: list[str]) -> Lsn:
    found = times.find_transaction(target.xid % _XID_SPACE)
    if found is None:
        _check_readable(span, times)
        commits = times.commits()
        last = commits.last if commits is not None else None
        raise RestoreRefused(
            f"transaction {target.xid} does not end in {span.words}, from {span.start} to {span.end}",
            hint=f"{_last_commit(last)}; a subtransaction ends with the transaction that it belongs to",
        )
    moment, is_commit = found
    if not is_commit:
        notes.append(f"transaction {target.xid} was rolled back at {_text(moment.time)}: replay stops there")
    return moment.lsn


def _stop_at_restore_point(span: Span, target: RecoveryTarget, times: WalTimes, notes: list[str]) -> Lsn:
    points = list(times.restore_points())
    same = [point.lsn for point in points if point.name == target.name]
    if not same:
        _check_readable(span, times)
        said = ", ".join(f'"{point.name}" at {_text(point.time)}' for point in points[-_POINTS_SAID:])
        more = f" and {len(points) - _POINTS_SAID} older ones" if len(points) > _POINTS_SAID else ""
        raise RestoreRefused(
            f'restore point "{target.name}" is not in {span.words}, from {span.start} to {span.end}',
            hint=f"restore points that can be reached: {said}{more}"
            if points
            else f"that WAL has no restore point; the latest reachable moment is {_text(span.reach)}",
        )
    if len(same) > 1:
        notes.append(
            f'restore point "{target.name}" is there more than once: replay stops at the first, at {same[0]}; for the '
            f"newest: --target-lsn={same[-1]}"
        )
    return same[0]


def _check_readable(span: Span, times: WalTimes) -> None:
    """Refuse to take a place for the end of the WAL behind which more is held."""
    end, trouble = times.end()
    if trouble and end + segment_size(span.base) < span.archived:
        raise RestoreRefused(
            f"WAL cannot be read beyond {end}, but is held to {span.archived}: {trouble}",
            hint=f"to recover to there: --target-lsn={times.last_record()}",
        )


def _check_to_the_end(span: Span, times: WalTimes) -> None:
    _check_readable(span, times)
    if span.has_hole:
        raise RestoreRefused(
            f"WAL is missing from {span.end} on, and later WAL is held: its end cannot be reached from backup "
            f"{span.base.backup_id}",
            hint=f"to recover to where it is missing: --target-lsn={times.last_record()}",
        )


def _last_commit(last: Moment | None) -> str:
    if last is None:
        return "that WAL has no commit"
    return f"the last commit held is that of transaction {last.xid} at {_text(last.time)}"


def _text(moment: dt.datetime) -> str:
    return moment.isoformat(sep=" ")
