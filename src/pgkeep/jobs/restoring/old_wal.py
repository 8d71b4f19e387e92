"""
The old ``pg_wal`` as a source of WAL: usually it alone has what was written since the last segment was archived.

That is where the accident is. When a restore in place is planned, the segments that are held nowhere else are looked
for: whole ones, and the one that the server was writing, up to its last whole record. Each is read record by record; a
recycled file, or one of a timeline that the restore does not follow, is left alone. A vault gets them as the server's
own archiver would have brought them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pgkeep.datadir.postmaster import read_control_file
from pgkeep.errors import ArchiveError, FormatError, PgkeepError
from pgkeep.jobs.archive.segment_pieces import segment_part, segment_pieces
from pgkeep.jobs.recovery.history import WalHoldings, choose_history
from pgkeep.pg.data_directory import WAL_DIRECTORY
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.recovery import RecoveryTarget
from pgkeep.pg.segment_index import Ending, index_segment
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment, is_segment_name
from pgkeep.streams.item import Buffer
from pgkeep.streams.record import RecordHead
from pgkeep.vault.wal_archive import WalArchive

_WHOLE = frozenset({Ending.FULL, Ending.OPEN, Ending.SWITCHED})


class HeldWal(Protocol):
    """The WAL that is held elsewhere, as far as it is asked whether the old one continues it."""

    @property
    def system_identifier(self) -> SystemIdentifier:
        """Of the cluster."""
        ...

    @property
    def segment_size(self) -> int:
        """Bytes."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether the whole segment *name* is held."""
        ...

    def holds(self, name: str, content: Iterable[Buffer]) -> bool:
        """Tell whether exactly *content* is held under *name*, as far as that is known yet."""
        ...

    def history(self, timeline: Timeline) -> bytes | None:
        """Return the history file of *timeline*; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class OldSegment:
    """
    A segment of the old ``pg_wal``.

    Attributes:
        path: Where it is.
        segment: Which it is.
        end: Behind its last whole record, or of the whole segment.
        written_ns: When the server wrote the last of it, in nanoseconds of the epoch.
    """

    path: Path
    segment: WalSegment
    end: Lsn
    written_ns: int

    @property
    def name(self) -> str:
        """What an archive calls it."""
        return self.segment.name if self.end == self.segment.end_lsn else self.segment.name + PARTIAL_SUFFIX

    def content(self) -> Iterator[bytes]:
        """Yield it, with zeros behind its end."""
        return segment_part(self.path, self.end - self.segment.start_lsn)


@dataclass(frozen=True, slots=True)
class OldWal:
    """
    What the old ``pg_wal`` has, and nobody else.

    Attributes:
        directory: Of it.
        segments: At least one, in order.
        newest_held: The newest one that is held elsewhere, too; None when the server has recycled that.
    """

    directory: Path
    segments: tuple[OldSegment, ...]
    newest_held: OldSegment | None

    @property
    def end(self) -> Lsn:
        """Up to where it leads."""
        return self.segments[-1].end

    @property
    def words(self) -> str:
        """What a message calls it."""
        first, last = self.segments[0].name, self.segments[-1].name
        return f"from {self.directory}: {first} to {last}, which ends at {self.end}"


def find_old_wal(
    data_directory: Path,
    held: HeldWal,
    heads: Sequence[RecordHead],
    target: RecoveryTarget,
    wal: WalHoldings,
) -> OldWal | None:
    """
    Return what ``pg_wal`` of the cluster in *data_directory* has, and *held* lacks, of the timeline of a restore.

    Args:
        data_directory: May be absent, or hold something else.
        held: What is held elsewhere.
        heads: Physical backups of the cluster, oldest first.
        target: Of the restore.
        wal: The same as *held*, as a recovery asks for it.
    """
    usable = [head for head in heads if head.has_files and head.stop_lsn]
    # A copy elsewhere has gone its own way, under a timeline number that the cluster itself may have used since.
    if not usable or str(data_directory) != usable[-1].data_directory or not _is_cluster_of(held, data_directory):
        return None
    timeline = choose_history(usable, target, wal).timeline
    directory = data_directory / WAL_DIRECTORY
    absent, newest_held = _unarchived(directory, held, timeline)
    found: list[OldSegment] = []
    for path in absent:
        # Behind the segment that the server was writing nothing can be read. Where something can, there is damage in
        # between: with what follows the archive shows a hole, and nobody takes the damage for the end of the WAL.
        segment = _read(path, held.segment_size)
        if segment is None:
            break
        found.append(segment)
    return OldWal(directory, tuple(found), newest_held) if found else None


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
    Archive what ``find_old_wal`` finds.

    Args:
        data_directory: As there.
        archive: Of the cluster.
        heads: As there.
        target: As there.
        wal: As there.
        say: Takes one line for the log.
        warn: Takes one warning: a vault that cannot be written is no reason to refuse the restore.
        is_dry: Only say what there is.

    Returns:
        Up to where it leads; 0 when the archive lacks nothing of it.
    """
    old = find_old_wal(data_directory, archive, heads, target, wal)
    if old is None:
        return Lsn(0)
    if is_dry:
        say(f"would be archived {old.words}")
        return old.end
    taken: list[OldSegment] = []
    for segment in old.segments:
        try:
            archive.put(segment.name, segment.content(), written_ns=segment.written_ns)
        except (ArchiveError, PgkeepError, OSError) as error:
            warn(f"{segment.path} holds WAL that the vault lacks and cannot take: {error}; the restore does without it")
            break
        taken.append(segment)
    if not taken:
        return Lsn(0)
    archived = OldWal(old.directory, tuple(taken), old.newest_held)
    say(f"archived {archived.words}")
    return archived.end


