"""Making files durable: one barrier for a whole restore, and single small files that are never half there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pgkeep.datadir.owner import Owner

_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_fallocate = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_syncfs = getattr(_libc, "syncfs", None)
if _syncfs is not None:
    _syncfs.argtypes = [ctypes.c_int]


def has_reliable_syncfs(release: str) -> bool:
    """
    Tell whether ``syncfs`` reports write errors on a kernel of *release*, such as ``6.1.0-13-amd64``.

    Source:
        Linux 5.8, commit 735e4ae5ba28 ("vfs: track per-sb writeback errors and report them to syncfs").
    """
    numbers = release.split("-", maxsplit=1)[0].split(".")
    try:
        return (int(numbers[0]), int(numbers[1])) >= (5, 8)
    except (IndexError, ValueError):
        return False


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range of a file to disk, without waiting; a hint, which may do nothing."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, length, _SYNC_FILE_RANGE_WRITE)


def allocate(descriptor: int, size: int) -> None:
    """Take *size* bytes of room for a file where the file system can; raise OSError when there is not enough."""
    # Not posix_fallocate: where the file system has no such thing, that writes to every block instead.
    if _fallocate is None or _fallocate(descriptor, 0, 0, size) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        raise OSError(number, os.strerror(number))


class Barrier:
    """
    What was written beneath some directories becomes durable, once, at the end.

    ``syncfs`` reports a write error only to descriptors that were open when it happened: make the barrier before the
    first byte is written. Where the kernel cannot be trusted with that, ``per_file`` is true: the writer then calls
    ``fsync`` for every file that it closes, and the barrier does the directories.
    """

    def __init__(self, directories: Iterable[Path]) -> None:
        """Open each of *directories*, which exist."""
        self.per_file = _syncfs is None or not has_reliable_syncfs(os.uname().release)
        self._descriptors: list[int] = []
        self._directories = [str(directory) for directory in directories]
        devices = set()
        try:
            for directory in self._directories:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
                device = os.fstat(descriptor).st_dev
                if device in devices:
                    os.close(descriptor)
                else:
                    devices.add(device)
                    self._descriptors.append(descriptor)
        except BaseException:
            self.close()
            raise

    def sync(self) -> None:
        """Return when everything is on disk; raise OSError when something could not be written."""
        if self.per_file:
            for directory in self._directories:
                for place, _, _ in os.walk(directory):
                    sync_directory(place)
            return
        assert _syncfs is not None
        for descriptor in self._descriptors:
            if _syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise OSError(number or errno.EIO, os.strerror(number or errno.EIO))

    def close(self) -> None:
        """Close the descriptors."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def sync_directory(directory: Path | str) -> None:
    """Make the names in *directory* durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, *, owner: Owner | None = None, file_mode: int = 0o600) -> None:
    """Put *content* at *path*, all of it or nothing, durably; what was there is replaced, a link is not followed."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".pgkeep", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, file_mode)
            if owner is not None:
                os.fchown(descriptor, owner.uid, owner.gid)
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def remove_file(path: Path) -> bool:
    """Remove the file at *path*, durably; tell whether there was one."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    sync_directory(path.parent)
    return True
