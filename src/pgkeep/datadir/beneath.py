"""
Writing beneath one directory and nowhere else.

Every component of a path is opened from its parent's descriptor without following links (``openat`` with
``O_NOFOLLOW``), so that neither a path in a backup nor a link that somebody puts into the directory meanwhile leads out
of it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path

from pgkeep.datadir.owner import Owner
from pgkeep.errors import FormatError, RestoreRefused

CACHED_DIRECTORIES = 128
"""How many descriptors of directories are kept open."""

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_EXISTING_FILE_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def safe_parts(path: str) -> list[str]:
    """Return the components of the relative *path*; raise FormatError when one would lead elsewhere."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise FormatError(f'path in the backup leads out of its place: "{path}"')
    return parts


class Beneath:
    """
    A directory that files are put into; every method may be called from any thread.

    What is made belongs to *owner* when one is given; missing directories on the way to a file are made.
    """

    def __init__(self, root: Path, *, owner: Owner | None = None) -> None:
        """Open *root*, which exists; links on the way to it are the caller's choice and are followed."""
        self.root = root
        self._owner = owner
        self._lock = threading.Lock()
        self._top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._known: OrderedDict[str, int] = OrderedDict()

    @property
    def identity(self) -> str:
        """By what the directory that was opened is told from any other: ``device:inode``."""
        status = os.fstat(self._top)
        return f"{status.st_dev}:{status.st_ino}"

    def create_file(self, path: str) -> int:
        """Return a descriptor of a new file at *path*, mode 0600, open for writing; what was there is replaced."""
        directory, _, name = path.rpartition("/")
        safe_parts(path)
        # The descriptor of a directory may be closed by another thread as soon as the lock is given back.
        with self._lock:
            parent = self._directory(directory)
            try:
                descriptor = os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent)
            except FileExistsError:
                os.unlink(name, dir_fd=parent)
                descriptor = os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent)
        if self._owner is not None:
            os.fchown(descriptor, self._owner.uid, self._owner.gid)
        return descriptor

    def open_file(self, path: str) -> int:
        """Return a descriptor, open for writing, of the regular file at *path*; raise FileNotFoundError without one."""
        directory, _, name = path.rpartition("/")
        safe_parts(path)
        with self._lock:
            descriptor = os.open(name, _EXISTING_FILE_FLAGS, dir_fd=self._directory(directory))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return descriptor

    def make_directory(self, path: str, *, file_mode: int = 0o700) -> None:
        """Make the directory at *path*, and those above it, or give the one that is there its permission bits."""
        safe_parts(path)
        with self._lock:
            os.fchmod(self._directory(path), file_mode)

    def make_link(self, path: str, to: str) -> None:
        """Make a symbolic link at *path*, in place of a file or link that is there."""
        directory, _, name = path.rpartition("/")
        safe_parts(path)
        with self._lock:
            parent = self._directory(directory)
            try:
                os.symlink(to, name, dir_fd=parent)
            except FileExistsError:
                os.unlink(name, dir_fd=parent)
                os.symlink(to, name, dir_fd=parent)
            if self._owner is not None:
                os.chown(name, self._owner.uid, self._owner.gid, dir_fd=parent, follow_symlinks=False)

    def rename(self, path: str, name: str) -> None:
        """Give the file at *path* another *name* in its directory; a file that has that name is replaced."""
        directory, _, old_name = path.rpartition("/")
        safe_parts(path)
        safe_parts(name)
        with self._lock:
            parent = self._directory(directory)
            os.rename(old_name, name, src_dir_fd=parent, dst_dir_fd=parent)

    def remove_tree(self, path: str) -> None:
        """Remove what is at *path*, whatever it is; nothing there is fine."""
        directory, _, name = path.rpartition("/")
        safe_parts(path)
        with self._lock:
            self._forget()
            _remove(name, self._directory(directory))

    def clear(self, *, keep: frozenset[str] = frozenset()) -> None:
        """Remove everything in the directory but the names in *keep*."""
        with self._lock:
            self._forget()
            for name in os.listdir(self._top):
                if name not in keep:
                    _remove(name, self._top)

    def forget(self) -> None:
        """Take note that directories may have been removed by others."""
        with self._lock:
            self._forget()

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            self._forget()
            if self._top >= 0:
                os.close(self._top)
                self._top = -1

    def _forget(self) -> None:
        while self._known:
            os.close(self._known.popitem()[1])

    def _directory(self, path: str) -> int:
        if not path:
            return self._top
        descriptor = self._known.get(path)
        if descriptor is not None:
            self._known.move_to_end(path)
            return descriptor
        above, _, name = path.rpartition("/")
        parent = self._directory(above)
        try:
            descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=parent)
            descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
            if self._owner is not None:
                os.fchown(descriptor, self._owner.uid, self._owner.gid)
        except NotADirectoryError:
            # A link gives the same error: O_DIRECTORY is looked at before O_NOFOLLOW is.
            raise RestoreRefused(
                f"cannot restore beneath {self.root / path}: it is a link or a file, expected a directory",
                hint="nothing else may write into the target of a restore",
            ) from None
        self._known[path] = descriptor
        if len(self._known) > CACHED_DIRECTORIES:
            # The oldest is never the one just opened, nor its parent, which was touched a moment ago.
            os.close(self._known.popitem(last=False)[1])
        return descriptor


def _remove(name: str, parent: int) -> None:
    """Remove *name* in the directory *parent*, with everything in it, following no link into no other file system."""
    try:
        os.unlink(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        # unlink(2) of a directory: EISDIR on Linux, EPERM elsewhere; a real EPERM comes back from rmdir.
        pass
    descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
    try:
        if os.fstat(descriptor).st_dev != os.fstat(parent).st_dev:
            raise OSError(errno.EXDEV, "another file system is mounted there", name)
        for child in os.listdir(descriptor):
            _remove(child, descriptor)
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)
