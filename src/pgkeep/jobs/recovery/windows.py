"""From when to when a cluster can be recovered, and what is missing between: from names, and a few indexes of WAL."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pgkeep.jobs.recovery.history import held_along
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.wal_holdings import held_through
from pgkeep.vault.wal_holes import WalHole, read_holes
from pgkeep.vault.wal_view import WalView

DELAY_SECONDS = 3600.0
"""WAL behind a hole that came within this time says that the hole's may be on its way, too."""

Kind = Literal["lost", "delayed", "never received"]


@dataclass(frozen=True, slots=True)
class Window:
    """
    A stretch of time without a hole to which a cluster can be recovered.

    Attributes:
        start_time: When its oldest base backup became consistent, ISO-8601.
        start_lsn: The same as an LSN.
        end_lsn: End of the WAL that follows without a hole.
        end_time: A time by the server's or this host's clock that is certainly not after that end; ISO-8601.
        timeline: The timeline at its end.
        base: The oldest base backup.
        newest_base: The newest base backup in it.
        last_commit_time: Of the last commit before its end; ISO-8601, empty when none is near the end.
        ends_in_partial: Whether its end lies in a segment that is held in part.
    """

    start_time: str
    start_lsn: str
    end_lsn: str
    end_time: str
    timeline: int
    base: str
    newest_base: str
    last_commit_time: str
    ends_in_partial: bool


@dataclass(frozen=True, slots=True)
class Hole:
    """
    WAL that is missing.

    Attributes:
        timeline: Of its end.
        start: First LSN that is missing.
        stop: First LSN that is held again.
        kind: ``lost``: the server has it no more. ``delayed``: it is in the spool, or may be on its way. ``never
            received``: nobody knows why.
        time: When that was noticed, ISO-8601; empty when nobody did.
        reason: More of it; may be empty.
        is_before_base: Whether a base backup was made behind it, so that recovery to now needs none of it.
    """

    timeline: int
    start: str
    stop: str
    kind: Kind
    time: str
    reason: str
    is_before_base: bool

    @property
    def is_open(self) -> bool:
        """Whether no recovery gets to now: nothing says that the WAL may yet come, and no base backup is behind it."""
        return not self.is_before_base and self.kind != "delayed"


def recovery_windows(heads: list[RecordHead], wal: WalView) -> list[Window]:
    """Return the stretches that can be recovered to, oldest first: each begins with a base backup."""
    histories = wal.histories()
    windows: list[Window] = []
    for head in _bases(heads):
        timeline, start, stop = Timeline(head.timeline), Lsn.parse(head.start_lsn), Lsn.parse(head.stop_lsn)
        newest = _newest_history(histories, timeline, stop)
        last = windows[-1] if windows else None
        if last is not None and last.timeline == newest.timeline and Lsn.parse(last.end_lsn) >= stop:
            windows[-1] = dataclasses.replace(last, newest_base=head.backup_id)
            continue
        end = max(stop, held_along(newest, timeline, start, _segment_size(head), wal))
        moments = [moment for t in (newest.timeline, timeline) if (moment := wal.archived_at(t, end)) is not None]
        ends = [h.stop_time for h in heads if h.wal is not None and h.stop_time and Lsn.parse(h.wal.stop) <= end]
        commit = wal.last_commit(newest, start, end)
        windows.append(
            Window(
                start_time=head.stop_time,
                start_lsn=head.stop_lsn,
                end_lsn=str(end),
                end_time=max([*ends, *(_iso(moment) for moment in moments if end > stop)], default=head.stop_time),
                timeline=int(newest.timeline),
                base=head.backup_id,
                newest_base=head.backup_id,
                last_commit_time=_iso(commit.time) if commit is not None else "",
                ends_in_partial=wal.is_partial(newest.timeline, end),
            )
        )
    return windows


