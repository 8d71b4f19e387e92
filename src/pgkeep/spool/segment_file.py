"""
One WAL segment while it is received: ``NAME.partial``, which becomes ``NAME`` when its last byte is durable.

The file has the segment's full size from the beginning, and zeros where nothing was received yet. A receiver that comes
back receives the segment again from its first byte, over what it has: the bytes must be the same ones.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from pgkeep.errors import ArchiveError
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment

_PIECE_BYTES = 1 << 20


class SegmentFile:
    """
    A segment that is being received; one thread writes, any may ask how much is durable.

    Args:
        directory: Descriptor of the spool's directory; stays the caller's.
        segment: Which one.

    Attributes:
        segment: The same.
        written: Bytes written from the beginning on, without a hole.
        durable: Of those, the bytes that are on disk.
        known: Bytes that were in the file when it was opened, as far as they are not zeros.
    """

    def __init__(self, directory: int, segment: WalSegment) -> None:
        """Open what is there of *segment*, or make its file; its name and its room are durable when this returns."""
        self.segment = segment
        self.written = 0
        self.durable = 0
        self._directory = directory
        self._name = segment.name + PARTIAL_SUFFIX
        self._fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            size = os.fstat(self._fd).st_size
            self.known = written_length(self._fd, size)
            if size != segment.size or not self.known:
                os.ftruncate(self._fd, min(size, segment.size))
                # The room is taken now: what cannot be written must be known before WAL is asked for.
                os.posix_fallocate(self._fd, 0, segment.size)
                os.fsync(self._fd)
                os.fsync(directory)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> SegmentFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def position(self) -> Lsn:
        """The LSN behind the last byte that was written."""
        return Lsn(self.segment.start_lsn + self.written)

    def write(self, data: memoryview) -> None:
        """
        Write the next bytes.

        Raises:
            ArchiveError: The file had other bytes there: this is WAL of another history.
        """
        if self.written < self.known:
            self._compare(data)
        offset = self.written
        while data:
            count = os.pwrite(self._fd, data, offset)
            data = data[count:]
            offset += count
        self.written = offset

    def flush(self) -> bool:
        """Make durable what was written; return whether there was anything to do."""
        if self.durable == self.written:
            return False
        written = self.written
        os.fdatasync(self._fd)
        self.durable = written
        return True

    def date(self, time_ns: int) -> None:
        """Give the file, to which nothing more is written now, the time before which no commit is missing."""
        os.utime(self._fd, ns=(time_ns, time_ns))

    def complete(self) -> None:
        """Give the segment, whose last byte was written, its name; durable when this returns."""
        self.flush()
        name = self.segment.name
        with contextlib.suppress(FileNotFoundError):
            held = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                if not _is_equal(held, self._fd):
                    raise ArchiveError(
                        f"the spool already holds {name} with other content than the server sends",
                        hint="the server was restored or promoted without a new timeline, or is another one",
                    )
            finally:
                os.close(held)
        os.rename(self._name, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)
        self.close()

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _compare(self, data: memoryview) -> None:
        """Hold *data* against what is there."""
        mine = bytes(data[: self.known - self.written])
        offset = first_contradiction(os.pread(self._fd, len(mine), self.written), mine)
        if offset is not None:
            raise ArchiveError(
                f"the server sends other WAL at {Lsn(self.position + offset)} on timeline {self.segment.timeline} "
                "than was received before",
                hint="the server was restored or promoted without a new timeline, or is another one: its WAL is "
                "not mixed with what is held",
            )


def first_contradiction(held: bytes, sent: bytes) -> int | None:
    """
    Return the first place where the server sends another byte than is held; None when what is held belongs to it.

    What never reached the disk before a power loss is zeros, which the server's bytes may replace.
    """
    if held == sent:
        return None
    return next((place for place, (old, new) in enumerate(zip(held, sent, strict=True)) if old and old != new), None)


def written_length(fd: int, size: int) -> int:
    """Return the length of what is in the file *fd* of *size* bytes before the zeros at its end."""
    end = size
    while end > 0:
        begin = max(0, end - _PIECE_BYTES)
        piece = os.pread(fd, end - begin, begin).rstrip(b"\0")
        if piece:
            return begin + len(piece)
        end = begin
    return 0


def _is_equal(left: int, right: int) -> bool:
    offset = 0
    while True:
        mine, other = os.pread(left, _PIECE_BYTES, offset), os.pread(right, _PIECE_BYTES, offset)
        if mine != other:
            return False
        if not mine:
            return True
        offset += len(mine)
