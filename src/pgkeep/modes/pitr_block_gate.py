"""
The gate of mode pitr_block: whether a chain that goes on from a base could be restored, asked before the first byte.

The server itself refuses an incremental backup for want of summaries, and only then. What it would let pass and what
would spoil the restore is refused here: another cluster, another timeline, pages that were rewritten without WAL, a
chain with a member missing.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pgkeep.errors import BackupUnusable, FormatError, ServerError
from pgkeep.modes.contract import BackupRequest, Base, History
from pgkeep.modes.physical_base import ServerFacts, base_problem
from pgkeep.pg.backup_manifest import ManifestEnd, ManifestReader
from pgkeep.pg.capabilities import version_text
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.wal_summaries import (
    Summarizer,
    is_border,
    is_summarizing,
    keep_time,
    summarizer,
    uncovered,
    wal_summaries,
)
from pgkeep.streams.record import RecordHead

POLL_SECONDS = 0.2
SUMMARIZER_START_SECONDS = 10.0
"""How long a summarizer that was just switched on may take to say where it begins."""
SUMMARIZER_READ_SECONDS = 60.0
"""How long it may read nothing before it is as far as the base: so long the server would wait for it, too."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a base cannot be built on, and what to do about it: two clauses without a full stop."""

    text: str
    advice: str


class Gate:
    """
    What is asked before a Differential or Incremental.

    Args:
        server: The server.
        facts: What it said of itself.
        request: What is asked for; its options are those of the mode.
    """

    def __init__(self, server: Server, facts: ServerFacts, request: BackupRequest) -> None:
        self._server = server
        self._facts = facts
        self._request = request

    def obstacle(self, base: Base, history: History, *, flushed: Lsn) -> Obstacle | None:
        """
        Return why a backup of the server cannot build on *base*; None when it can.

        Raises:
            ServerError: It could, but not now: a standby has not come far enough.
        """
        head = base.head
        problem = base_problem(head, self._facts, flushed=flushed)
        if problem:
            return Obstacle(problem, "make a Full")
        found = (
            self._other_timeline(head)
            or self._other_checksums(head)
            or _broken_chain(head, history)
            or _unusable_manifest(base)
            or self._no_summaries(head)
            or self._other_past(head)
        )
        if found is None and self._facts.identity.is_in_recovery:
            self._await_restartpoint(head)
        return found

    def warn_of_summaries(self) -> None:
        """Warn when the server's settings will leave a later backup without summaries."""
        if not is_summarizing(self._server):
            self._request.warn(
                f"summarize_wal is off at {self._server.where}: until it is on, every Differential and Incremental "
                "is made as a Full"
            )
            return
        kept, wanted = keep_time(self._server), dt.timedelta(days=self._request.options.summary_days)
        if kept is not None and kept < wanted:
            self._request.warn(
                f"wal_summary_keep_time is {days(kept)} at {self._server.where}, shorter than pitr_block_summary_days, "
                f"{days(wanted)}: a backup whose base is older finds no summaries and is made as a Full"
            )

    def _other_timeline(self, head: RecordHead) -> Obstacle | None:
        # A standby summarizes WAL that it has not replayed yet. Where it is promoted before it has, summaries of the
        # old timeline tell of changes that never were, and an incremental backup that believes them lacks blocks: the
        # files restored from it hold old rows. PostgreSQL's commit ec756e59 (17, 5787f878 in 18) leaves summaries out
        # that begin at the switch, not those that reach across it: no minor release is known to be free of both.
        if head.timeline == self._facts.identity.timeline:
            return None
        return Obstacle(
            f"the server went from timeline {head.timeline} to {self._facts.identity.timeline} since backup "
            f"{head.backup_id}, and after a promotion the WAL summaries of PostgreSQL "
            f"{version_text(self._server.version)} can be wrong",
            "make a Full",
        )

    def _other_checksums(self, head: RecordHead) -> Obstacle | None:
        # pg_checksums rewrites every page without WAL: no summary knows of it.
        if head.data_checksums == self._facts.has_checksums:
            return None
        now, then = ("on", "off") if self._facts.has_checksums else ("off", "on")
        return Obstacle(f"data checksums are {now}, they were {then} at backup {head.backup_id}", "make a Full")

    def _no_summaries(self, head: RecordHead) -> Obstacle | None:
        if not is_summarizing(self._server):
            return Obstacle(
                f"summarize_wal is off at {self._server.where}, so nobody knows which blocks have changed",
                "ALTER SYSTEM SET summarize_wal = on, SELECT pg_reload_conf(), and make a Full",
            )
        since, timeline = Lsn.parse(head.start_lsn), Timeline(head.timeline)
        state = self._await_summarizer(lambda state: state.timeline is not None, SUMMARIZER_START_SECONDS)
        if state.timeline is None:
            return Obstacle(
                f"the WAL summarizer of {self._server.where} has not begun after {SUMMARIZER_START_SECONDS:g} s",
                "look into the server's log, and make a Full",
            )
        # What comes after this the server itself waits for: its summarizer goes on from there.
        gap = uncovered(wal_summaries(self._server, timeline, since=since), since, state.summarized)
        if gap is None:
            return None
        kept = keep_time(self._server)
        missing = (
            f"no WAL summaries from {gap[0]} to {gap[1]} on timeline {timeline}, needed since backup {head.backup_id} "
            f"starts at {since}"
        )
        if kept is None or queries.server_time(self._server) - dt.datetime.fromisoformat(head.start_time) < kept:
            return Obstacle(
                f"{missing}: summarize_wal was off or wal_level minimal meanwhile, or somebody has removed them",
                "make a Full",
            )
        return Obstacle(
            f"{missing}; the server keeps them for {days(kept)} (wal_summary_keep_time)",
            "make a Full, and keep summaries for longer than it is from a backup to the next that builds on it",
        )

    def _other_past(self, head: RecordHead) -> Obstacle | None:
        # A summary ends wherever a redo may begin (SummarizeXlogRecord in walsummarizer.c), as at the base's start.
        # Where files were put back to an earlier state and WAL has been written beyond the base since, the summaries
        # tell of other WAL: what the base holds of the lost one would stay, and rows of the new one would be missing.
        since, timeline = Lsn.parse(head.start_lsn), Timeline(head.timeline)
        state = self._await_summarizer(
            lambda state: state.summarized >= since or state.read > since, SUMMARIZER_READ_SECONDS
        )
        if state.summarized < since and state.read <= since:
            return Obstacle(
                f"the WAL summarizer of {self._server.where} stands at {state.read} for {SUMMARIZER_READ_SECONDS:g} s, "
                f"backup {head.backup_id} starts at {since}",
                "look into the server's log, and make a Full",
            )
        # Of a server where nothing has happened since, every summary may be too old to be kept.
        if state.summarized == since or is_border(self._server, timeline, since):
            return None
        return Obstacle(
            f"backup {head.backup_id} starts at {since}, but no checkpoint of the server's WAL does: "
            "its files were put back to an earlier state",
            "make a Full",
        )

    def _await_summarizer(self, is_enough: Callable[[Summarizer], bool], timeout_seconds: float) -> Summarizer:
        """Return how far the summarizer has come, at last when it has read nothing for *timeout_seconds*."""
        pause = threading.Event()
        read, deadline = None, 0.0
        silent_until = time.monotonic() + SUMMARIZER_START_SECONDS
        while not is_enough(state := summarizer(self._server)):
            if state.read != read:
                read, deadline = state.read, time.monotonic() + timeout_seconds
            elif time.monotonic() > deadline:
                break
            if time.monotonic() > silent_until:
                silent_until = float("inf")
                self._request.say(f"waiting for the WAL summarizer, which has read up to {state.read}")
            pause.wait(POLL_SECONDS)
        return state

    def _await_restartpoint(self, head: RecordHead) -> None:
        """Wait until a backup of the standby would start behind the end of *head*, which the server insists on."""
        end = Lsn.parse(head.stop_lsn)
        timeout_seconds = self._request.options.wal.timeout_seconds
        deadline = time.monotonic() + timeout_seconds
        pause = threading.Event()
        is_said = False
        while (found := queries.last_checkpoint(self._server).redo_lsn) < end:
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the last restartpoint of the standby at {self._server.where} is {found}, backup "
                    f"{head.backup_id} ends at {end}: no incremental backup can start there",
                    hint="run CHECKPOINT on the primary, or wait for its next checkpoint, then run the backup again",
                )
            if not is_said:
                self._request.say(f"waiting for a restartpoint after {end}, the last one is {found}")
                is_said = True
            # It makes one of the newest checkpoint of the primary's that was replayed; without such a one, none.
            queries.checkpoint(self._server)
            pause.wait(POLL_SECONDS)


