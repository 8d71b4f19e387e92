"""
Locks of a cluster in the vault, held by the kernel: whoever dies holds nothing any more.

``lock`` is shared by backups and readers and exclusive for deletes; ``backup.lock`` is held by the one job that writes
a backup. Beside them, ``holders/`` has a file for each holder, locked by it, so that a message can say who is there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from pgkeep.errors import VaultBusy, VaultError

CLUSTER_LOCK = "lock"
BACKUP_LOCK = "backup.lock"
HOLDERS_DIRECTORY = "holders"

_POLL_SECONDS = 0.05
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
_counter = itertools.count()


class Lock:
    """
    A held lock; use it as a context manager, or call ``release``.

    Args:
        directory: The cluster's directory.
        name: ``CLUSTER_LOCK`` or ``BACKUP_LOCK``.
        shared: Whether others may share it.
        verb: What the holder does, for messages: ``backup``, ``expire``.
        wait_seconds: How long to wait for the holders to finish.

    Raises:
        VaultBusy: Somebody holds it; the message says who.
        VaultError: The lock cannot be taken for another reason.
    """

    def __init__(self, directory: Path, name: str, *, shared: bool, verb: str, wait_seconds: float = 0.0) -> None:
        self._holders = directory / HOLDERS_DIRECTORY
        self._name = name
        self._holder_fd = -1
        self._holder_path: Path | None = None
        self._fd = _open_lock(directory / name, shared=shared)
        try:
            self._take(directory, shared=shared, wait_seconds=wait_seconds)
            self._announce(verb)
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let go; may be called again."""
        if self._holder_path is not None:
            with contextlib.suppress(OSError):
                self._holder_path.unlink()
            self._holder_path = None
        for fd in (self._holder_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._holder_fd = self._fd = -1

    def _take(self, directory: Path, *, shared: bool, wait_seconds: float) -> None:
        if self._fd < 0:
            return
        deadline = time.monotonic() + wait_seconds
        while not _try_flock(self._fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            left = deadline - time.monotonic()
            if left <= 0:
                holders = "; ".join(self._live_holders()) or "a process that has not said its name"
                what = "being backed up" if self._name == BACKUP_LOCK else "in use"
                raise VaultBusy(
                    f"cluster {directory.name} of the vault is {what} by {holders}", hint="try again when it is done"
                )
            time.sleep(min(left, _POLL_SECONDS))

    def _announce(self, verb: str) -> None:
        since = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        who = {"lock": self._name, "verb": verb, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
        unique = f"{os.getpid()}-{next(_counter)}-{time.time_ns():x}"
        temporary, path = self._holders / f".{unique}", self._holders / f"{unique}.json"
        try:
            self._holders.mkdir(mode=0o700, exist_ok=True)
            self._holder_fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            # Locked before it has its name, so that nobody takes it for a dead holder's.
            fcntl.flock(self._holder_fd, fcntl.LOCK_EX)
            os.write(self._holder_fd, json.dumps(who).encode())
            temporary.rename(path)
            self._holder_path = path
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            # Who reads a vault that it cannot write holds the lock without a name.
            if error.errno not in _UNWRITABLE:
                raise VaultError(f"cannot write {path}: {error.strerror}") from error

    def _live_holders(self) -> Iterator[str]:
        """Yield who holds the lock, and tidy up after the dead."""
        try:
            paths = sorted(self._holders.glob("*.json"))
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _try_flock(fd, fcntl.LOCK_SH):
                        path.unlink()
                        continue
                    who = json.loads(os.read(fd, 4096))
                finally:
                    os.close(fd)
                if who["lock"] == self._name:
                    yield f"{who['verb']} (process {who['pid']} on {who['host']}, since {who['since']})"


def is_locked(path: Path) -> bool:
    """Tell whether a live process holds a lock on the file at *path*; False when there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise VaultError(f"cannot read {path}: {error.strerror}") from error
    try:
        return not _try_flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _open_lock(path: Path, *, shared: bool) -> int:
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if not shared or error.errno not in _UNWRITABLE:
            raise VaultError(f"cannot lock {path}: {error.strerror}") from error
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # A vault that cannot be written and has no lock file: nobody can delete from it here.
        return -1
    except OSError as error:
        raise VaultError(f"cannot lock {path}: {error.strerror}") from error


def _try_flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise VaultError(f"the vault's file system cannot lock files: {error.strerror}") from error
    return True
