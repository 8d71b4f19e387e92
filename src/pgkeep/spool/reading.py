"""
The spool of one cluster as one who ships from it sees it, while a receiver may go on writing there.

Nothing is locked: a receiver only ever adds bytes behind those that are there, and gives a whole segment its name. What
is read of a segment that is being received is made durable first; what was taken into a backup cannot be lost again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import ArchiveError, FormatError, VaultError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import (
    LONG_HEADER_BYTES,
    PARTIAL_SUFFIX,
    WalSegment,
    check_wal_header,
)
from pgkeep.pg.wal_reader import WalReader
from pgkeep.spool.directory import IDENTITY_FILE, segments_among
from pgkeep.spool.segment_file import first_contradiction, written_length
from pgkeep.streams.item import Buffer

Pieces = Callable[[], Iterator[Buffer]]
"""Yields the content of a segment, from its beginning; may be called once more."""

_PIECE_BYTES = 1 << 20
_LARGEST_PAGE = 65536


@dataclass(frozen=True, slots=True)
class HeldSegment:
    """
    A segment of the spool, open: whoever removes its name meanwhile does not take it away.

    Attributes:
        segment: Which one.
        is_complete: Whether all of it is there.
        end: The LSN behind what is there; of a partial one, behind the last byte that was received.
        received_ns: When the last of it was received, in nanoseconds of the epoch, or later.
    """

    segment: WalSegment
    is_complete: bool
    end: Lsn
    received_ns: int
    _fd: int

    def pieces(self) -> Iterator[Buffer]:
        """Yield the segment, as long as any, with zeros behind its end; may be called again until it is closed."""
        offset, known = 0, self.end - self.segment.start_lsn
        while offset < self.segment.size:
            count = min(_PIECE_BYTES, self.segment.size - offset)
            piece = os.pread(self._fd, max(0, min(count, known - offset)), offset)
            if len(piece) < min(count, known - offset):
                raise VaultError(f"{self.segment.name} in the spool is shorter than it was")
            yield piece + bytes(count - len(piece))
            offset += count

    def check(self, pieces: Iterator[Buffer]) -> Iterator[Buffer]:
        """
        Yield *pieces*, the same segment from somewhere else.

        Raises:
            ArchiveError: It is not the same, as far as it was received: this is WAL of another history.
        """
        offset, known = 0, self.end - self.segment.start_lsn
        for piece in pieces:
            count = max(0, min(len(piece), known - offset))
            if first_contradiction(os.pread(self._fd, count, offset), bytes(piece[:count])) is not None:
                raise ArchiveError(
                    f"the server has other WAL in {self.segment.name} than was received before",
                    hint="the server was restored or promoted without a new timeline, or is another one",
                )
            offset += len(piece)
            yield piece

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class SpoolView:
    """
    A spool to be read.

    Args:
        path: Its directory.
        system_identifier: Whose WAL it is.
        segment_size: Bytes.
    """

    def __init__(self, path: Path, *, system_identifier: SystemIdentifier, segment_size: int) -> None:
        self.path = path
        self.system_identifier = system_identifier
        self.segment_size = segment_size

    @classmethod
    def found(cls, path: Path) -> SpoolView | None:
        """Return the spool at *path*; None when there is none; raise VaultError when it cannot be read."""
        try:
            identity = json.loads((path / IDENTITY_FILE).read_text(encoding="utf-8"))
            return cls(
                path,
                system_identifier=SystemIdentifier(int(identity["system_identifier"])),
                segment_size=int(identity["segment_size"]),
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise VaultError(
                f"cannot read the spool {path}: {error.strerror}",
                hint="pgkeep receive and the plugin's backend must run as the same user",
            ) from error
        except (ValueError, KeyError) as error:
            raise VaultError(f"{path / IDENTITY_FILE} is damaged: {error}") from error

    def segments(self) -> list[WalSegment]:
        """Return the segments of which anything is there, by timeline and then in order."""
        try:
            names = os.listdir(self.path)
        except OSError as error:
            raise VaultError(f"cannot read the spool {self.path}: {error.strerror}") from error
        return [spooled.segment for spooled in segments_among(names, segment_size=self.segment_size)]

    def history(self, timeline: Timeline) -> bytes | None:
        """Return the history file of *timeline*; None when it is not here."""
        try:
            return (self.path / timeline.history_file_name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VaultError(f"cannot read the spool {self.path}: {error.strerror}") from error

    def history_of(self, timeline: Timeline) -> TimelineHistory:
        """Return the history of *timeline*; raise VaultError when the spool does not have it."""
        if timeline == 1:
            return TimelineHistory.single(timeline)
        content = self.history(timeline)
        if content is None:
            raise VaultError(
                f"the spool {self.path} has WAL of timeline {timeline}, but no {timeline.history_file_name}"
            )
        return TimelineHistory.parse(content, timeline=timeline)

    def open(self, segment: WalSegment) -> HeldSegment | None:
        """
        Open *segment*, whole or as far as it was received; None when nothing of it is there.

        Raises:
            FormatError: What is there is not that segment of this cluster.
            VaultError: It cannot be read.
        """
        for is_complete, name in ((True, segment.name), (False, segment.name + PARTIAL_SUFFIX), (True, segment.name)):
            # The receiver may give it its name between the two looks.
            try:
                fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise VaultError(f"cannot read {self.path / name}: {error.strerror}") from error
            try:
                return self._opened(segment, fd, is_complete=is_complete)
            except BaseException:
                os.close(fd)
                raise
        return None

    def remove(self, name: str) -> bool:
        """Remove the file *name*, which a backup holds; tell whether it was there."""
        try:
            os.unlink(self.path / name)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise VaultError(f"cannot remove {self.path / name}: {error.strerror}") from error
        return True

    def _opened(self, segment: WalSegment, fd: int, *, is_complete: bool) -> HeldSegment | None:
        size = os.fstat(fd).st_size
        if size < segment.size:
            # Its room is not taken yet, so nothing was received.
            os.close(fd)
            return None
        length = segment.size if is_complete else written_length(fd, size)
        if not is_complete:
            os.fdatasync(fd)
            if length < LONG_HEADER_BYTES:
                os.close(fd)
                return None
        check_wal_header(os.pread(fd, LONG_HEADER_BYTES, 0), segment, system_identifier=self.system_identifier)
        # The receiver sets the other time of the file to that of which it knows that nothing before it is missing.
        received_ns = os.fstat(fd).st_ctime_ns
        return HeldSegment(segment, is_complete, Lsn(segment.start_lsn + length), received_ns, fd)


def record_end(segment: WalSegment, pieces: Pieces, previous: Pieces | None) -> Lsn:
    """
    Return the LSN behind the last whole record of *segment*, which may end anywhere.

    Args:
        segment: Which one.
        pieces: Yields its content.
        previous: Yields that of the segment before it, where there is one: a record that begins in there and ends in
            *segment* counts, since it may be a commit.
    """
    before = WalSegment(segment.timeline, segment.number - 1, segment.size)
    for parts in ([(before, previous), (segment, pieces)] if previous is not None else [], [(segment, pieces)]):
        if parts:
            with contextlib.suppress(FormatError):
                found = _last_record(parts)
                if found > segment.start_lsn:
                    return min(found, segment.end_lsn)
    return segment.start_lsn


def _last_record(parts: Sequence[tuple[WalSegment, Pieces]]) -> Lsn:
    reader = WalReader(checks_all=True)
    for segment, pieces in parts:
        reader.enter(segment)
        for piece in _whole_pages(pieces()):
            reader.feed(piece)
    return reader.end


def _whole_pages(pieces: Iterator[Buffer]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        content = rest + bytes(piece)
        whole = len(content) - len(content) % _LARGEST_PAGE
        if whole:
            yield content[:whole]
        rest = content[whole:]
    if rest:
        yield rest
