"""Comparing a laid-down data directory with the record: before its server starts, every file is as the record says."""

from __future__ import annotations

import enum
import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from pgkeep.datadir.target import Target
from pgkeep.pg import data_directory as names
from pgkeep.streams.item import EXTENT_BYTES
from pgkeep.streams.record import FileEntry

LISTED_DIFFERENCES = 1_000
QUEUED_ENTRIES = 256


class DifferenceKind(enum.Enum):
    """How a file differs; the value is what a report says."""

    MISSING = "missing"
    KIND = "of another kind"
    SIZE = "of another size"
    CONTENT = "of other content"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that is not as the record says; *detail* says what was expected and what was found."""

    path: str
    kind: DifferenceKind
    detail: str

    def __str__(self) -> str:
        return f"{self.path} is {self.kind.value}" + (f": {self.detail}" if self.detail else "")


@dataclass(slots=True)
class VerifyReport:
    """
    What a comparison found.

    Attributes:
        files: Entries compared.
        bytes: Bytes of content read.
        difference_count: Entries that differ, listed or not.
        differences: At most ``LISTED_DIFFERENCES`` of them, sorted by path.
    """

    files: int = 0
    bytes: int = 0
    difference_count: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing differs."""
        return self.difference_count == 0


def verify_files(
    target: Target, entries: Iterable[FileEntry], *, root: str, workers: int = 2, ignore: frozenset[str] = frozenset()
) -> VerifyReport:
    """
    Compare the files of *target*, whose server has not been started, with *entries*.

    Args:
        target: Where they were laid down; complete or not yet.
        entries: A record's file list; read in the calling thread, a few at a time.
        root: What the virtual paths begin with.
        workers: Number of threads that read.
        ignore: Paths, without *root*, that the restore itself changed: ``pgdata/postgresql.auto.conf``.

    Raises:
        FormatError: An entry's path has no place in a data directory.
    """
    comparison = _Comparison(target)
    threads = [threading.Thread(target=comparison.run, name=f"verify-{number}") for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for entry in entries:
            path = entry.path.removeprefix(f"{root}/")
            if path not in ignore:
                comparison.submit(entry, target.place(path))
    finally:
        comparison.close()
        for thread in threads:
            thread.join()
    comparison.report.differences.sort(key=lambda difference: difference.path)
    return comparison.report


class _Comparison:
    """A bounded queue of entries, and the threads' work on each."""

    def __init__(self, target: Target) -> None:
        self.report = VerifyReport()
        self._target = target
        self._queue: deque[tuple[FileEntry, Path]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, entry: FileEntry, place: tuple[Path, str]) -> None:
        path = place[0] / place[1]
        # pg_control has its own name only once the restore is complete.
        if entry.path.endswith("/pgdata/" + names.CONTROL_FILE) and not path.exists():
            path = self._target.data_directory / names.CONTROL_FILE
        with self._changed:
            while len(self._queue) >= QUEUED_ENTRIES:
                self._changed.wait()
            self._queue.append((entry, path))
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def run(self) -> None:
        buffer = bytearray(EXTENT_BYTES)
        while (taken := self._take()) is not None:
            entry, path = taken
            try:
                size, difference = _compare(entry, path, buffer)
            except FileNotFoundError:
                size, difference = 0, Difference(entry.path, DifferenceKind.MISSING, "")
            except OSError as error:
                kind = DifferenceKind.KIND if error.errno == errno.ELOOP else DifferenceKind.UNREADABLE
                size, difference = 0, Difference(entry.path, kind, error.strerror or "")
            with self._changed:
                self.report.files += 1
                self.report.bytes += size
                if difference is not None:
                    self.report.difference_count += 1
                    if len(self.report.differences) < LISTED_DIFFERENCES:
                        self.report.differences.append(difference)

    def _take(self) -> tuple[FileEntry, Path] | None:
        with self._changed:
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            taken = self._queue.popleft()
            self._changed.notify_all()
            return taken


def _compare(entry: FileEntry, path: Path, buffer: bytearray) -> tuple[int, Difference | None]:
    """Return how many bytes were read, and how the file differs, if it does."""
    if entry.kind != "file":
        found = stat.S_IFMT(os.lstat(path).st_mode)
        expected = stat.S_IFDIR if entry.kind == "directory" else stat.S_IFLNK
        if found != expected:
            return 0, Difference(entry.path, DifferenceKind.KIND, f"expected a {entry.kind}")
        return 0, None
    # O_NONBLOCK: a pipe in the file's place must not hold the comparison up.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return 0, Difference(entry.path, DifferenceKind.KIND, "expected a file")
        if status.st_size != entry.size:
            detail = f"expected {entry.size} bytes, found {status.st_size}"
            return 0, Difference(entry.path, DifferenceKind.SIZE, detail)
        digest, offset = blake3(), 0
        while count := os.preadv(descriptor, [buffer], offset):
            digest.update(memoryview(buffer)[:count])
            offset += count
        if entry.digest and digest.hexdigest() != entry.digest:
            detail = f"expected digest {entry.digest}, found {digest.hexdigest()}"
            return offset, Difference(entry.path, DifferenceKind.CONTENT, detail)
        return offset, None
    finally:
        os.close(descriptor)