def _read(path: Path, size: int) -> OldSegment | None:
    """Return the segment at *path* as far as it can be read; None when that is nothing."""
    segment = WalSegment.parse(path.name, size=size)
    try:
        # In this order: what a server that still runs writes meanwhile may be missing.
        written_ns = path.stat().st_mtime_ns
        found = index_segment(segment, segment_pieces(path), checks_all=True)
    except (FormatError, OSError):
        # The server keeps files of its past for its future: they begin with other WAL.
        return None
    if found.ending in _WHOLE:
        return OldSegment(path, segment, segment.end_lsn, written_ns)
    if found.last is None or found.end <= segment.start_lsn:
        return None
    return OldSegment(path, segment, Lsn(found.end), written_ns)


def _is_cluster_of(held: HeldWal, data_directory: Path) -> bool:
    try:
        return read_control_file(data_directory).system_identifier == held.system_identifier
    except PgkeepError:
        return False


def _unarchived(directory: Path, held: HeldWal, timeline: Timeline) -> tuple[list[Path], OldSegment | None]:
    """
    Return the segments of *timeline* behind the newest one that is held, if they continue that, oldest first.

    That newest one comes second; None when it was recycled.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if is_segment_name(name) and name[:8] == timeline.hex)
    except OSError:
        return [], None
    newest = next((name for name in reversed(names) if held.has(name)), "")
    absent = [name for name in names if name > newest]
    if not absent or not _continues(directory, held, timeline, newest, absent[0]):
        return [], None
    return [directory / name for name in absent], _whole(directory / newest, held.segment_size) if newest else None


def _whole(path: Path, size: int) -> OldSegment | None:
    """Return the segment at *path*, which is known to be whole; None when it was recycled meanwhile."""
    segment = WalSegment.parse(path.name, size=size)
    try:
        return OldSegment(path, segment, segment.end_lsn, path.stat().st_mtime_ns)
    except OSError:
        return None


def _continues(directory: Path, held: HeldWal, timeline: Timeline, newest: str, first_absent: str) -> bool:
    """
    Tell whether the WAL in *directory* goes on where *held* ends, and is not that of a namesake.

    Two servers of one origin may both have made a timeline of that number: the history must be the same one, and the
    newest segment that is held as well. Most often that one was recycled: then the next one must follow what is held,
    or the server must have been about to archive it itself.
    """
    if timeline > 1:
        try:
            history = (directory / timeline.history_file_name).read_bytes()
        except OSError:
            return False
        if history != held.history(timeline):
            return False
    if newest:
        return held.holds(newest, segment_pieces(directory / newest))
    if (directory / "archive_status" / f"{first_absent}.ready").exists():
        return True
    # The segment that the server is writing is never ready; it may begin a timeline.
    start = WalSegment.parse(first_absent, size=held.segment_size).start_lsn
    before = WalSegment.containing(Lsn(max(0, start - 1)), timeline=timeline, size=held.segment_size)
    return any(held.has(before.on(Timeline(number)).name) for number in range(timeline, 0, -1))
