"""The archived WAL of one cluster, as the choice of a recovery asks for it."""

from __future__ import annotations

import datetime as dt

from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.restore_point import RECORD_BYTES, find_restore_point
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import held_through, ranges, timelines


class WalView:
    """What the archive says about timelines, ends and names."""

    def __init__(self, archive: WalArchive) -> None:
        self._archive = archive

    def held_through(self, timeline: Timeline, lsn: Lsn) -> Lsn:
        """Return the end of the WAL held without a hole from *lsn* on; *lsn* when its segment is not there."""
        return held_through(self._archive, timeline, lsn)

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

    def last_archived(self, timeline: Timeline) -> dt.datetime | None:
        """Return when the newest segment of *timeline* was archived; None when there is none."""
        last: WalSegment | None = None
        for held in ranges(self._archive, timeline):
            last = held.last
        if last is None:
            return None
        identity = self._archive.identify(last.name)
        return dt.datetime.fromtimestamp(identity.mtime_ns / 1e9, dt.UTC) if identity is not None else None

    def end_of(self, timeline: Timeline) -> Lsn | None:
        """Return the end of the newest segment of *timeline*, holes or not; None when there is none."""
        return max((held.end_lsn for held in ranges(self._archive, timeline)), default=None)

    def archived_at(self, timeline: Timeline, end: Lsn) -> dt.datetime | None:
        """Return when the segment of *timeline* that ends at *end* was archived; None when it is not there."""
        if not end:
            return None
        segment = WalSegment.ending_at(end, timeline=timeline, size=self._archive.segment_size)
        identity = self._archive.identify(segment.name) if segment.end_lsn == end else None
        return dt.datetime.fromtimestamp(identity.mtime_ns / 1e9, dt.UTC) if identity is not None else None

    def restore_point(self, name: str, history: TimelineHistory) -> Lsn | None:
        """Return where *history* has its newest restore point called *name*; None when its WAL does not show it."""
        for timeline in reversed(history.timelines):
            fork = history.fork_of(timeline)
            for held in reversed(list(ranges(self._archive, timeline))):
                segment = held.last
                while segment.number >= held.first.number:
                    # What was written past the fork belongs to another history.
                    is_on_history = fork is None or segment.start_lsn < fork
                    found = self._find(segment, name, before=fork) if is_on_history else None
                    if found is not None:
                        return found
                    if segment.number == 0:
                        break
                    segment = WalSegment(segment.timeline, segment.number - 1, segment.size)
        return None

    def _find(self, segment: WalSegment, name: str, *, before: Lsn | None) -> Lsn | None:
        """Return the last place of restore point *name* in *segment*, which is looked through piece by piece."""
        position, tail, last = 0, b"", None
        for piece in self._archive.read(segment.name):
            content = tail + bytes(piece)
            for offset in find_restore_point(content, name):
                place = Lsn(segment.start_lsn + position - len(tail) + offset)
                last = place if before is None or place < before else last
            position += len(piece)
            tail = content[-RECORD_BYTES:]
        return last
