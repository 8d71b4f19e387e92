"""The archived WAL of one cluster, as the choice of a recovery asks for it."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator

from pgkeep.errors import ArchiveError, FormatError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.segment_index import Moment
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment
from pgkeep.pg.wal_record import MAX_RESTORE_POINT_BYTES
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import held_through, partial_segments, ranges, timelines, without_history
from pgkeep.vault.wal_index import WalIndex
from pgkeep.vault.wal_times import WalTimes


class WalView:
    """
    What the archive says about timelines, ends, names and content. Leave it, so that what was read is kept.

    Args:
        archive: Of the cluster.
        tell: As for ``WalIndex``.
    """

    def __init__(self, archive: WalArchive, *, tell: Callable[[str], None] | None = None) -> None:
        self._archive = archive
        self._index = WalIndex(archive, tell=tell)

    def __enter__(self) -> WalView:
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()

    def times(self, history: TimelineHistory, start: Lsn, end: Lsn) -> WalTimes:
        """Return what the WAL of *history* says from *start* up to *end*; nothing is read before it is asked."""
        return WalTimes(self._index, history, start=start, end=end)

    def held_through(self, timeline: Timeline, lsn: Lsn) -> Lsn:
        """
        Return the end of the WAL held without a hole from *lsn* on; *lsn* when its segment is not there.

        A partial segment behind the whole ones counts up to its last whole record.
        """
        end = held_through(self._archive, timeline, lsn)
        segment = WalSegment.containing(end, timeline=timeline, size=self._archive.segment_size)
        found = self._index.segment(segment, is_partial=True)
        if found is None:
            return end
        if found.last is not None:
            return max(end, min(found.end, segment.end_lsn))
        # It may have no more than the rest of the record with which the segment before ended: that may be a commit.
        before = self._index.segment(WalSegment.ending_at(end, timeline=timeline, size=segment.size)) if end else None
        return max(end, before.end) if before is not None and not before.needs_next else end

    def last_commit(self, history: TimelineHistory, start: Lsn, end: Lsn) -> Moment | None:
        """Return the last commit of *history* from *start* to *end*; None when none is near the end."""
        # Damage is for verify to tell.
        with contextlib.suppress(ArchiveError):
            return self.times(history, start, end).last_commit() if end > start else None
        return None

    def is_partial(self, timeline: Timeline, end: Lsn) -> bool:
        """Tell whether the segment of *timeline* in which WAL ends at *end* is held in part only."""
        if not end:
            return False
        segment = WalSegment.ending_at(end, timeline=timeline, size=self._archive.segment_size)
        return self._archive.has(segment.name + PARTIAL_SUFFIX) and not self._archive.has(segment.name)

    def next_held(self, history: TimelineHistory, lsn: Lsn) -> WalSegment | None:
        """Return the first segment of *history* that begins behind *lsn* and of which anything is held."""
        found: list[WalSegment] = []
        for timeline in history.timelines:
            fork = history.fork_of(timeline)
            held = [
                *(part.first for part in ranges(self._archive, timeline)),
                *partial_segments(self._archive, timeline),
            ]
            found += [s for s in held if s.start_lsn > lsn and (fork is None or s.start_lsn < fork)]
        return min(found, key=lambda segment: (segment.start_lsn, -segment.timeline), default=None)

    def histories(self) -> list[TimelineHistory]:
        """Return the history of every timeline that anything is held of."""
        found = []
        for timeline in timelines(self._archive):
            text = self._archive.history(timeline) if timeline > 1 else None
            if text is not None:
                found.append(TimelineHistory.parse(text, timeline=timeline))
            elif timeline == 1:
                found.append(TimelineHistory.single(timeline))
        return found

    def without_history(self) -> list[Timeline]:
        """Return the timelines of which WAL is held but no history."""
        return without_history(self._archive)

    def end_of(self, timeline: Timeline) -> Lsn | None:
        """Return the end of the newest WAL of *timeline*, holes or not; None when there is none."""
        ends = [held.end_lsn for held in ranges(self._archive, timeline)]
        for segment in partial_segments(self._archive, timeline):
            found = self._index.segment(segment, is_partial=True)
            if found is not None and found.last is not None:
                ends.append(min(found.end, segment.end_lsn))
        return max(ends, default=None)

    def archived_at(self, timeline: Timeline, end: Lsn) -> dt.datetime | None:
        """Return when the segment of *timeline* whose WAL ends at *end* was written; None when it is not there."""
        if not end:
            return None
        segment = WalSegment.ending_at(end, timeline=timeline, size=self._archive.segment_size)
        name = segment.name if segment.end_lsn == end else segment.name + PARTIAL_SUFFIX
        identity = self._archive.identify(name)
        return dt.datetime.fromtimestamp(identity.mtime_ns / 1e9, dt.UTC) if identity is not None else None

    def restore_point(self, name: str, history: TimelineHistory) -> Lsn | None:
        """Return where *history* has its newest restore point called *name*; None when its WAL does not show it."""
        if not 1 <= len(name.encode()) <= MAX_RESTORE_POINT_BYTES:
            raise FormatError(
                f"a restore point's name has 1 to {MAX_RESTORE_POINT_BYTES} bytes, found {len(name.encode())}"
            )
        with self._index as index:
            for timeline in reversed(history.timelines):
                fork = history.fork_of(timeline)
                for segment in self._newest_first(timeline):
                    # What was written past the fork belongs to another history.
                    if fork is not None and segment.start_lsn >= fork:
                        continue
                    found = index.segment(segment)
                    for point in reversed(found.restore_points if found is not None else ()):
                        if point.name == name and (fork is None or point.lsn < fork):
                            return point.lsn
        return None

    def _newest_first(self, timeline: Timeline) -> Iterator[WalSegment]:
        for held in reversed(list(ranges(self._archive, timeline))):
            for number in range(held.last.number, held.first.number - 1, -1):
                yield WalSegment(timeline, number, self._archive.segment_size)
