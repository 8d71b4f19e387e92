"""
What a WAL archive holds: ranges with their ends, so that a hole shows.

Every question is answered by listing directories, one of 256 segments at a time (with segments of 16 MiB); memory grows
with the number of holes, never with the number of segments.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pgkeep.errors import FormatError, VaultError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import (
    PARTIAL_SUFFIX,
    WalSegment,
    is_backup_label_name,
    is_history_name,
    is_partial_name,
    is_segment_name,
)
from pgkeep.streams.record import RecordHead
from pgkeep.vault.wal_archive import STORED_SUFFIX, WalArchive


@dataclass(frozen=True, slots=True)
class HeldRange:
    """Complete segments of one timeline without a hole, from *first* to *last*, both included."""

    first: WalSegment
    last: WalSegment

    @property
    def timeline(self) -> Timeline:
        """The timeline in the names of the segments."""
        return self.first.timeline

    @property
    def start_lsn(self) -> Lsn:
        """The first byte held."""
        return self.first.start_lsn

    @property
    def end_lsn(self) -> Lsn:
        """The first byte after the range."""
        return self.last.end_lsn

    @property
    def segments(self) -> int:
        """How many segments it has."""
        return self.last.number - self.first.number + 1


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """One file of the archive: its name as the server calls it, and the bytes that it takes."""

    name: str
    stored_bytes: int


def timelines(archive: WalArchive) -> list[Timeline]:
    """Return the timelines of which anything is held, in order."""
    with archive.opened_root() as root:
        return [Timeline.parse_hex(name) for name in _subdirectories(root, ".", 8)]


def without_history(archive: WalArchive, heads: Iterable[RecordHead] = ()) -> list[Timeline]:
    """Return the timelines of which WAL is held but no history, in the archive or in one of *heads*."""
    recorded = {head.timeline for head in heads if head.history}
    return [
        timeline
        for timeline in timelines(archive)
        if timeline > 1
        and timeline not in recorded
        and not archive.has(timeline.history_file_name)
        and (any(ranges(archive, timeline)) or any(partial_segments(archive, timeline)))
    ]


def ranges(archive: WalArchive, timeline: Timeline | None = None) -> Iterator[HeldRange]:
    """Yield what is held, by timeline and oldest first; two ranges of one timeline have a hole between them."""
    for held_timeline in timelines(archive) if timeline is None else [timeline]:
        first: WalSegment | None = None
        last: WalSegment | None = None
        for segment in segments(archive, held_timeline):
            if first is None or last is None:
                first = segment
            elif segment.number != last.number + 1:
                yield HeldRange(first, last)
                first = segment
            last = segment
        if first is not None and last is not None:
            yield HeldRange(first, last)


def segments(archive: WalArchive, timeline: Timeline, *, start: Lsn | None = None) -> Iterator[WalSegment]:
    """Yield the complete segments of *timeline* in order, from the one that holds *start* on."""
    lowest = 0 if start is None else start // archive.segment_size
    for file in files(archive, timeline, start=start):
        if is_segment_name(file.name):
            # A name that cannot exist with this segment size is not WAL of this cluster, and counts as not held.
            with contextlib.suppress(FormatError):
                segment = WalSegment.parse(file.name, size=archive.segment_size)
                if segment.number >= lowest:
                    yield segment


def files(archive: WalArchive, timeline: Timeline, *, start: Lsn | None = None) -> Iterator[ArchivedFile]:
    """
    Yield every file of *timeline* in the order of the names, its history file first.

    Args:
        archive: Where to look.
        timeline: Whose files.
        start: Leave out directories in which all WAL lies before it.
    """
    with archive.opened_root() as root:
        yield from _listed(root, timeline.hex, is_history_name)
        for directory in _subdirectories(root, timeline.hex, 16):
            if start is None or int(directory[8:], 16) >= start >> 32:
                yield from _listed(root, f"{timeline.hex}/{directory}", _is_of_a_segment)


def partial_segments(archive: WalArchive, timeline: Timeline) -> list[WalSegment]:
    """Return the segments of *timeline* that are held in part only, in order."""
    return [
        WalSegment.parse(file.name.removesuffix(PARTIAL_SUFFIX), size=archive.segment_size)
        for file in files(archive, timeline)
        if is_partial_name(file.name)
    ]


def held_through(archive: WalArchive, timeline: Timeline, from_lsn: Lsn) -> Lsn:
    """Return the LSN up to which *timeline* is held without a hole from *from_lsn* on; *from_lsn* when it is not."""
    end = from_lsn
    expected = WalSegment.containing(from_lsn, timeline=timeline, size=archive.segment_size)
    for segment in segments(archive, timeline, start=from_lsn):
        if segment != expected:
            break
        end = segment.end_lsn
        expected = segment.next()
    return end


def missing(archive: WalArchive, wanted: Iterable[WalSegment]) -> Iterator[WalSegment]:
    """Yield those of the *wanted* segments that are not held as complete ones; fast when they come in order."""
    directory = ""
    held: set[str] = set()
    for segment in wanted:
        name = segment.name
        if name[:16] != directory:
            directory = name[:16]
            with archive.opened_root() as root:
                held = {file.name for file in _listed(root, f"{name[:8]}/{directory}", is_segment_name)}
        if name not in held:
            yield segment


def _subdirectories(root: int, path: str, name_length: int) -> list[str]:
    """Return the directories in *path* whose name is of *name_length* hexadecimal digits, sorted."""
    return [
        name for name, _ in _scan(root, path) if len(name) == name_length and all(c in "0123456789ABCDEF" for c in name)
    ]


def _is_of_a_segment(name: str) -> bool:
    return is_segment_name(name) or is_partial_name(name) or is_backup_label_name(name)


def _listed(root: int, path: str, wanted: Callable[[str], bool]) -> Iterator[ArchivedFile]:
    for stored_name, size in _scan(root, path):
        name = stored_name.removesuffix(STORED_SUFFIX)
        if name != stored_name and wanted(name):
            yield ArchivedFile(name, size)


def _scan(root: int, path: str) -> list[tuple[str, int]]:
    """Return name and size of what is in the directory *path*, sorted by name; nothing when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise VaultError(f"cannot list {path} of the WAL archive: {error.strerror}") from error
    try:
        return sorted(_names_and_sizes(fd))
    except OSError as error:
        raise VaultError(f"cannot list {path} of the WAL archive: {error.strerror}") from error
    finally:
        os.close(fd)


def _names_and_sizes(fd: int) -> Iterator[tuple[str, int]]:
    with os.scandir(fd) as entries:
        for entry in entries:
            # Somebody may remove a file between the listing and the look at it.
            with contextlib.suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False).st_size