def days(time_kept: dt.timedelta) -> str:
    """Return *time_kept* as people write it: ``10 days``, ``90 min``."""
    minutes = int(time_kept.total_seconds() // 60)
    if minutes % 1440:
        return f"{minutes} min"
    return "1 day" if minutes == 1440 else f"{minutes // 1440} days"


def _broken_chain(head: RecordHead, history: History) -> Obstacle | None:
    missing = [backup_id for backup_id in head.details.get("chain", ()) if not history.has(backup_id)]
    if not missing:
        return None
    return Obstacle(f"backup {head.backup_id} needs backup {missing[0]}, which is not there", "make a Full")


def _unusable_manifest(base: Base) -> Obstacle | None:
    head = base.head
    try:
        reader = ManifestReader()
        for piece in base.manifest():
            reader.feed(piece)
        problem = _foreign_manifest(reader.finish(), head)
    except (BackupUnusable, FormatError) as error:
        problem = error.message
    if not problem:
        return None
    return Obstacle(
        f"the manifest of backup {head.backup_id} cannot be used: {problem}", "bring it back, or make a Full"
    )


def _foreign_manifest(end: ManifestEnd, head: RecordHead) -> str:
    found = [(str(one.start_lsn), str(one.end_lsn)) for one in end.wal_ranges]
    if found == [(head.start_lsn, head.stop_lsn)] and str(end.system_identifier) == head.system_identifier:
        return ""
    covers = ", ".join(f"{start} to {stop}" for start, stop in found)
    return (
        f"it is of system identifier {end.system_identifier} and WAL {covers or 'nowhere'}, expected "
        f"{head.system_identifier} and {head.start_lsn} to {head.stop_lsn}"
    )
