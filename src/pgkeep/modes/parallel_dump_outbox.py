"""
Between the workers of a parallel dump and the one stream that takes what they make.

Invariants. A worker that wants to fill a chunk takes a *permit* first, and the permit comes back when the sink has
taken the chunk over: so there are never more chunks than permits, however slow the sink is, and a slow sink slows the
workers. One chunk at a time may be larger than usual, for the sake of one row, until the sink has it: it is paid
for once and not for each worker. A chunk of a database waits here until that database's schema has been put in; the
schema itself needs no permit, so it never waits for a chunk that waits for it. Nothing is put in behind an error: it
is the first one that ends the job.

What workers have to tell passes here, too, and is told by the thread that takes the items: the job log may be a part of
the very stream that the items go into.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from pgkeep.streams.item import CHUNK_BYTES, UNKNOWN_SIZE, Buffer, ItemHeader, StreamedItem

_LIVE_PIECES = 4


class Stopped(Exception):
    """The job is over for another reason; a worker that meets this just ends."""


class ChunkItem:
    """
    A complete chunk.

    Args:
        path: Its virtual path.
        pieces: Its content; emptied on close, so that nobody who knows the list holds the memory any longer.
        close: Called once, when nobody needs the content any more.
    """

    def __init__(self, path: str, pieces: list[Buffer], close: Callable[[], None]) -> None:
        size = sum(len(piece) for piece in pieces)
        self.header = ItemHeader(path=path, size=size, mtime_ns=time.time_ns())
        self._pieces = pieces
        self._close = close

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content."""
        for piece in self._pieces:
            view = memoryview(piece)
            for offset in range(0, len(view), CHUNK_BYTES):
                yield view[offset : offset + CHUNK_BYTES]

    def close(self) -> None:
        """Give the memory back."""
        self._pieces.clear()
        self._close()


class LiveItem:
    """A streamed item whose content a worker is still making; it holds a few pieces at most."""

    def __init__(self, path: str) -> None:
        self.header = ItemHeader(path=path, size=UNKNOWN_SIZE, mtime_ns=time.time_ns())
        self._pieces: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        self._error: BaseException | None = None

    def feed(self, chunks: Iterator[Buffer]) -> None:
        """Take all *chunks*, as fast as they are read; called by the worker."""
        try:
            for chunk in chunks:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_over or len(self._pieces) < _LIVE_PIECES)
                    self._check_wanted()
                    self._pieces.append(bytes(chunk))
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
            raise
        finally:
            self.close()

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content; raise what the worker met."""
        while True:
            with self._changed:
                while not self._pieces and not self._is_over:
                    self._changed.wait()
                if not self._pieces:
                    if self._error is not None:
                        raise self._error
                    return
                piece = self._pieces.popleft()
                self._changed.notify_all()
            yield piece

    def close(self) -> None:
        """Say that no more will come, or that no more is wanted."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _check_wanted(self) -> None:
        if self._is_over:
            raise Stopped


class Outbox:
    """
    What is ready to be sent; see the module.

    Args:
        permits: How many chunks there may be.
    """

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._changed = threading.Condition()
        self._ready: deque[StreamedItem] = deque()
        self._held: dict[str, list[StreamedItem]] = {}
        self._told: deque[Callable[[], None]] = deque()
        self._buffers: list[bytearray] = []
        self._is_one_large = False
        self._error: BaseException | None = None
        self._is_over = False

    def take_permit(self) -> bytearray | None:
        """Wait for a permit; return a buffer that an earlier chunk has left, None when there is none."""
        with self._changed:
            while not self._permits and not self._is_over:
                self._changed.wait()
            if self._is_over:
                raise Stopped
            self._permits -= 1
            return self._buffers.pop() if self._buffers else None

    def give_permit(self, buffer: bytearray | None = None) -> None:
        """Give a permit back, with the *buffer* of its chunk when another chunk may use it."""
        with self._changed:
            self._permits += 1
            if buffer is not None:
                self._buffers.append(buffer)
            self._changed.notify_all()

    def take_large(self) -> None:
        """Wait until no other chunk is larger than usual."""
        with self._changed:
            while self._is_one_large and not self._is_over:
                self._changed.wait()
            if self._is_over:
                raise Stopped
            self._is_one_large = True

    def give_large(self) -> None:
        """Say that the chunk that was larger than usual is gone."""
        with self._changed:
            self._is_one_large = False
            self._changed.notify_all()

    def hold(self, database: str) -> None:
        """Let the parts of *database* wait from now on."""
        with self._changed:
            self._held[database] = []

    def put(self, item: StreamedItem, *, database: str) -> None:
        """Hand over a part of *database*, which waits as long as that database is held."""
        with self._changed:
            if self._is_over:
                raise Stopped
            self._held.get(database, self._ready).append(item)
            self._changed.notify_all()

    def put_first(self, item: StreamedItem) -> None:
        """Hand over what goes before the parts that are held."""
        with self._changed:
            if self._is_over:
                raise Stopped
            self._ready.append(item)
            self._changed.notify_all()

    def tell(self, say: Callable[[str], None], line: str) -> None:
        """Have *line* said between two items."""
        with self._changed:
            self._told.append(lambda: say(line))
            self._changed.notify_all()

    def release(self, database: str) -> None:
        """Let the parts of *database* go."""
        with self._changed:
            self._ready.extend(self._held.pop(database))
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Say that no more will come; with *error* that nothing of what is here counts."""
        with self._changed:
            if error is not None and self._error is None:
                self._error = error
            self._is_over = True
            self._changed.notify_all()

    def items(self) -> Iterator[StreamedItem]:
        """Yield what is ready until the end; raise the first error instead of going on."""
        while True:
            with self._changed:
                while not self._ready and not self._told and not self._is_over:
                    self._changed.wait()
                told = list(self._told)
                self._told.clear()
            for tell in told:
                tell()
            with self._changed:
                if self._error is not None:
                    raise self._error
                if self._told or (not self._ready and not self._is_over):
                    continue
                if not self._ready:
                    return
                item = self._ready.popleft()
            try:
                yield item
            finally:
                close = getattr(item, "close", None)
                if close is not None:
                    close()
