"""
Archiving the WAL of a backup in threads of its own, so that compression does not hold up whoever reads it.

Several segments are compressed at once, each in a thread. They get their names in the order in which they came, so that
a job that is killed never leaves a hole. What has not been read when it comes (``StreamedItem``) is read by the caller,
and handed over in frames.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pgkeep.streams.item import Buffer, DetachedItem, ItemHeader, StreamedItem, content_of
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_content import FRAME_BYTES

_WAITING_FRAMES = 1


class _Cut(Exception):
    """The rest of a file does not come."""


class _Frames:
    """The content of one file on its way from the thread that reads it; at most one frame waits."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Buffer | _Cut | None] = queue.Queue(_WAITING_FRAMES)
        self._is_over = False

    def hand_over(self, content: Iterator[Buffer]) -> None:
        """Hand over all of *content*; what it raises passes through, and cuts the file."""
        end: _Cut | None = _Cut()
        try:
            frame, filled = bytearray(), 0
            for buffer in content:
                view = memoryview(buffer)
                while view:
                    # A new one each time: the one before is being compressed.
                    frame = frame or bytearray(FRAME_BYTES)
                    length = min(len(view), FRAME_BYTES - filled)
                    frame[filled : filled + length] = view[:length]
                    filled, view = filled + length, view[length:]
                    if filled == FRAME_BYTES:
                        self._queue.put(frame)
                        frame, filled = bytearray(), 0
            if filled:
                self._queue.put(memoryview(frame)[:filled])
            end = None
        finally:
            self._queue.put(end)

    def cut(self) -> None:
        """Say that no more comes, whatever has come."""
        # After an end this is never read.
        self._queue.put(_Cut())

    def content(self) -> Iterator[Buffer]:
        """Yield what was handed over; raise _Cut when the rest does not come."""
        while not self._is_over:
            frame = self._queue.get()
            if frame is None or isinstance(frame, _Cut):
                self._is_over = True
                if frame is not None:
                    raise frame
            else:
                yield frame

    def drop(self) -> None:
        """Take what is left, which nobody needs."""
        while not self._is_over:
            self._is_over = not isinstance(self._queue.get(), bytearray | memoryview)


class WalWriter:
    """
    Puts WAL into the archive; every method is for one thread.

    Args:
        archive: Where to.
        workers: Segments that are compressed at once; each takes three frames of memory, 12 MiB.
        compression_level: Of zstd.
    """

    def __init__(self, archive: WalArchive, *, workers: int, compression_level: int) -> None:
        self._archive = archive
        self._compression_level = compression_level
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="wal")
        self._free = threading.Semaphore(workers)
        self._last: Future[None] | None = None
        self._frames: _Frames | None = None

    def accept(self, item: StreamedItem | DetachedItem, *, tee: Callable[[Buffer], object] | None = None) -> None:
        """
        Take over a file of WAL; *tee* gets its content as well, in this thread.

        Raises:
            ArchiveError: As ``WalArchive.put``, for this file or one before it; so for VaultError.
        """
        self._free.acquire()
        try:
            self._check()
            if tee is None and hasattr(item, "read_extent"):
                self._last = self._threads.submit(self._put, item.header, content_of(item), None, self._last)
                return
            frames = self._frames = _Frames()
            self._last = self._threads.submit(self._put, item.header, frames.content(), frames, self._last)
        except BaseException:
            self._free.release()
            raise
        frames.hand_over(content_of(item) if tee is None else _teed(content_of(item), tee))
        self._frames = None

    def drain(self) -> None:
        """Return when all that was accepted is durable; raises as ``accept``."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """End the threads; what was accepted is archived or has failed."""
        if self._frames is not None:
            self._frames.cut()
        self._threads.shutdown()

    def _check(self) -> None:
        if self._last is not None and self._last.done():
            self._last.result()

    def _put(
        self, header: ItemHeader, content: Iterator[Buffer], frames: _Frames | None, before: Future[None] | None
    ) -> None:
        try:
            self._archive.put(
                header.path.rpartition("/")[2],
                content,
                compression_level=self._compression_level,
                written_ns=header.mtime_ns,
                named_after=before.result if before is not None else None,
            )
        finally:
            if frames is not None:
                frames.drop()
            self._free.release()


def _teed(content: Iterator[Buffer], tee: Callable[[Buffer], object]) -> Iterator[Buffer]:
    for buffer in content:
        tee(buffer)
        yield buffer
