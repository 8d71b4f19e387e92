"""
Segments drawn from the archive before the server asks for them.

Each lies in the directory where the server will want it, complete and checked, as a file without a name. It takes no
memory, and vanishes with this process. Before it is delivered the archive is asked whether it still holds the same
file.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.errors import PgkeepError
from pgkeep.pg.wal import WalSegment, is_segment_name
from pgkeep.vault.unnamed_file import UnnamedFile
from pgkeep.vault.wal_archive import StoredIdentity, WalArchive, delivered_file_mode, target_errors

AHEAD_BYTES = 128 << 20
MAX_AHEAD = 4

# Where less than this many times the read-ahead is free, the space is the server's.
_SPARE_TIMES = 8


@dataclass(eq=False)
class Fetched:
    """
    One file of the archive, in the target's directory and without a name.

    Attributes:
        name: As the archive calls it.
        directory: Device and inode of the directory that it lies in.
        fd: Open descriptor of the file; -1 while there is none.
        stored: Which file of the archive it was; None when that is proved absent, or the fetch failed.
    """

    name: str
    directory: tuple[int, int]
    fd: int = -1
    stored: StoredIdentity | None = None
    is_dropped: bool = False
    """Whether nobody wants it any more, although it is still being fetched."""
    done: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """Let the file vanish, unless somebody gave it a name."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class NoUnnamedFiles(Exception):
    """The file system of the target does not know files without a name."""


class WalPrefetch:
    """
    Fetches a file now, and the segments after it in a thread of its own.

    Args:
        archive: Where from.
        ahead_bytes: Most that lies waiting, in bytes; one segment when that is more.
    """

    def __init__(self, archive: WalArchive, *, ahead_bytes: int = AHEAD_BYTES) -> None:
        self._archive = archive
        self._depth = max(1, min(MAX_AHEAD, ahead_bytes // archive.segment_size)) if ahead_bytes else 0
        self._changed = threading.Condition()
        self._wanted: list[tuple[Fetched, Path]] = []
        self._fetched: dict[tuple[str, tuple[int, int]], Fetched] = {}
        self._following: WalSegment | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="wal-prefetch", daemon=True)
        self._thread.start()

    def fetch(self, name: str, target: Path) -> Fetched | None:
        """
        Return *name* as a complete file beside *target*, the caller's to close; None when it is proved absent.

        Raises:
            NoUnnamedFiles: Such a file cannot be made there.
            PgkeepError: As ``WalArchive.fetch_into``.
        """
        directory_fd = self._open_directory(name, target)
        try:
            status = os.fstat(directory_fd)
            key = (name, (status.st_dev, status.st_ino))
            with self._changed:
                ahead = self._fetched.pop(key, None)
                if ahead is not None and any(wanted is ahead for wanted, _ in self._wanted):
                    self._wanted = [(wanted, path) for wanted, path in self._wanted if wanted is not ahead]
                    ahead = None
            if ahead is not None:
                ahead.done.wait()
                if ahead.stored is not None and self._archive.identify(name) == ahead.stored:
                    return ahead
                ahead.close()
            return self._fetch_now(Fetched(name, key[1]), directory_fd, target)
        finally:
            os.close(directory_fd)

    def fetch_ahead_of(self, name: str, target: Path) -> None:
        """
        Begin to fetch the segments after *name*, when the one before it was asked for last: that is how replay reads.

        What lies waiting and is none of them is dropped.
        """
        if not is_segment_name(name) or not self._depth:
            return
        segment = WalSegment.parse(name, size=self._archive.segment_size)
        is_next, self._following = segment == self._following, segment.next()
        if not is_next:
            self.drop()
            return
        directory_fd = self._open_directory(name, target)
        try:
            status = os.fstat(directory_fd)
            space = os.fstatvfs(directory_fd)
        finally:
            os.close(directory_fd)
        key = (status.st_dev, status.st_ino)
        if space.f_bavail * space.f_frsize < _SPARE_TIMES * self._depth * self._archive.segment_size:
            self.drop()
            return
        names = []
        for _ in range(self._depth):
            segment = segment.next()
            names.append(segment.name)
        with self._changed:
            self._drop_others({(next_name, key) for next_name in names})
            for next_name in names:
                if (next_name, key) not in self._fetched:
                    fetched = Fetched(next_name, key)
                    self._fetched[next_name, key] = fetched
                    self._wanted.append((fetched, target))
            self._changed.notify_all()

    def drop(self) -> None:
        """Let go of everything that lies waiting."""
        with self._changed:
            self._drop_others(set())

    def close(self) -> None:
        """Let go of everything, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.drop()

    def _drop_others(self, kept: set[tuple[str, tuple[int, int]]]) -> None:
        self._wanted = [(wanted, path) for wanted, path in self._wanted if (wanted.name, wanted.directory) in kept]
        for key in [key for key in self._fetched if key not in kept]:
            fetched = self._fetched.pop(key)
            fetched.is_dropped = True
            if fetched.done.is_set():
                fetched.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._wanted)
                if self._closing:
                    return
                fetched, target = self._wanted.pop(0)
            self._fetch_ahead(fetched, target)

    def _fetch_ahead(self, fetched: Fetched, target: Path) -> None:
        try:
            directory_fd = self._open_directory(fetched.name, target)
            try:
                status = os.fstat(directory_fd)
                if (status.st_dev, status.st_ino) == fetched.directory:
                    self._fetch_now(fetched, directory_fd, target)
            finally:
                os.close(directory_fd)
        except (PgkeepError, NoUnnamedFiles):
            # Whoever asks for the file meets the error again, if it is still there.
            fetched.stored = None
        with self._changed:
            fetched.done.set()
            key = (fetched.name, fetched.directory)
            if fetched.stored is None and self._fetched.get(key) is fetched:
                # Absent now is not absent for ever.
                del self._fetched[key]
            if fetched.stored is None or fetched.is_dropped:
                fetched.close()

    def _fetch_now(self, fetched: Fetched, directory_fd: int, target: Path) -> Fetched | None:
        if self._archive.identify(fetched.name) is None:
            return None
        with target_errors(fetched.name, target):
            file = UnnamedFile(directory_fd, file_mode=delivered_file_mode(directory_fd))
        with file:
            if not file.is_unnamed:
                raise NoUnnamedFiles
            fetched.stored = self._archive.fetch_into(fetched.name, file.fd, target)
            if fetched.stored is None:
                return None
            fetched.fd = os.dup(file.fd)
        return fetched

    @staticmethod
    def _open_directory(name: str, target: Path) -> int:
        with target_errors(name, target):
            return os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
