"""
The old ``pg_wal`` as a source of WAL: usually it alone has what was written since the last segment was archived.

That is where the accident is. Before a restore in place is planned, the segments that the archive lacks are archived as
the server's own archiver would have done: whole ones under their names, the one that the server was writing as a
partial segment, up to its last whole record. Each is read record by record first; a recycled file, or one of a timeline
that the restore does not follow, is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pgkeep.datadir.postmaster import read_control_file
from pgkeep.errors import ArchiveError, FormatError, PgkeepError
from pgkeep.jobs.archive.segment_pieces import segment_part, segment_pieces
from pgkeep.jobs.recovery.history import WalHoldings, choose_history
from pgkeep.pg.data_directory import WAL_DIRECTORY
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget
from pgkeep.pg.segment_index import Ending, index_segment
from pgkeep.pg.wal import WalSegment, is_segment_name
from pgkeep.streams.record import RecordHead
from pgkeep.vault.wal_archive import PARTIAL_SUFFIX, WalArchive

_WHOLE = frozenset({Ending.FULL, Ending.OPEN, Ending.SWITCHED})


def archive_old_wal(
    data_directory: Path,
    archive: WalArchive,
    heads: Sequence[RecordHead],
    target: RecoveryTarget,
    wal: WalHoldings,
    *,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    is_dry: bool = False,
) -> Lsn:
    """
    Archive what ``pg_wal`` of the cluster in *data_directory* has, and *archive* lacks, of the timeline of a restore.

    Args:
        data_directory: May be absent, or hold something else.
        archive: Of the cluster.
        heads: Its physical backups, oldest first.
        target: Of the restore.
        wal: What is archived.
        say: Takes one line for the log.
        warn: Takes one warning: a vault that cannot be written is no reason to refuse the restore.
        is_dry: Only say what there is.

    Returns:
        Up to where it leads; 0 when the archive lacks nothing of it.
    """
    usable = [head for head in heads if head.has_files and head.stop_lsn]
    # A copy elsewhere has gone its own way, under a timeline number that the cluster itself may have used since.
    if not usable or str(data_directory) != usable[-1].data_directory or not _is_cluster_of(archive, data_directory):
        return Lsn(0)
    timeline = choose_history(usable, target, wal).timeline
    first = last = ""
    end = Lsn(0)
    for path in _unarchived(data_directory / WAL_DIRECTORY, archive, timeline):
        segment = WalSegment.parse(path.name, size=archive.segment_size)
        try:
            found = index_segment(segment, segment_pieces(path), checks_all=True)
        except (FormatError, OSError):
            # The server keeps files of its past for its future: they begin with other WAL.
            break
        is_whole = found.ending in _WHOLE
        if not is_whole and (found.last is None or found.end <= segment.start_lsn):
            break
        name = path.name if is_whole else path.name + PARTIAL_SUFFIX
        if not is_dry:
            try:
                archive.put(
                    name, segment_pieces(path) if is_whole else segment_part(path, found.end - segment.start_lsn)
                )
            except (ArchiveError, PgkeepError, OSError) as error:
                warn(f"{path} holds WAL that the vault lacks and cannot take: {error}; the restore does without it")
                break
        # Behind the segment that the server was writing nothing can be read. Where something can, there is damage in
        # between: with what follows the archive shows a hole, and nobody takes the damage for the end of the WAL.
        first, last, end = first or name, name, segment.end_lsn if is_whole else found.end
    if first:
        what = "would be archived" if is_dry else "archived"
        say(f"{what} from {data_directory / WAL_DIRECTORY}: {first} to {last}, which ends at {end}")
    return end


def _is_cluster_of(archive: WalArchive, data_directory: Path) -> bool:
    try:
        return read_control_file(data_directory).system_identifier == archive.system_identifier
    except PgkeepError:
        return False


def _unarchived(directory: Path, archive: WalArchive, timeline: Timeline) -> Iterator[Path]:
    """Yield the segments of *timeline* behind the newest one that is archived, if they continue that, oldest first."""
    try:
        names = sorted(name for name in os.listdir(directory) if is_segment_name(name) and name[:8] == timeline.hex)
    except OSError:
        return
    absent: list[str] = []
    archived = ""
    for name in reversed(names):
        if archive.has(name):
            archived = name
            break
        absent.append(name)
    if absent and _continues(directory, archive, timeline, archived, absent[-1]):
        for name in reversed(absent):
            yield directory / name


def _continues(directory: Path, archive: WalArchive, timeline: Timeline, archived: str, first_absent: str) -> bool:
    """
    Tell whether the WAL in *directory* is what the archive goes on with, and not that of a namesake.

    Two servers of one origin may both have made a timeline of that number: the history must be the same one, and the
    newest segment that is archived as well. Most often that one was recycled: then the next one must follow what is
    archived, or the server must have been about to archive it itself.
    """
    if timeline > 1:
        try:
            history = (directory / timeline.history_file_name).read_bytes()
        except OSError:
            return False
        if history != archive.history(timeline):
            return False
    if archived:
        return archive.holds(archived, segment_pieces(directory / archived))
    if (directory / "archive_status" / f"{first_absent}.ready").exists():
        return True
    # The segment that the server is writing is never ready; it may begin a timeline.
    start = WalSegment.parse(first_absent, size=archive.segment_size).start_lsn
    before = WalSegment.containing(Lsn(max(0, start - 1)), timeline=timeline, size=archive.segment_size)
    return any(archive.has(before.on(Timeline(number)).name) for number in range(timeline, 0, -1))
