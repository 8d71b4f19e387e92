"""Supplies of WAL that read files on this host: an archive directory, and the server's own pg_wal."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator

from pgkeep.errors import ArchiveError, FormatError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.wal import LONG_HEADER_BYTES, WalSegment, check_wal_header
from pgkeep.server.wal_supply import FlushedWal, NotThere, WalContent, wait_until, zeros
from pgkeep.streams.item import CHUNK_BYTES, Buffer


class ArchiveDirectory:
    """
    A directory into which the server's archiver, or somebody, copies segments under their own names.

    Args:
        directory: Path on this host.
        system_identifier: The cluster's.
        cancelled: Set by another thread to end a wait.
    """

    def __init__(
        self, directory: str, *, system_identifier: SystemIdentifier, cancelled: threading.Event | None = None
    ) -> None:
        self.name = f"archive directory {directory}"
        self._directory = directory
        self._system_identifier = system_identifier
        self._cancelled = cancelled or threading.Event()

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:  # noqa: ARG002 - archived is complete
        """Wait until the archiver has brought *segment*, whole; see the protocol."""
        path = os.path.join(self._directory, segment.name)
        # A copy that is under way has not its size yet, or, where the whole length was reserved first, no header.
        if not wait_until(lambda: _size_of(path) == segment.size and _has_begun(path), deadline, self._cancelled):
            size = _size_of(path)
            found = "it is not there" if size is None else f"it is incomplete, {size} bytes of {segment.size}"
            raise NotThere(
                f"WAL segment {segment.name} cannot be had from {self.name}: {found}",
                hint="look for a failing archive_command in the server's log, or raise switch_wal_timeout",
            )
        return self._content(path, segment)

    def history(self, timeline: Timeline) -> bytes | None:
        """Return a history file; see the protocol."""
        return _read_if_there(os.path.join(self._directory, timeline.history_file_name))

    def close(self) -> None:
        """Hold nothing."""

    def _content(self, path: str, segment: WalSegment) -> WalContent:
        def chunks() -> Iterator[Buffer]:
            file = _open(path)
            if file is None:
                raise NotThere(f"WAL segment {segment.name} cannot be had from {self.name}: it has vanished")
            with file:
                yield from _file_chunks(file, segment, segment.size)

        file = _open(path)
        if file is None:
            raise NotThere(f"WAL segment {segment.name} cannot be had from {self.name}: it has vanished")
        with file:
            check_wal_header(file.read(LONG_HEADER_BYTES) or b"", segment, system_identifier=self._system_identifier)
        return WalContent(segment, segment.end_lsn, self.name, chunks, is_servers_own=False)


class LocalWal:
    """
    The server's own pg_wal, on this host.

    Only WAL that a slot or a backup keeps is safe from being recycled while it is read; what was recycled is noticed.

    Args:
        directory: Path of pg_wal, following the link if it is one.
        system_identifier: The cluster's.
        flushed: Returns up to where WAL is on disk; beyond that a file holds what is left of an older segment.
        cancelled: Set by another thread to end a wait.
    """

    def __init__(
        self,
        directory: str,
        *,
        system_identifier: SystemIdentifier,
        flushed: Callable[[], Lsn],
        cancelled: threading.Event | None = None,
    ) -> None:
        self.name = f"WAL directory {directory}"
        self._directory = directory
        self._system_identifier = system_identifier
        self._flush = FlushedWal(self.name, flushed, cancelled or threading.Event())

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:
        """Wait until *segment* is flushed far enough; see the protocol."""
        held_until = self._flush.wait_for(segment, through=through, deadline=deadline)
        path = os.path.join(self._directory, segment.name)
        file = _open(path)
        if file is None:
            raise self._gone(segment)
        with file:
            check_wal_header(file.read(LONG_HEADER_BYTES) or b"", segment, system_identifier=self._system_identifier)
        return WalContent(segment, held_until, self.name, lambda: self._chunks(path, segment, held_until))

    def history(self, timeline: Timeline) -> bytes | None:
        """Return a history file; see the protocol."""
        return _read_if_there(os.path.join(self._directory, timeline.history_file_name))

    def close(self) -> None:
        """Hold nothing."""

    def _chunks(self, path: str, segment: WalSegment, held_until: Lsn) -> Iterator[Buffer]:
        file = _open(path)
        if file is None:
            raise self._gone(segment)
        with file:
            yield from _file_chunks(file, segment, held_until - segment.start_lsn)
            # The server renames a file that it needs no more and writes it anew from its beginning.
            first = os.pread(file.fileno(), LONG_HEADER_BYTES, 0)
            try:
                check_wal_header(first, segment, system_identifier=self._system_identifier)
            except FormatError:
                raise self._gone(segment) from None

    def _gone(self, segment: WalSegment) -> NotThere:
        return NotThere(
            f"WAL segment {segment.name} cannot be had from {self.name}: the server has recycled it",
            hint="set archive_dir to where the server archives, or slot_name, so that WAL is kept between jobs",
        )


def _open(path: str) -> io.FileIO | None:
    """Return the file at *path*, None when it is not there; raise ArchiveError when it may not be read."""
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}") from error


def _size_of(path: str) -> int | None:
    file = _open(path)
    if file is None:
        return None
    with file:
        return os.fstat(file.fileno()).st_size


def _has_begun(path: str) -> bool:
    file = _open(path)
    if file is None:
        return False
    with file:
        return any(file.read(LONG_HEADER_BYTES) or b"")


def _read_if_there(path: str) -> bytes | None:
    file = _open(path)
    if file is None:
        return None
    with file:
        return file.readall()


def _file_chunks(file: io.FileIO, segment: WalSegment, held_bytes: int) -> Iterator[Buffer]:
    """Yield the first *held_bytes* of a file, and zeros up to the segment's size."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, segment.size)))
    offset = 0
    while offset < held_bytes:
        length = os.preadv(file.fileno(), [buffer[: held_bytes - offset]], offset)
        if not length:
            raise NotThere(f"WAL segment {segment.name} was cut to {offset} bytes while it was read")
        yield buffer[:length]
        offset += length
    yield from zeros(segment.size - offset)
