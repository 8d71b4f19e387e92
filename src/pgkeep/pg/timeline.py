"""
Timeline histories: through which timelines a cluster came to be what it is.

A history is a chain of forks, oldest first. Timeline *t* of the chain holds the WAL from where the chain entered it up
to, but not including, its switch LSN; the last timeline holds the rest. A position is therefore on the history when its
timeline is one of the chain and it is not past that timeline's switch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import WalSegment, check_segment_size

# What readTimeLineHistory in src/backend/access/transam/timeline.c takes: number, LSN, and the rest for people.
_ENTRY = re.compile(r"\s*([0-9]{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s+(.*?))?\s*")


@dataclass(frozen=True, slots=True)
class TimelineFork:
    """
    Where a history left one of its timelines.

    Attributes:
        timeline: The timeline that was left.
        switch_lsn: Its end within this history; the byte at it belongs to the following timeline.
        reason: Why, for people: ``no recovery target specified``; takes no part in comparisons.
    """

    timeline: Timeline
    switch_lsn: Lsn
    reason: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """
    One timeline and how it came to be.

    Attributes:
        timeline: The timeline that this is the history of.
        entries: Where its ancestors were left, oldest first; empty for timeline 1.
    """

    timeline: Timeline
    entries: tuple[TimelineFork, ...] = ()

    def __post_init__(self) -> None:
        """Raise FormatError unless timelines and LSNs ascend."""
        above: TimelineFork | None = None
        for fork in self.entries:
            if above is not None and fork.timeline <= above.timeline:
                raise FormatError(
                    f"history of timeline {self.timeline} is out of order: "
                    f"timeline {fork.timeline} follows timeline {above.timeline}"
                )
            if above is not None and fork.switch_lsn < above.switch_lsn:
                raise FormatError(
                    f"history of timeline {self.timeline} is out of order: timeline {fork.timeline} ends at "
                    f"{fork.switch_lsn}, before it begins at {above.switch_lsn}"
                )
            above = fork
        if above is not None and above.timeline >= self.timeline:
            raise FormatError(f"history of timeline {self.timeline} names the later timeline {above.timeline}")

    @classmethod
    def single(cls, timeline: Timeline) -> TimelineHistory:
        """Return the history of a timeline without known ancestors."""
        return cls(timeline)

    @classmethod
    def parse(cls, text: str | bytes, *, timeline: Timeline) -> TimelineHistory:
        """
        Return the history that *text*, the content of ``<timeline>.history``, tells.

        Raises:
            FormatError: A line is neither empty, nor a comment, nor a fork; or the forks are out of order.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        entries = []
        # Not splitlines(): a reason may hold characters that Python takes for line ends and the server does not.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _ENTRY.fullmatch(line)
            if match is None:
                raise FormatError(
                    f"line {number} of the history of timeline {timeline} is not a timeline switch: "
                    f'expected number, LSN and reason, found "{line.strip()}"'
                )
            entries.append(TimelineFork(Timeline(int(match[1])), Lsn.parse(match[2]), match[3] or ""))
        return cls(timeline, tuple(entries))

    def render(self) -> str:
        """Return the content of a history file that says the same."""
        return "".join(
            f"{fork.timeline}\t{fork.switch_lsn >> 32:X}/{fork.switch_lsn & 0xFFFFFFFF:X}\t{fork.reason}\n"
            for fork in self.entries
        )

    @property
    def parents(self) -> tuple[Timeline, ...]:
        """The ancestors, oldest first; empty when none is known."""
        return tuple(fork.timeline for fork in self.entries)

    @property
    def timelines(self) -> tuple[Timeline, ...]:
        """The ancestors and the timeline itself, oldest first."""
        return (*self.parents, self.timeline)

    def fork_of(self, timeline: Timeline) -> Lsn | None:
        """Return where this history left *timeline*; None when it did not: it is the last one, or not of the chain."""
        for fork in self.entries:
            if fork.timeline == timeline:
                return fork.switch_lsn
        return None

    def begin_of(self, timeline: Timeline) -> Lsn:
        """Return where this history entered *timeline*, 0/0 for its oldest; raise FormatError for one not of it."""
        begin = Lsn(0)
        for fork in self.entries:
            if fork.timeline == timeline:
                return begin
            begin = fork.switch_lsn
        if timeline == self.timeline:
            return begin
        raise FormatError(f"timeline {timeline} is not in the history of timeline {self.timeline}")

    def contains(self, timeline: Timeline, lsn: Lsn) -> bool:
        """Tell whether WAL that was written on *timeline* up to *lsn* is part of this history."""
        if timeline == self.timeline:
            return True
        fork = self.fork_of(timeline)
        return fork is not None and lsn <= fork

    def timeline_at(self, lsn: Lsn) -> Timeline:
        """Return the timeline that holds the byte at *lsn* (``tliOfPointInHistory``)."""
        for fork in self.entries:
            if lsn < fork.switch_lsn:
                return fork.timeline
        return self.timeline

    def descends_from(self, other: TimelineHistory) -> bool:
        """Tell whether *other* is this history or an earlier part of it: same forks, then its timeline."""
        known = len(other.entries)
        if self.entries[:known] != other.entries:
            return False
        return self.timelines[known] == other.timeline

    def segment_timelines(self, number: int, *, size: int) -> Iterator[Timeline]:
        """
        Yield, newest first, the timelines under whose names segment *number* may hold this history's bytes.

        That is the order in which recovery tries them (``XLogFileReadAnyTLI``): at a switch the server copies the start
        of the segment, so the newest name holds all of it, and an older one only what came before the switch.
        """
        check_segment_size(size)
        end = (number + 1) * size
        for fork in reversed((*self.entries, None)):
            timeline = self.timeline if fork is None else fork.timeline
            begin = self.begin_of(timeline)
            if fork is not None and fork.switch_lsn <= number * size:
                return
            if begin < end:
                yield timeline

    def segments(self, start: Lsn, *, start_timeline: Timeline, end: Lsn, size: int) -> Iterator[WalSegment]:
        """
        Yield, oldest first, the segments that hold the bytes from *start* up to but not including *end*.

        A segment in which this history changes timelines is named by the newest of them, as recovery prefers; see
        ``segment_timelines`` for its older names.

        Raises:
            FormatError: *start* on *start_timeline* is not on this history.
        """
        if not self.contains(start_timeline, start):
            raise FormatError(f"{start} on timeline {start_timeline} is not in the history of timeline {self.timeline}")
        if end <= start:
            return
        last = WalSegment.ending_at(end, timeline=self.timeline, size=size).number
        for number in range(WalSegment.containing(start, timeline=self.timeline, size=size).number, last + 1):
            yield WalSegment(next(self.segment_timelines(number, size=size)), number, size)
