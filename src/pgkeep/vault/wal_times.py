"""What the archived WAL of one history says: which times, transactions and names a recovery along it can reach."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pgkeep.pg.lsn import Lsn
from pgkeep.pg.segment_index import Moment, SegmentIndex, TransactionEnds, joined_ends
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_record import (
    DatabaseCreated,
    ParameterChange,
    RestorePoint,
    TablespaceCreated,
    TransactionEnd,
    microseconds_of,
)
from pgkeep.vault.wal_index import WalIndex


class TimePlace(enum.Enum):
    """Where a time lies in WAL."""

    BEFORE_FIRST = "before the first commit held"
    """The first commit or abort is later already: recovery replays none."""

    BETWEEN = "between commits"
    """Recovery stops at a commit or abort that is later."""

    AFTER_LAST = "after the last commit"
    """No commit or abort is later, but the WAL is known to reach that time: the target is the end of the WAL."""

    BEYOND = "beyond the WAL held"
    """Nothing shows that the WAL reaches that time."""


@dataclass(frozen=True, slots=True)
class TimeFound:
    """
    What recovery to a time meets.

    Attributes:
        place: Where the time lies.
        stop: The commit or abort before which recovery stops; None when it meets none.
        before: The last commit that is replayed before that; None when there is none.
        last_sign: The highest time that any record up to the stop carries; None when there is no such record.
    """

    place: TimePlace
    stop: Moment | None
    before: Moment | None
    last_sign: dt.datetime | None


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment as far as it belongs to the history."""

    segment: WalSegment
    is_partial: bool
    begin: Lsn
    end: Lsn | None
    index: SegmentIndex


