"""A file that has no name until it is whole, so that a process killed at any moment leaves nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".pgkeep-"
TEMPORARY_SUFFIX = ".tmp"

_ABANDONED_AFTER_SECONDS = 24 * 3600
# What openat(2) says where O_TMPFILE is not known: the kernel (EISDIR), the file system (EOPNOTSUPP), and NFS.
_NO_UNNAMED_FILES = (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)
_counter = itertools.count()


class UnnamedFile:
    """
    A new file in a directory, open for reading and writing.

    Where the file system knows ``O_TMPFILE`` it vanishes with its last descriptor. Elsewhere it has a temporary name,
    ``.pgkeep-PID-N.tmp``; one that a killed process left is removed a day later by whoever writes there next.

    Args:
        directory: Descriptor of the directory; stays the caller's.
        file_mode: Permission bits, whatever the umask.
    """

    def __init__(self, directory: int, *, file_mode: int = 0o600) -> None:
        self._directory = directory
        self._temporary_name = ""
        try:
            self.fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, file_mode, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
            _remove_abandoned(directory)
            self._temporary_name = _temporary_name()
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            self.fd = os.open(self._temporary_name, flags, file_mode, dir_fd=directory)
        os.fchmod(self.fd, file_mode)

    @property
    def is_unnamed(self) -> bool:
        """Whether the kernel removes it when nobody holds it open."""
        return not self._temporary_name

    def publish(self, name: str) -> None:
        """Give it *name*; raise FileExistsError when something else has that name."""
        source = self._temporary_name or f"/proc/self/fd/{self.fd}"
        # With a directory descriptor Python calls linkat(2) and passes AT_SYMLINK_FOLLOW; without one it does not.
        os.link(source, name, src_dir_fd=self._directory, dst_dir_fd=self._directory, follow_symlinks=self.is_unnamed)
        self._remove_temporary_name()

    def publish_over(self, name: str) -> None:
        """Give it *name* in one step, in place of what had that name."""
        if self.is_unnamed:
            self._temporary_name = _temporary_name()
            os.link(
                f"/proc/self/fd/{self.fd}",
                self._temporary_name,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
                follow_symlinks=True,
            )
        try:
            os.rename(self._temporary_name, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            self._remove_temporary_name()
            raise
        self._temporary_name = ""

    def close(self) -> None:
        """Close it; it is gone unless it was published."""
        self._remove_temporary_name()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> UnnamedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remove_temporary_name(self) -> None:
        if self._temporary_name:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary_name, dir_fd=self._directory)
            self._temporary_name = ""


def inherit_owner(fd: int, directory: int) -> None:
    """Give what root has made, open as *fd*, to the owner of the *directory* that it is in, who must get on with it."""
    if os.geteuid() == 0:
        owner = os.fstat(directory)
        os.fchown(fd, owner.st_uid, owner.st_gid)


def write_all(fd: int, content: bytes | bytearray | memoryview) -> None:
    """Write all of *content* at the current position."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def write_durably(path: Path, content: bytes) -> None:
    """Put *content* in place of what *path* held, in one step and on disk; raise OSError when that cannot be done."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.closing(UnnamedFile(directory)) as file:
            write_all(file.fd, content)
            os.fsync(file.fd)
            file.publish_over(path.name)
        os.fsync(directory)
    finally:
        os.close(directory)


def sync_directory(path: Path) -> None:
    """Make durable which names a directory holds."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_temporary_name(name: str) -> bool:
    """Tell whether *name* is that of a file that is still being written, or was abandoned."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def _temporary_name() -> str:
    return f"{TEMPORARY_PREFIX}{os.getpid()}-{next(_counter)}-{time.time_ns():x}{TEMPORARY_SUFFIX}"


def _remove_abandoned(directory: int) -> None:
    oldest = time.time() - _ABANDONED_AFTER_SECONDS
    for name in _temporary_names(directory):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime < oldest:
                os.unlink(name, dir_fd=directory)


def _temporary_names(directory: int) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if is_temporary_name(entry.name):
                yield entry.name
