"""
The index of one WAL segment: what a restore may want to know of it without reading it again.

A record belongs to the segment in which it begins. Most segments end in the middle of a record; when that record is of
interest, the index is not complete before the beginning of the next segment was seen: ``needs_next``.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_reader import OpenRecord, WalReader
from pgkeep.pg.wal_record import (
    BackupEnded,
    Checkpoint,
    DatabaseCreated,
    DatabaseDropped,
    EndOfRecovery,
    Event,
    ParameterChange,
    RestorePoint,
    TablespaceCreated,
    TablespaceDropped,
    TransactionEnd,
)
from pgkeep.pg.wal_walk import WalkEnd


class Ending(enum.Enum):
    """How the records of a segment end."""

    FULL = "full"
    """The last one ends where the segment does, or in a later one."""

    SWITCHED = "switched"
    """After a switch, the rest is unused."""

    OPEN = "open"
    """The last one goes on in the next segment."""

    ZEROS = "zeros"
    """WAL ends: zeros follow, as in a segment that is not complete."""

    INVALID = "invalid"
    """WAL ends: what follows is no record, as in a file that had another use before, or in a damaged one."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The end of one transaction: where its record begins, its xid, and when."""

    lsn: Lsn
    xid: int
    time: dt.datetime

    @classmethod
    def of(cls, end: TransactionEnd) -> Moment:
        """Return *end* as a moment."""
        return cls(Lsn(end.lsn), end.xid, end.time)


@dataclass(frozen=True, slots=True)
class TransactionEnds:
    """
    Some commits, or some aborts.

    Their times do not ascend as their places do: each is taken before the record gets its place.

    Attributes:
        count: At least 1.
        first: The first one.
        last: The last one.
        earliest: The one with the lowest time.
        latest: The one with the highest time; the first of them.
    """

    count: int
    first: Moment
    last: Moment
    earliest: Moment
    latest: Moment

    @classmethod
    def of(cls, ends: list[TransactionEnd]) -> TransactionEnds | None:
        """Return the ends of *ends*, which are in order; None when there are none."""
        if not ends:
            return None
        by_time = attrgetter("microseconds")
        some = (ends[0], ends[-1], min(ends, key=by_time), max(ends, key=by_time))
        return cls(len(ends), *map(Moment.of, some))

    def joined(self, later: TransactionEnds | None) -> TransactionEnds:
        """Return these and *later* ones together."""
        if later is None:
            return self
        by_time = attrgetter("time")
        return TransactionEnds(
            self.count + later.count,
            self.first,
            later.last,
            min(self.earliest, later.earliest, key=by_time),
            max(self.latest, later.latest, key=by_time),
        )


