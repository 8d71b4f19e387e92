"""
Where a receiver goes on: behind what is held, on a timeline that the server's history leads to.

What is held and what the server has are two histories with a common beginning. Their WAL is the same up to the point at
which one of them leaves the newest timeline that both have. Behind that point nothing of the one belongs to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgkeep.errors import ArchiveError, FormatError, ServerError
from pgkeep.jobs.archive.segment_pieces import segment_pieces
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.pg.segment_index import index_segment
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.spool.directory import Spool, SpooledSegment
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import ranges

# An end may be given before or behind the header of a page that begins there, at most that of a segment.
_PAGE_HEADER_BYTES = 40


@dataclass(frozen=True, slots=True)
class Held:
    """
    The end of what was received.

    Attributes:
        end: Behind the last whole record that is held.
        resume: Where the server is asked to go on: the beginning of the segment in which *end* lies.
        where: ``spool`` or ``vault``, for messages.
    """

    end: WalPosition
    resume: Lsn
    where: str


@dataclass(frozen=True, slots=True)
class Resume:
    """
    Where the stream begins.

    Attributes:
        position: There.
        branch: End of WAL that is held, beyond the point where the server's history left its timeline; None as a rule.
    """

    position: WalPosition
    branch: WalPosition | None = None


def resume_after(held: Held, history: TimelineHistory, server: TimelineHistory) -> Resume:
    """
    Return where to go on.

    Args:
        held: The end of what was received.
        history: Of the timeline of that end.
        server: Of the server's timeline.

    Raises:
        ArchiveError: The server is behind what is held, or its history has nothing in common with it.
    """
    common = _newest_common(history, server)
    if common is None:
        raise ArchiveError(
            f"the server's timeline {server.timeline} has nothing in common with timeline {history.timeline}, "
            "which was received before",
            hint="two clusters of one origin went separate ways: give each its own name, vault and spool",
        )
    theirs = server.fork_of(common)
    if common == history.timeline:
        if theirs is None or held.end.lsn <= theirs:
            return Resume(WalPosition(common, held.resume))
        return Resume(WalPosition(_next_timeline(server, common), theirs), branch=held.end)
    ours = history.fork_of(common)
    assert ours is not None
    if theirs is None:
        raise ArchiveError(
            f"the server is on timeline {server.timeline}, but timeline {history.timeline} was received already",
            hint="this is the old primary: connect to the one that was promoted",
        )
    if theirs <= ours:
        return Resume(WalPosition(_next_timeline(server, common), theirs), branch=held.end)
    return Resume(WalPosition(common, ours), branch=held.end)


def held_end(spool: Spool, archive: WalArchive | None, server: TimelineHistory) -> Held | None:
    """Return the end of what is held: in the spool, else in a vault along *server*; None when there is nothing."""
    segments = spool.segments()
    if segments:
        newest = segments[-1]
        end = spooled_end(spool, newest)
        resume = newest.segment.end_lsn if newest.is_complete else newest.segment.start_lsn
        return Held(WalPosition(newest.segment.timeline, end), resume, "spool")
    if archive is None:
        return None
    for timeline in reversed(server.timelines):
        ends = [held.end_lsn for held in ranges(archive, timeline)]
        if ends:
            fork = server.fork_of(timeline)
            held = ends[-1] if fork is None else min(ends[-1], fork)
            return Held(WalPosition(timeline, held), held, "vault")
    return None


def spooled_end(spool: Spool, spooled: SpooledSegment) -> Lsn:
    """Return the LSN behind the last whole record of a segment in the spool; its start where there is none."""
    segment = spooled.segment
    if spooled.is_complete:
        return segment.end_lsn
    try:
        found = index_segment(segment, segment_pieces(spool.path / spooled.name), checks_all=True)
    except FormatError:
        return segment.start_lsn
    if found.last is None:
        return segment.start_lsn
    return min(found.end, segment.end_lsn)


def known_history(held: Held, server: TimelineHistory, spool: Spool, archive: WalArchive | None) -> TimelineHistory:
    """Return the history of the timeline of *held*; raise ArchiveError when nothing tells it."""
    timeline = held.end.timeline
    if timeline == 1:
        return TimelineHistory.single(timeline)
    content = spool.history(timeline) or (archive.history(timeline) if archive is not None else None)
    if content is not None:
        return TimelineHistory.parse(content, timeline=timeline)
    if held.where == "vault":
        # It was looked for along the server's history.
        return TimelineHistory(timeline, tuple(fork for fork in server.entries if fork.timeline < timeline))
    raise ArchiveError(
        f"WAL of timeline {timeline} is held, but its {timeline.history_file_name} is neither in spool nor vault",
        hint="bring it into the vault with pgkeep archive-push",
    )


def check_not_behind(held: Held, server: TimelineHistory, server_end: Lsn, *, is_standby: bool) -> None:
    """
    Raise when the server has less WAL of its timeline than was received of that timeline.

    Raises:
        ServerError: It is a standby, which may yet get there.
        ArchiveError: It is a primary, and will write other WAL over what was received.
    """
    if held.end.timeline != server.timeline or held.end.lsn <= server_end + _PAGE_HEADER_BYTES:
        return
    text = f"the server's WAL ends at {server_end} on timeline {server.timeline}, but was received up to {held.end.lsn}"
    if is_standby:
        raise ServerError(f"{text}: waiting for the standby to catch up")
    raise ArchiveError(
        text,
        hint="the server lost WAL, or was restored without a new timeline: add it to the vault under another name",
    )


def _newest_common(left: TimelineHistory, right: TimelineHistory) -> Timeline | None:
    """Return the newest timeline that is in both histories and was reached the same way."""
    common = None
    for mine, other in zip(left.timelines, right.timelines, strict=False):
        if mine != other or left.begin_of(mine) != right.begin_of(other):
            break
        common = mine
    return common


def _next_timeline(history: TimelineHistory, timeline: Timeline) -> Timeline:
    return history.timelines[history.timelines.index(timeline) + 1]
