"""The WAL that will arrive in a restore, as the choice of a recovery asks for it: from names, not from content."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment, is_partial_name, is_segment_name
from pgkeep.streams.record import RecordHead

CDP_MODE = "cdp"
_NAME_LENGTH = 24


class PromisedWal:
    """
    Segments that a restore is to bring, and when each was read; see ``jobs/recovery/history.py``.

    Args:
        segment_size: Bytes.
        heads: Records of the restored backups, oldest first; they know the histories.
    """

    def __init__(self, segment_size: int, heads: Sequence[RecordHead]) -> None:
        self._size = segment_size
        self._heads = heads
        self._segments: dict[Timeline, dict[int, dt.datetime]] = {}
        self._partial: dict[Timeline, dict[int, tuple[Lsn, dt.datetime]]] = {}

    @classmethod
    def of_names(
        cls, names: Iterable[tuple[str, dt.datetime]], *, segment_size: int, heads: Sequence[RecordHead]
    ) -> PromisedWal:
        """Return the WAL in a list of WAL files, each with the time at which it was read."""
        promised = cls(segment_size, heads)
        for name, moment in names:
            if is_segment_name(name) or is_partial_name(name):
                try:
                    segment = WalSegment.parse(name[:_NAME_LENGTH], size=segment_size)
                except FormatError:
                    continue
                if is_segment_name(name):
                    promised._add(segment, moment)
                else:
                    promised._add_partial(segment, moment)
        return promised

    @classmethod
    def of_heads(cls, heads: Sequence[RecordHead], *, segment_size: int) -> PromisedWal:
        """Return the WAL that *heads* say their backups carry."""
        promised = cls(segment_size, heads)
        for head in heads:
            if head.wal is None or not head.wal.first_segment or head.wal.segment_size != segment_size:
                continue
            first = WalSegment.parse(head.wal.first_segment, size=segment_size)
            # Nothing is later than the end of the job. Until when nothing is missing, its stop, is another thing.
            is_cdp = head.mode == CDP_MODE
            moment = dt.datetime.fromisoformat(head.end_time if is_cdp else head.stop_time or head.end_time)
            stop = Lsn.parse(head.wal.stop)
            segments = _history(head).segments(
                first.start_lsn, start_timeline=first.timeline, end=stop, size=segment_size
            )
            for segment in segments:
                # A standby cannot end its last segment, so what it carries of that is not the whole.
                if segment.end_lsn <= stop or not (head.from_standby or is_cdp):
                    promised._add(segment, moment)
                else:
                    promised._add_partial(segment, moment)
        return promised

    def held_through(self, timeline: Timeline, lsn: Lsn) -> Lsn:
        """Return the end of the WAL without a hole from the segment of *lsn* on; *lsn* when that is missing."""
        held = self._segments.get(timeline, {})
        number, end = lsn // self._size, lsn
        while number in held:
            number += 1
            end = Lsn(number * self._size)
        part = self._partial.get(timeline, {}).get(number)
        return max(end, part[0]) if part is not None else end

    def has(self, segment: WalSegment) -> bool:
        """Tell whether the whole *segment* comes, or is there."""
        return segment.number in self._segments.get(segment.timeline, {})

    def add(self, segment: WalSegment, end: Lsn, moment: dt.datetime) -> None:
        """Add WAL that need not come: *segment* as far as *end*, written not later than *moment*."""
        if end >= segment.end_lsn:
            self._add(segment, moment)
        elif end > max(segment.start_lsn, self._partial_end(segment)):
            self._partial.setdefault(segment.timeline, {})[segment.number] = (end, moment)

    def histories(self) -> list[TimelineHistory]:
        """Return the history of every timeline that a record knows, and of timeline 1 when it has WAL."""
        found = {Timeline(head.timeline): _history(head) for head in self._heads}
        first = Timeline(1)
        if first in self._segments:
            found.setdefault(first, TimelineHistory.single(first))
        return list(found.values())

    def without_history(self) -> list[Timeline]:
        """Return none: each record has the history of its timeline."""
        return []

    def end_of(self, timeline: Timeline) -> Lsn | None:
        """Return the end of the newest segment of *timeline*, holes or not; None when there is none."""
        held = self._segments.get(timeline)
        ends = [end for end, _ in self._partial.get(timeline, {}).values()]
        return max([*ends, *([Lsn((max(held) + 1) * self._size)] if held else [])], default=None)

    def end_text(self) -> str:
        """Return the end of the newest segment of the newest timeline, for people; empty when no WAL comes."""
        newest = max({*self._segments, *self._partial}, default=None)
        return f"to {self.end_of(newest)} on timeline {newest}" if newest is not None else ""

    def archived_at(self, timeline: Timeline, end: Lsn) -> dt.datetime | None:
        """Return when the segment of *timeline* that ends at *end* was read; None when it is not there."""
        if not end:
            return None
        if end % self._size:
            part = self._partial.get(timeline, {}).get(end // self._size)
            return part[1] if part is not None and part[0] == end else None
        return self._segments.get(timeline, {}).get(end // self._size - 1)

    def _partial_end(self, segment: WalSegment) -> Lsn:
        part = self._partial.get(segment.timeline, {}).get(segment.number)
        return part[0] if part is not None else Lsn(0)

    def _add(self, segment: WalSegment, moment: dt.datetime) -> None:
        self._segments.setdefault(segment.timeline, {})[segment.number] = moment

    def _add_partial(self, segment: WalSegment, moment: dt.datetime) -> None:
        """Add as much of *segment* as the newest record says that there is: only those of mode cdp know it."""
        ends = [
            Lsn.parse(head.wal.stop)
            for head in self._heads
            if head.mode == CDP_MODE and head.wal is not None and head.wal.last_segment == segment.name
        ]
        if ends and segment.start_lsn < ends[-1] < segment.end_lsn:
            self._partial.setdefault(segment.timeline, {})[segment.number] = (ends[-1], moment)


def _history(head: RecordHead) -> TimelineHistory:
    return TimelineHistory.parse(head.history, timeline=Timeline(head.timeline))