def joined_ends(ends: Iterable[TransactionEnds | None]) -> TransactionEnds | None:
    """Return all of *ends*, which are in order, together; None when there are none."""
    total: TransactionEnds | None = None
    for some in ends:
        total = some if total is None else total.joined(some)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentIndex:
    """
    What one segment has; all lists in the order of the WAL.

    Attributes:
        first: LSN of the first record that begins in it; None when none does.
        last: LSN of the last whole record that begins in it; None when there is none.
        end: LSN after that record, which may lie in the next segment; where the WAL ends, if it does.
        ending: How it ends.
        trouble: Why the WAL ends there, as one line; empty when it goes on.
        open: The record that goes on in the next segment.
        commits: Commits, those of prepared transactions included; None when there are none.
        aborts: The same of aborts, at which recovery to a time stops as well.
    """

    first: Lsn | None
    last: Lsn | None
    end: Lsn
    ending: Ending
    trouble: str = ""
    open: OpenRecord | None = None
    commits: TransactionEnds | None = None
    aborts: TransactionEnds | None = None
    restore_points: tuple[RestorePoint, ...] = ()
    tablespaces_created: tuple[TablespaceCreated, ...] = ()
    tablespaces_dropped: tuple[TablespaceDropped, ...] = ()
    databases_created: tuple[DatabaseCreated, ...] = ()
    databases_dropped: tuple[DatabaseDropped, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    ends_of_recovery: tuple[EndOfRecovery, ...] = ()
    parameter_changes: tuple[ParameterChange, ...] = ()
    backups_ended: tuple[BackupEnded, ...] = ()

    @property
    def needs_next(self) -> bool:
        """Whether the next segment may add to this index."""
        return self.open is not None and bool(self.open.content)

    @property
    def latest_end(self) -> Moment | None:
        """The commit or abort with the highest time: recovery to an earlier time stops in this segment or before it."""
        return max((ends.latest for ends in (self.commits, self.aborts) if ends), key=_time, default=None)

    @property
    def last_sign(self) -> dt.datetime | None:
        """The highest time that any record carries."""
        times = [event.time for event in self.restore_points]
        times += [event.time for event in self.checkpoints]
        times += [event.time for event in self.ends_of_recovery]
        latest = self.latest_end
        return max([*times, *([latest.time] if latest else [])], default=None)


_time = attrgetter("time")

_LISTS: dict[type, str] = {
    RestorePoint: "restore_points",
    TablespaceCreated: "tablespaces_created",
    TablespaceDropped: "tablespaces_dropped",
    DatabaseCreated: "databases_created",
    DatabaseDropped: "databases_dropped",
    Checkpoint: "checkpoints",
    EndOfRecovery: "ends_of_recovery",
    ParameterChange: "parameter_changes",
    BackupEnded: "backups_ended",
}


@dataclass(slots=True)
class _Summary:
    """Events of one segment, summed up piece by piece; those outside of *begin* and *end* are left out."""

    begin: Lsn
    end: Lsn | None
    commits: TransactionEnds | None = None
    aborts: TransactionEnds | None = None
    lists: dict[str, tuple[Event, ...]] = field(default_factory=dict)

    def add(self, events: list[Event]) -> None:
        limit = self.end
        inside = [event for event in events if event.lsn >= self.begin and (limit is None or event.lsn < limit)]
        commits = [event for event in inside if isinstance(event, TransactionEnd) and event.is_commit]
        self.commits = joined_ends((self.commits, TransactionEnds.of(commits)))
        if len(commits) == len(inside):
            return
        aborts = [event for event in inside if isinstance(event, TransactionEnd) and not event.is_commit]
        self.aborts = joined_ends((self.aborts, TransactionEnds.of(aborts)))
        for event in inside:
            name = _LISTS.get(type(event))
            if name is not None:
                self.lists[name] = (*self.lists.get(name, ()), event)


def index_segment(
    segment: WalSegment,
    pieces: Iterable[bytes],
    *,
    begin: Lsn | None = None,
    end: Lsn | None = None,
    checks_all: bool = False,
) -> SegmentIndex:
    """
    Return the index of *segment*.

    Args:
        segment: Which one.
        pieces: Its bytes in order, in whole pages.
        begin: Leave out what records before it say.
        end: Leave out what records at and after it say: they belong to another history.
        checks_all: As for ``WalReader``.

    Raises:
        FormatError: The bytes do not begin as a segment does, or a record is not what its kind promises. That WAL ends
            within the segment is no error.
    """
    reader = WalReader(checks_all=checks_all)
    reader.enter(segment)
    summary = _Summary(begin or Lsn(0), end)
    for piece in pieces:
        summary.add(reader.feed(piece))
    # Each list holds the type that its name says.
    lists: dict[str, Any] = dict(summary.lists)
    return SegmentIndex(
        first=reader.first,
        last=reader.last,
        end=reader.end,
        ending=_ending_of(reader),
        trouble=reader.trouble,
        open=reader.open if reader.ended is None else None,
        commits=summary.commits,
        aborts=summary.aborts,
        **lists,
    )


def close_index(
    index: SegmentIndex, next_segment: WalSegment, pieces: Iterable[bytes], *, end: Lsn | None = None
) -> SegmentIndex:
    """
    Return *index* with its open record read to its end in the next segment.

    Args:
        index: Of a segment that ``needs_next``.
        next_segment: The one after it, on its timeline or a later one.
        pieces: The bytes of that, of which only as many as are needed are taken.
        end: Leave out what records at and after it say.

    Returns:
        *index* itself when *next_segment* does not continue it: it is not the one, or the record was given up.

    Raises:
        FormatError: The bytes do not begin as a segment does, or the record is not what its kind promises.
    """
    record = index.open
    if record is None or not record.content:
        return index
    reader = WalReader.resumed(record, last=index.last, at=next_segment)
    summary = _Summary(Lsn(0), end)
    for piece in pieces:
        events = [event for event in reader.feed(piece) if event.lsn == record.lsn]
        # The rest of the piece may leave another record open, but joins none.
        if reader.joined_end is None:
            if reader.open is None or reader.ended is not None:
                return index
            continue
        summary.add(events)
        lists: dict[str, Any] = {name: (*getattr(index, name), *found) for name, found in summary.lists.items()}
        return replace(
            index,
            last=record.lsn,
            end=reader.joined_end,
            ending=Ending.FULL,
            open=None,
            commits=joined_ends((index.commits, summary.commits)),
            aborts=joined_ends((index.aborts, summary.aborts)),
            **lists,
        )
    return index


def transaction_ends(
    segment: WalSegment, pieces: Iterable[bytes], following: Iterable[tuple[WalSegment, Iterable[bytes]]] = ()
) -> Iterator[TransactionEnd]:
    """
    Yield every commit and abort of *segment* in order; raises as ``index_segment`` does.

    Args:
        segment: Which one.
        pieces: Its bytes in order, in whole pages.
        following: The segments after it with their bytes; only as much is read as the last record needs.
    """
    reader = WalReader()
    reader.enter(segment)
    for piece in pieces:
        yield from _ends(reader.feed(piece))
    open_record = reader.open
    if open_record is None or not open_record.content:
        return
    for next_segment, next_pieces in following:
        reader.enter(next_segment)
        for piece in next_pieces:
            yield from (end for end in _ends(reader.feed(piece)) if end.lsn == open_record.lsn)
            if reader.ended is not None or reader.open is None or reader.open.lsn != open_record.lsn:
                return


def _ends(events: list[Event]) -> Iterator[TransactionEnd]:
    return (event for event in events if isinstance(event, TransactionEnd))


def _ending_of(reader: WalReader) -> Ending:
    if reader.ended is not None:
        return {WalkEnd.SWITCHED: Ending.SWITCHED, WalkEnd.ZEROS: Ending.ZEROS}.get(reader.ended, Ending.INVALID)
    return Ending.OPEN if reader.open is not None else Ending.FULL
