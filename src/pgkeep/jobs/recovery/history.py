"""Along which timelines a recovery goes, and how far the archived WAL reaches along them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Protocol

from pgkeep.errors import RestoreRefused
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.streams.record import RecordHead

HISTORY_ADVICE = "the server that wrote the WAL has it in pg_wal; give it to pgkeep archive-push"
"""What to do about a history file that is not held."""


class WalHoldings(Protocol):
    """What is known of the archived WAL."""

    def held_through(self, timeline: Timeline, lsn: Lsn) -> Lsn:
        """Return the end of the WAL held without a hole from the segment of *lsn* on; *lsn* when that is missing."""
        ...

    def histories(self) -> Sequence[TimelineHistory]:
        """Return the history of every timeline known, timeline 1 included when it has WAL."""
        ...

    def without_history(self) -> Sequence[Timeline]:
        """Return the timelines of which WAL is held but no history, so that nobody knows where they began."""
        ...

    def end_of(self, timeline: Timeline) -> Lsn | None:
        """Return the end of the newest segment of *timeline*, holes or not; None when there is none."""
        ...

    def archived_at(self, timeline: Timeline, end: Lsn) -> dt.datetime | None:
        """
        Return when the segment of *timeline* that ends at *end* was written; None when it is not there.

        Commits that are later are not in it, and those before this are in it or before it.
        """
        ...


def choose_history(usable: Sequence[RecordHead], target: RecoveryTarget, wal: WalHoldings) -> TimelineHistory:
    """Return the history that replay to *target* follows; raise RestoreRefused for a timeline that nobody knows."""
    histories = {history.timeline: history for history in known_histories(usable, wal)}
    newest = usable[-1]
    if target.timeline == "current":
        return histories[Timeline(newest.timeline)]
    if target.timeline != "latest":
        wanted = Timeline(int(target.timeline))
        if wanted not in histories:
            known = ", ".join(str(int(timeline)) for timeline in sorted(histories))
            raise RestoreRefused(
                f"timeline {wanted} is not known: expected one of {known}",
                # A server that was told to archive after its promotion does not hand the file over.
                hint=f"WAL of it is held, but not {wanted.history_file_name}, which says where it began: "
                + HISTORY_ADVICE
                if wal.end_of(wanted) is not None
                else "",
            )
        return histories[wanted]
    return _liveliest(usable, list(histories.values()), wal)


def known_histories(usable: Sequence[RecordHead], wal: WalHoldings) -> list[TimelineHistory]:
    """Return the history of every timeline that the WAL or a backup knows, in order."""
    histories = {history.timeline: history for history in wal.histories()}
    for head in usable:
        timeline = Timeline(head.timeline)
        if timeline not in histories:
            histories[timeline] = (
                TimelineHistory.parse(head.history, timeline=timeline)
                if head.history
                else TimelineHistory.single(timeline)
            )
    return [histories[timeline] for timeline in sorted(histories)]


def _liveliest(usable: Sequence[RecordHead], histories: Sequence[TimelineHistory], wal: WalHoldings) -> TimelineHistory:
    """
    Return the history on which the cluster lives.

    It is the newest timeline that the newest backup leads to, unless another one that some backup leads to has been
    written since: that is the cluster after a restore to before its newest backup.
    """

    def has(history: TimelineHistory, head: RecordHead) -> bool:
        return history.contains(Timeline(head.timeline), Lsn.parse(head.stop_lsn))

    def last_sign(history: TimelineHistory) -> dt.datetime:
        times = [_moment(head) for head in usable if head.timeline == history.timeline]
        end = wal.end_of(history.timeline)
        archived = wal.archived_at(history.timeline, end) if end is not None else None
        return max([*times, *([archived] if archived is not None else [])], default=_NEVER)

    newest = usable[-1]
    following = [history for history in histories if has(history, newest)]
    others = [history for history in histories if history not in following and any(has(history, h) for h in usable)]
    last = max([_moment(newest), *map(last_sign, following)])
    livelier = max(others, key=last_sign, default=None)
    if livelier is not None and last_sign(livelier) > last:
        return livelier
    return max(following, key=lambda history: history.timeline)


_NEVER = dt.datetime.min.replace(tzinfo=dt.UTC)


def _moment(head: RecordHead) -> dt.datetime:
    return dt.datetime.fromisoformat(head.stop_time)


def held_along(history: TimelineHistory, start_timeline: Timeline, start: Lsn, size: int, wal: WalHoldings) -> Lsn:
    """
    Return the end of the WAL that is held without a hole along *history*, from *start* on *start_timeline*.

    A segment in which a switch lies is archived whole under the new timeline's name only, so the walk changes
    timelines at the start of that segment.
    """
    position = start
    timelines = [fork.timeline for fork in history.entries if fork.timeline >= start_timeline]
    for timeline in [*timelines, history.timeline]:
        if timeline < start_timeline:
            continue
        fork = history.fork_of(timeline)
        end = wal.held_through(timeline, position)
        if fork is None:
            return end
        switch_segment_start = Lsn(fork - fork % size)
        if end < switch_segment_start:
            return end
        position = max(switch_segment_start, Lsn(start - start % size))
    return position


def furthest_end(history: TimelineHistory, start_timeline: Timeline, size: int, wal: WalHoldings) -> Lsn:
    """Return the end of the newest segment along *history*, whatever holes lie before it."""
    furthest = Lsn(0)
    for timeline in history.timelines:
        end = wal.end_of(timeline) if timeline >= start_timeline else None
        fork = history.fork_of(timeline)
        if end is not None:
            # What was written past the fork belongs to another history.
            furthest = max(furthest, end if fork is None else min(end, Lsn(fork - fork % size)))
    return furthest
