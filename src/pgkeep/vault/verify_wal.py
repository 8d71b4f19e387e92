"""Verifying the WAL archive: every file's digest, what the records say they carry, and holes."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from pgkeep.errors import PgkeepError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import is_history_name, segments_between
from pgkeep.streams.record import RecordHead
from pgkeep.vault.vault import ClusterVault
from pgkeep.vault.verify_report import Finding, VerifyReport
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import files, missing, ranges, timelines

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
    """Look for the WAL that each record says it carries."""
    for head in heads:
        if head.wal is None or head.wal.start == head.wal.stop:
            continue
        start, stop = Lsn.parse(head.wal.start), Lsn.parse(head.wal.stop)
        named = segments_between(start, stop, timeline=Timeline(head.wal.timeline), size=archive.segment_size)
        # A range that crosses a switch has its older part under the names of older timelines.
        older = [timeline for timeline in timelines(archive) if timeline < head.wal.timeline]
        for segment in missing(archive, named):
            others = [f"{segment.name}.partial", *(segment.on(timeline).name for timeline in older)]
            if not any(archive.has(name) for name in others):
                report.find(Finding(head.backup_id, "", "", f"it carries {segment.name}, which is missing"))


def find_holes(cluster: ClusterVault, heads: Sequence[RecordHead], *, report: VerifyReport) -> None:
    """Look for WAL that is missing after the oldest base backup, unless a record says so or only a pin keeps it."""
    starts = [
        Lsn.parse(head.start_lsn)
        for head in heads
        if head.has_files and head.start_lsn and not cluster.is_pinned(head.backup_id)
    ]
    if not starts:
        return
    known = [(Lsn.parse(gap.start), Lsn.parse(gap.stop)) for head in heads for gap in head.wal_gaps]
    for before, after in itertools.pairwise(ranges(cluster.archive)):
        if before.timeline != after.timeline or before.end_lsn < min(starts):
            continue
        if not any(start <= before.end_lsn and after.start_lsn <= stop for start, stop in known):
            what = f"WAL is missing between {before.last.name} and {after.first.name}"
            report.find(Finding("", f"wal/{before.timeline.hex}", "", what))


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