def find_holes(
    heads: list[RecordHead], wal: WalView, recorded: Sequence[WalHole], spooled: Sequence[str], *, now: dt.datetime
) -> list[Hole]:
    """
    Return what is missing behind the oldest base backup, by timeline and oldest first.

    Args:
        heads: The backups, oldest first.
        wal: What is held.
        recorded: What receivers passed over, as they wrote it down; what was brought since is no hole.
        spooled: Names of the segments that a spool has.
        now: Aware.
    """
    bases, histories = _bases(heads), wal.histories()
    holes = [
        Hole(
            *(hole.timeline, hole.start, hole.stop, "lost", hole.time, hole.reason),
            is_before_base=_is_before(bases, hole.timeline, hole.stop),
        )
        for hole in recorded
        if wal.held_through(Timeline(hole.timeline), Lsn.parse(hole.start)) < Lsn.parse(hole.stop)
    ]
    if bases:
        first = bases[0]
        timeline, size = Timeline(first.timeline), _segment_size(first)
        history = _newest_history(histories, timeline, Lsn.parse(first.stop_lsn))
        for start, following in _gaps_along(history, timeline, Lsn.parse(first.start_lsn), size, wal):
            if any(Lsn.parse(h.start) < following.start_lsn and start < Lsn.parse(h.stop) for h in holes):
                continue
            kind, reason = _kind_of(start, following, heads, spooled, wal, now=now)
            on, end = int(following.timeline), str(following.start_lsn)
            holes.append(Hole(on, str(start), end, kind, "", reason, _is_before(bases, on, end)))
    return sorted(holes, key=lambda hole: (hole.timeline, Lsn.parse(hole.start)))


def holes_without_base(cluster: ClusterVault) -> list[WalHole]:
    """Return the holes that receivers wrote down, that nobody has filled, and behind which there is no base backup."""
    bases = _bases([head for head in cluster.scan_backups() if isinstance(head, RecordHead)])
    return [
        hole
        for hole in read_holes(cluster.directory)
        if not _is_before(bases, hole.timeline, hole.stop) and is_missing(cluster, hole)
    ]


def is_missing(cluster: ClusterVault, hole: WalHole) -> bool:
    """Tell whether nobody has brought the WAL of *hole* since it was written down."""
    return held_through(cluster.archive, Timeline(hole.timeline), Lsn.parse(hole.start)) < Lsn.parse(hole.stop)


def _gaps_along(
    history: TimelineHistory, timeline: Timeline, position: Lsn, size: int, wal: WalView
) -> Iterator[tuple[Lsn, WalSegment]]:
    """Yield where WAL ends along *history*, and the segment with which it goes on."""
    while True:
        end = held_along(history, timeline, position, size, wal)
        following = wal.next_held(history, max(end, position))
        if following is None:
            return
        yield end, following
        timeline, position = following.timeline, following.start_lsn


def _kind_of(
    start: Lsn,
    following: WalSegment,
    heads: list[RecordHead],
    spooled: Sequence[str],
    wal: WalView,
    *,
    now: dt.datetime,
) -> tuple[Kind, str]:
    for head in heads:
        for gap in head.wal_gaps:
            if Lsn.parse(gap.start) < following.start_lsn and start < Lsn.parse(gap.stop):
                return "lost", f"backup {head.backup_id} did not find it on the server any more"
    first = WalSegment.containing(start, timeline=following.timeline, size=following.size)
    if any(name.removesuffix(PARTIAL_SUFFIX)[8:] == first.name[8:] for name in spooled):
        return "delayed", "the spool has it"
    arrived = wal.archived_at(following.timeline, following.end_lsn)
    if arrived is not None and (now - arrived).total_seconds() < DELAY_SECONDS:
        return "delayed", f"what follows came at {_iso(arrived)}"
    return "never received", ""


def _bases(heads: list[RecordHead]) -> list[RecordHead]:
    return [head for head in heads if head.has_files and head.stop_lsn and head.wal is not None]


def _newest_history(histories: Sequence[TimelineHistory], timeline: Timeline, stop: Lsn) -> TimelineHistory:
    following = [history for history in histories if history.contains(timeline, stop)]
    return max(following, key=lambda history: history.timeline, default=TimelineHistory.single(timeline))


def _segment_size(head: RecordHead) -> int:
    assert head.wal is not None
    return head.wal.segment_size


def _is_before(bases: Sequence[RecordHead], timeline: int, stop: str) -> bool:
    """Tell whether one of *bases* was made behind *stop*; one of an abandoned timeline leads nowhere behind it."""
    return any(base.timeline >= timeline and Lsn.parse(base.start_lsn) >= Lsn.parse(stop) for base in bases)


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