class WalTimes:
    """
    Answers from the indexes of the segments that hold a history from one LSN on, as far as they go without a hole.

    Args:
        index: Of the archive.
        history: What recovery follows.
        start: Where to begin: a commit before it is no commit that recovery replays.
        end: Where to stop; None to go as far as WAL is held.

    All questions raise ArchiveError when a segment that is needed is damaged.
    """

    def __init__(self, index: WalIndex, history: TimelineHistory, *, start: Lsn, end: Lsn | None = None) -> None:
        self._index = index
        self._history = history
        self._start = start
        self._end = end

    def commits(self) -> TransactionEnds | None:
        """Return the commits that recovery can replay; None when there are none."""
        return joined_ends(part.index.commits for part in self._parts())

    def end(self) -> tuple[Lsn, str]:
        """Return where the last whole record ends, and why if WAL ends within a segment; for messages."""
        end, trouble = self._start, ""
        for part in self._parts():
            end, trouble = max(end, part.index.end), part.index.trouble
        return (end if self._end is None else min(end, self._end)), trouble

    def last_record(self) -> Lsn | None:
        """Return where the last whole record begins: no recovery target lies behind it; None when there is none."""
        last: Lsn | None = None
        for part in self._parts():
            if part.index.last is not None and (part.end is None or part.index.last < part.end):
                last = part.index.last
        return last

    def last_commit(self, *, most_segments: int = 64) -> Moment | None:
        """
        Return the last commit before *end*, which must be given; None when the last *most_segments* have none.

        It looks from the end backwards, so that it costs the same however much WAL there is.
        """
        assert self._end is not None
        size = self._index.archive.segment_size
        last = (self._end - 1) // size
        for number in range(last, max(self._start // size - 1, last - most_segments), -1):
            part = self._part(number, size)
            if part is not None and part.index.commits is not None:
                return part.index.commits.last
        return None

    def find_time(
        self, time: dt.datetime, *, inclusive: bool = True, proved_until: dt.datetime | None = None
    ) -> TimeFound:
        """
        Return where recovery to *time* stops.

        Args:
            time: Aware.
            inclusive: Whether commits at this very moment are replayed, ``recovery_target_inclusive``.
            proved_until: A time that the WAL is known to reach, such as when its last segment was archived.

        Source:
            ``recoveryStopsBefore`` in ``src/backend/access/transam/xlogrecovery.c``: commits and aborts count, in the
            order of the WAL, which is not that of their times.
        """
        limit = microseconds_of(time) + inclusive
        before: Moment | None = None
        last_sign: dt.datetime | None = None
        for part in self._parts():
            latest = part.index.latest_end
            if latest is not None and microseconds_of(latest.time) >= limit:
                stop, before = self._stop_in(part, limit, before)
                seen = max((moment for moment in (last_sign, before and before.time) if moment), default=None)
                return TimeFound(TimePlace.BETWEEN if before else TimePlace.BEFORE_FIRST, stop, before, seen)
            before = part.index.commits.last if part.index.commits is not None else before
            sign = part.index.last_sign
            last_sign = max((moment for moment in (last_sign, sign) if moment), default=None)
        reached = max((moment for moment in (last_sign, proved_until) if moment), default=None)
        is_reached = reached is not None and time <= reached
        return TimeFound(TimePlace.AFTER_LAST if is_reached else TimePlace.BEYOND, None, before, last_sign)

    def lsn_after_time(self, time: dt.datetime, *, inclusive: bool = True) -> Lsn | None:
        """Return the LSN before which recovery to *time* stops; None when it meets no later commit or abort."""
        stop = self.find_time(time, inclusive=inclusive).stop
        return stop.lsn if stop is not None else None

    def find_transaction(self, xid: int) -> tuple[Moment, bool] | None:
        """Return the end of transaction *xid*, and whether it is a commit; None when it does not end in this WAL."""
        for part in self._parts():
            if part.index.commits is None and part.index.aborts is None:
                continue
            for end in self._ends(part):
                if end.xid == xid:
                    return Moment.of(end), end.is_commit
        return None

    def restore_point(self, name: str) -> RestorePoint | None:
        """Return the first restore point called *name*, at which recovery to it stops; None when there is none."""
        return next((point for point in self.restore_points() if point.name == name), None)

    def restore_points(self) -> Iterator[RestorePoint]:
        """Yield the restore points in order."""
        for part in self._parts():
            yield from part.index.restore_points

    def tablespaces_created(self) -> list[TablespaceCreated]:
        """Return the tablespaces that replay makes, those included that it drops again."""
        return [event for part in self._parts() for event in part.index.tablespaces_created]

    def databases_created(self) -> list[DatabaseCreated]:
        """Return the databases that replay makes, those included that it drops again."""
        return [event for part in self._parts() for event in part.index.databases_created]

    def parameter_changes(self) -> list[ParameterChange]:
        """Return the changes of the settings that replay needs at least as high."""
        return [event for part in self._parts() for event in part.index.parameter_changes]

    def _stop_in(self, part: _Part, limit: int, before: Moment | None) -> tuple[Moment | None, Moment | None]:
        for end in self._ends(part):
            if end.microseconds >= limit:
                return Moment.of(end), before
            before = Moment.of(end) if end.is_commit else before
        return None, before

    def _ends(self, part: _Part) -> Iterator[TransactionEnd]:
        for end in self._index.transaction_ends(part.segment, is_partial=part.is_partial):
            if part.begin <= end.lsn and (part.end is None or end.lsn < part.end):
                yield end

    def _parts(self) -> Iterator[_Part]:
        """Yield the segments of the history in order, up to the first that is not held or in which WAL ends."""
        size = self._index.archive.segment_size
        for number in itertools.count(self._start // size):
            if self._end is not None and number * size >= self._end:
                return
            part = self._part(number, size)
            if part is None:
                return
            yield part
            if part.index.trouble:
                return

    def _part(self, number: int, size: int) -> _Part | None:
        for timeline in self._history.segment_timelines(number, size=size):
            segment = WalSegment(timeline, number, size)
            limits = [limit for limit in (self._history.fork_of(timeline), self._end) if limit is not None]
            end = min(limits, default=None)
            for is_partial in (False, True):
                index = self._index.part(segment, begin=self._start, end=end, is_partial=is_partial)
                if index is not None:
                    return _Part(segment, is_partial, self._start, end, index)
        return None
