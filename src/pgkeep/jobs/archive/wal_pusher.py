"""A few threads that push files into the WAL archive, each file once however often it is asked for."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.errors import ArchiveError, PgkeepError
from pgkeep.vault.wal_archive import Put, StoredIdentity, WalArchive
from pgkeep.vault.wal_content import FRAME_BYTES

SourceIdentity = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime of a file; renaming or writing changes it."""


@dataclass(eq=False)
class Push:
    """
    One file on its way into the archive.

    Attributes:
        path: The file.
        is_ahead: Whether nobody has asked for it yet.
        source: Which file was read; None until it was.
        stored: Which file the archive holds it in; None until it does.
    """

    path: Path
    is_ahead: bool
    source: SourceIdentity | None = None
    stored: StoredIdentity | None = None
    _result: Put | None = None
    _error: BaseException | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` returns at once."""
        return self._done.is_set()

    def wait(self) -> Put:
        """Return what became of the file when that is known, or raise what went wrong."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def succeed(self, result: Put) -> None:
        """Let those who wait have *result*."""
        self._result = result
        self._done.set()

    def fail(self, error: BaseException) -> None:
        """Let those who wait have *error*."""
        self._error = error
        self._done.set()

    def holds(self, archive: WalArchive) -> bool:
        """Tell whether the file on disk and the one in the archive are still those of this successful push."""
        if self._result is None or self.source is None or self.stored is None:
            return False
        try:
            return source_identity(os.stat(self.path)) == self.source and (
                archive.identify(self.path.name) == self.stored
            )
        except OSError:
            return False


class WalPusher:
    """
    Pushes files in the order asked for, those asked for ahead of time last.

    Args:
        archive: Where to.
        workers: Number of threads.
        compression_level: Of zstd.
    """

    def __init__(self, archive: WalArchive, *, workers: int, compression_level: int) -> None:
        self._archive = archive
        self._compression_level = compression_level
        self._changed = threading.Condition()
        self._asked: deque[Push] = deque()
        self._ahead: deque[Push] = deque()
        self._known: dict[Path, Push] = {}
        self._active = 0
        self._closing = False
        self._threads = [threading.Thread(target=self._work, name=f"wal-push-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, path: Path) -> Push:
        """Ask for *path* now; an equal push that is under way or was done ahead of time is joined."""
        with self._changed:
            push = self._known.pop(path, None)
        if push is not None and push.is_done and not push.holds(self._archive):
            push = None
        with self._changed:
            if push is None:
                push = Push(path, is_ahead=False)
                self._asked.append(push)
            elif push in self._ahead:
                self._ahead.remove(push)
                self._asked.append(push)
            self._changed.notify()
        return push

    def push(self, path: Path) -> Put:
        """Hold *path* in the archive, durably."""
        push = self.submit(path)
        if push.is_ahead:
            try:
                result = push.wait()
            except PgkeepError:
                # Ahead of its time it failed; what counts is whether it can be done now.
                return self.submit(path).wait()
            return result if push.holds(self._archive) else self.submit(path).wait()
        return push.wait()

    def submit_ahead(self, paths: Collection[Path]) -> None:
        """
        Push *paths* when nothing else is to be done; errors are told when somebody asks for the file.

        What was done ahead of time, never asked for, and is none of *paths* is forgotten.
        """
        with self._changed:
            self._known = {path: push for path, push in self._known.items() if path in paths or not push.is_done}
            for path in paths:
                if path not in self._known:
                    push = Push(path, is_ahead=True)
                    self._known[path] = push
                    self._ahead.append(push)
            self._changed.notify_all()

    @property
    def waiting_ahead(self) -> int:
        """How many files wait for being pushed ahead of time."""
        return len(self._ahead)

    def drain(self) -> None:
        """Wait until nothing is left to do."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked and not self._ahead and not self._active)

    def close(self) -> None:
        """Drop what was not begun, and end the threads."""
        with self._changed:
            self._closing = True
            for push in (*self._asked, *self._ahead):
                push.fail(ArchiveError(f"{push.path.name} was not archived: the archive service ends"))
            self._asked.clear()
            self._ahead.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> WalPusher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while (push := self._next()) is not None:
            try:
                push.succeed(push_file(self._archive, push, compression_level=self._compression_level))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the file raises it
                push.fail(error)
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def _next(self) -> Push | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._asked or self._ahead)
            if self._closing:
                return None
            self._active += 1
            return self._asked.popleft() if self._asked else self._ahead.popleft()


def push_file(archive: WalArchive, push: Push, *, compression_level: int) -> Put:
    """Hold the file of *push* in *archive*, and note which file became which."""
    path = push.path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        push.source = source_identity(status)
        if archive.has(path.name) and archive.holds(path.name, _content(fd, push)):
            result = Put.ALREADY_HELD
        else:
            result = archive.put(
                path.name, _content(fd, push), compression_level=compression_level, written_ns=status.st_mtime_ns
            )
    finally:
        os.close(fd)
    push.stored = archive.identify(path.name)
    return result


def source_identity(status: os.stat_result) -> SourceIdentity:
    """Return what tells one state of a file from another."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _content(fd: int, push: Push) -> Iterator[memoryview]:
    """Yield the file's content in one reused buffer; raise ArchiveError when at the end it is not the same file."""
    buffer = memoryview(bytearray(FRAME_BYTES))
    offset = 0
    try:
        while count := os.preadv(fd, [buffer], offset):
            yield buffer[:count]
            offset += count
        unchanged = source_identity(os.stat(push.path)) == push.source
    except OSError as error:
        raise ArchiveError(f"cannot read {push.path}: {error.strerror}") from error
    if not unchanged:
        # The server recycles a segment by renaming it; then these bytes may be of two segments.
        raise ArchiveError(f"{push.path} changed while it was archived")
