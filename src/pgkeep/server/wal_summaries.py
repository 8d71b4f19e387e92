"""What a server of 17 or later has noted of its WAL: which blocks each stretch of it changes, in files it removes."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server.connection import Server


@dataclass(frozen=True, slots=True)
class WalSummary:
    """One summary: of the WAL from *start* up to but not including *end*."""

    start: Lsn
    end: Lsn


@dataclass(frozen=True, slots=True)
class Summarizer:
    """
    How far the process that writes summaries has come.

    Attributes:
        timeline: The one it reads; None before it has found out where to begin.
        summarized: Up to where there are summaries on disk; 0/0 before it has begun.
        read: Up to where it has read, of which nothing need be on disk yet.
    """

    timeline: Timeline | None
    summarized: Lsn
    read: Lsn


def is_summarizing(server: Server) -> bool:
    """Tell whether *server* is set to write summaries."""
    return bool(server.value("SELECT current_setting('summarize_wal') = 'on'"))


def keep_time(server: Server) -> dt.timedelta | None:
    """Return how long *server* keeps summaries; None for ever."""
    minutes = int(server.value("SELECT setting FROM pg_settings WHERE name = 'wal_summary_keep_time'"))
    return dt.timedelta(minutes=minutes) if minutes else None


def wal_summaries(server: Server, timeline: Timeline, *, since: Lsn) -> list[WalSummary]:
    """Return the summaries of *timeline* that end after *since*, oldest first."""
    rows = server.rows(
        """
        SELECT s.start_lsn::text, s.end_lsn::text FROM pg_available_wal_summaries() AS s
        WHERE s.tli = %s AND s.end_lsn > %s::pg_lsn ORDER BY s.start_lsn, s.end_lsn
        """,
        [int(timeline), str(since)],
    )
    return [WalSummary(Lsn.parse(start), Lsn.parse(end)) for start, end in rows]


def summarizer(server: Server) -> Summarizer:
    """Return how far the summarizer has come."""
    timeline, summarized, read = server.row(
        "SELECT summarized_tli, summarized_lsn::text, pending_lsn::text FROM pg_get_wal_summarizer_state()"
    )
    return Summarizer(Timeline(timeline) if timeline else None, Lsn.parse(summarized), Lsn.parse(read))


def is_border(server: Server, timeline: Timeline, lsn: Lsn) -> bool:
    """Tell whether a summary of *timeline* begins or ends at *lsn*."""
    return bool(
        server.value(
            """
            SELECT count(*) FROM pg_available_wal_summaries() AS s
            WHERE s.tli = %s AND %s::pg_lsn IN (s.start_lsn, s.end_lsn)
            """,
            [int(timeline), str(lsn)],
        )
    )


def uncovered(summaries: list[WalSummary], since: Lsn, until: Lsn) -> tuple[Lsn, Lsn] | None:
    """
    Return the first stretch from *since* to *until* that no summary covers; None when all of it is covered.

    Args:
        summaries: Oldest first.
        since: Inclusive.
        until: Exclusive; where it is not after *since* there is nothing to cover.
    """
    covered = since
    for summary in summaries:
        if covered >= until:
            break
        if summary.start > covered:
            return covered, min(summary.start, until)
        covered = max(covered, summary.end)
    return (covered, until) if covered < until else None
