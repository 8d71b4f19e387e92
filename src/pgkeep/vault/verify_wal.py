"""Verifying the WAL archive: every file's digest, what the records say they carry, and holes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from pgkeep.errors import PgkeepError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment, is_history_name, segments_between
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.verify_report import Finding, VerifyReport
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import HeldRange, files, missing, ranges, timelines, without_history

_BATCH = 256


def verify_wal_files(
    archive: WalArchive, names: Iterable[str], *, workers: int, report: VerifyReport, progress: Callable[[int], None]
) -> None:
    """Read the named files of *archive*, in threads."""

    def problem_of(name: str) -> str:
        try:
            archive.verify(name)
        except PgkeepError as error:
            return error.message
        return ""

    waiting = iter(names)
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        while batch := list(itertools.islice(waiting, _BATCH)):
            for name, problem in zip(batch, threads.map(problem_of, batch), strict=True):
                report.wal_files += 1
                progress(archive.segment_size)
                if problem:
                    report.find(Finding("", f"wal/{name}", "", problem))


def find_missing_wal(archive: WalArchive, heads: Iterable[RecordHead], *, report: VerifyReport) -> None:
    """Look for the WAL that each record says it carries, but for what only earlier backups need."""
    for head in heads:
        if head.wal is None or head.wal.start == head.wal.stop:
            continue
        start, stop = Lsn.parse(head.wal.start), Lsn.parse(head.wal.stop)
        if head.has_files and head.start_lsn:
            # What comes before goes with the backups that need it; while they are there, it shows as a hole.
            start = max(start, Lsn.parse(head.start_lsn))
        named = segments_between(start, stop, timeline=Timeline(head.wal.timeline), size=archive.segment_size)
        # A range that crosses a switch has its older part under the names of older timelines.
        older = [timeline for timeline in timelines(archive) if timeline < head.wal.timeline]
        for segment in missing(archive, named):
            others = [f"{segment.name}.partial", *(segment.on(timeline).name for timeline in older)]
            if not any(archive.has(name) for name in others):
                report.find(Finding(head.backup_id, "", "", f"it carries {segment.name}, which is missing"))


def find_holes(cluster: ClusterVault, heads: Sequence[RecordHead], *, report: VerifyReport) -> None:
    """Look for WAL that is missing after the oldest base backup, unless a record says so or only a pin keeps it."""
    bases = [head for head in heads if head.has_files and head.start_lsn and not cluster.is_pinned(head.backup_id)]
    if not bases:
        return
    known = [(Lsn.parse(gap.start), Lsn.parse(gap.stop)) for head in heads for gap in head.wal_gaps]
    oldest = min(Lsn.parse(base.start_lsn) for base in bases)
    for before, after in itertools.pairwise(ranges(cluster.archive)):
        if before.timeline != after.timeline or before.end_lsn < oldest:
            continue
        if not any(start <= before.end_lsn and after.start_lsn <= stop for start, stop in known):
            what = f"WAL is missing between {before.last.name} and {after.first.name}"
            report.find(Finding("", f"wal/{before.timeline.hex}", "", what))
    # The histories of two timelines share their older forks: each hole is reported once.
    found: dict[str, Finding] = {}
    for history in _histories(cluster.archive, bases):
        for finding in _holes_at_forks(cluster.archive, history, bases, known):
            found.setdefault(finding.what, finding)
    for finding in found.values():
        report.find(finding)


def find_missing_histories(archive: WalArchive, heads: Iterable[RecordHead], *, report: VerifyReport) -> None:
    """Look for timelines whose WAL cannot be replayed, since neither archive nor record says where they began."""
    for timeline in without_history(archive, heads):
        what = f"{timeline.history_file_name} is missing: nobody knows where this WAL began"
        report.find(Finding("", f"wal/{timeline.hex}", "", what))


def _histories(archive: WalArchive, bases: Sequence[RecordHead]) -> Iterator[TimelineHistory]:
    """Yield the history of each timeline that forked from another, as the archive has it or else a record."""
    recorded = {head.timeline: head.history for head in bases if head.history}
    for timeline in timelines(archive):
        # A history file that cannot be read has a finding of its own.
        with contextlib.suppress(PgkeepError):
            text = archive.history(timeline) or recorded.get(timeline)
            if text:
                yield TimelineHistory.parse(text, timeline=timeline)


def _holes_at_forks(
    archive: WalArchive, history: TimelineHistory, bases: Sequence[RecordHead], known: Sequence[tuple[Lsn, Lsn]]
) -> Iterator[Finding]:
    """Yield what is missing where *history* passes from one timeline to the next, after its oldest base backup."""
    on_history = [base for base in bases if _lies_on(history, base)]
    if not on_history:
        return
    oldest = min(on_history, key=lambda base: Lsn.parse(base.start_lsn))
    start = Lsn.parse(oldest.start_lsn)
    before: HeldRange | None = None
    for after in _held_along(archive, history, start):
        if before is None:
            # Holes within the timeline of the backup are looked for elsewhere.
            is_hole = after.timeline != history.timeline_at(start) and after.start_lsn > start
            end, what = start, f"WAL is missing between the start of backup {oldest.backup_id} and {after.first.name}"
        else:
            is_hole = after.timeline != before.timeline and after.start_lsn > before.end_lsn
            end, what = before.end_lsn, f"WAL is missing between {before.last.name} and {after.first.name}"
        if is_hole and not any(first <= end and after.start_lsn <= last for first, last in known):
            yield Finding("", f"wal/{after.timeline.hex}", "", what)
        before = after


def _lies_on(history: TimelineHistory, base: RecordHead) -> bool:
    return bool(base.timeline and base.stop_lsn) and history.contains(Timeline(base.timeline), Lsn.parse(base.stop_lsn))


def _held_along(archive: WalArchive, history: TimelineHistory, start: Lsn) -> Iterator[HeldRange]:
    """Yield what is held of the segments that recovery along *history* reads from *start* on, oldest first."""
    size = archive.segment_size
    for timeline in history.timelines:
        switch = history.fork_of(timeline)
        first = max(history.begin_of(timeline), start) // size
        for held in ranges(archive, timeline):
            # The segment of the switch is read under the name of the next timeline, which holds all of it.
            last = held.last.number if switch is None else min(held.last.number, switch // size - 1)
            if max(held.first.number, first) <= last:
                yield HeldRange(
                    WalSegment(timeline, max(held.first.number, first), size), WalSegment(timeline, last, size)
                )


def all_wal(archive: WalArchive) -> Iterator[str]:
    """Yield the name of every file of *archive*."""
    for timeline in timelines(archive):
        for file in files(archive, timeline):
            yield file.name


def carried_wal(archive: WalArchive, heads: Iterable[RecordHead]) -> Iterator[str]:
    """Yield the names of the archive's files that hold the WAL of *heads*, each once."""
    seen: set[str] = set()
    for head in heads:
        if head.wal is None:
            continue
        start, stop = Lsn.parse(head.wal.start), Lsn.parse(head.wal.stop)
        for timeline in timelines(archive):
            if timeline > head.wal.timeline:
                break
            for file in files(archive, timeline, start=start):
                if is_history_name(file.name) or file.name in seen:
                    continue
                segment_start, segment_end = _bounds(file.name, archive.segment_size)
                if segment_end > start and segment_start < stop:
                    seen.add(file.name)
                    yield file.name


def _bounds(name: str, segment_size: int) -> tuple[int, int]:
    number = int(name[8:16], 16) * (0x1_0000_0000 // segment_size) + int(name[16:24], 16)
    return number * segment_size, (number + 1) * segment_size
