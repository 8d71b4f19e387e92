"""All segments of a range of WAL from one supply, as a backup asks for them one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.server.wal_supply import WalContent, WalSupply


def supply_range(
    supply: WalSupply,
    history: TimelineHistory,
    *,
    start: Lsn,
    start_timeline: Timeline,
    end: Lsn,
    segment_size: int,
    timeout_seconds: float,
) -> Iterator[WalContent]:
    """
    Yield, oldest first and without a hole, the segments that hold the WAL from *start* up to *end*.

    Args:
        supply: Where they come from.
        history: Of the timeline at *end*; a segment in which it changes timelines is named by the newest.
        start: The first byte that is needed.
        start_timeline: The timeline of *start*.
        end: The first byte that is not needed.
        segment_size: The server's, in bytes.
        timeout_seconds: How long to wait for each segment.

    Raises:
        NotThere: One of them cannot be had.
        FormatError: *start* is not on *history*, or a segment is not what its name says.
    """
    for segment in history.segments(start, start_timeline=start_timeline, end=end, size=segment_size):
        yield supply.fetch(segment, through=end, deadline=time.monotonic() + timeout_seconds)
