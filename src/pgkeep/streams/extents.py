"""
A pool of threads that works on the extents of many files, in parallel but with an ordered part per file.

Invariant, from which freedom of deadlock follows: extents are handed out strictly first in, first out. So when a worker
waits for its turn on a file, every earlier extent of that file is in the hands of another worker and not of the queue;
and at most as many files are begun and not ended as there are workers.

What runs where, for each file::

    begin(item)                       once, in the worker that takes the first extent
    extent(state, offset, buffer)     in parallel; may run before extents with smaller offsets
    ordered(state, result)            in the order of offsets, one at a time for a file
    end(state)                        once, after the last ordered part; for a file without content right after begin

*buffer* is valid until ``ordered`` has returned for it; that of a streamed item that is not small begins with a page of
memory, and so does that of a detached one that can be read into memory, so that it can be written past the page cache
as it is. The first error ends the pool: it is raised in the
thread that submits, and nothing is started after it.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, cast

from pgkeep.errors import FormatError
from pgkeep.streams.item import (
    EXTENT_BYTES,
    UNKNOWN_SIZE,
    Buffer,
    DetachedItem,
    FillingItem,
    ItemHeader,
    ReadsInto,
    StreamedItem,
)
from pgkeep.streams.thread_memory import ThreadMemory

QUEUE_FILES = 64
"""Detached items that wait; each may hold a file descriptor."""

SMALL_BYTES = 128 << 10
"""Streamed items up to this size get a buffer of their own size; at most ``QUEUE_FILES`` of them exist at once."""

State = TypeVar("State")
Result = TypeVar("Result")

_Memory = bytearray | mmap.mmap
"""Where a streamed item's extent is put together: as much as a small item has, or an extent's worth of pages."""


class HasHeader(Protocol):
    """What ``begin`` is told of an item."""

    @property
    def header(self) -> ItemHeader:
        """The item's header."""
        ...


class ExtentWork(Protocol[State, Result]):
    """What a pool does with each file; see the module for the order of calls."""

    def begin(self, item: HasHeader, /) -> State:
        """Prepare for the file, before any of its extents."""
        ...

    def extent(self, state: State, offset: int, buffer: Buffer, /) -> Result:
        """Do what needs no order; called from several threads at once, also for one file."""
        ...

    def ordered(self, state: State, result: Result, /) -> None:
        """Do what needs the order of offsets."""
        ...

    def end(self, state: State, /) -> None:
        """Complete the file."""
        ...


class _Stopped(Exception):
    """The pool ended while this worker waited."""


class _File(Generic[State]):
    """One file on its way through the pool."""

    __slots__ = ("begun", "detached", "extents", "is_ready", "item", "size", "state", "taken", "turn")

    state: State

    def __init__(self, item: HasHeader, *, detached: DetachedItem | None, extents: int) -> None:
        self.item = item
        self.detached = detached
        self.extents = extents
        self.size = item.header.size
        self.taken = 0
        self.turn = 0
        self.begun = False
        self.is_ready = False


class _Piece(Generic[State]):
    """One extent of a streamed item, in a buffer of the pool's."""

    __slots__ = ("buffer", "file", "index", "is_last", "length")

    def __init__(self, file: _File[State], index: int, buffer: _Memory, length: int, *, is_last: bool) -> None:
        self.file = file
        self.index = index
        self.buffer = buffer
        self.length = length
        self.is_last = is_last


class ExtentPool(Generic[State, Result]):
    """
    Threads that do *work* on submitted items.

    Use it as a context manager: leaving drains it; leaving by an exception stops it. All ``submit`` methods and
    ``drain`` belong to one thread.

    Args:
        workers: Number of threads, 1 or more.
        work: What they do.
        name: Of the threads.
    """

    def __init__(self, workers: int, work: ExtentWork[State, Result], *, name: str = "extents") -> None:
        self._work = work
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._turn = threading.Condition(self._lock)
        self._queue: deque[_File[State] | _Piece[State]] = deque()
        self._open: set[DetachedItem] = set()
        self._busy = 0
        self._error: BaseException | None = None
        self._closed = False
        self._buffers_left = workers + 2
        self._free_buffers: list[mmap.mmap] = []
        self._memory = ThreadMemory()
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self.close()

    def submit_detached(self, item: DetachedItem) -> None:
        """Take over *item*; its ``close`` is called when its last extent is done, or when the pool ends."""
        file: _File[State] = _File(item, detached=item, extents=-(-item.header.size // EXTENT_BYTES))
        with self._lock:
            if not self._closed:
                self._open.add(item)
        self._enqueue(file)

    def submit_streamed(self, item: StreamedItem) -> None:
        """Read *item* to its end in this thread, while the workers take its extents."""
        stream = StreamedExtents(self, item)
        fill = cast("FillingItem", item).fill if hasattr(item, "fill") else None
        for chunk in item.chunks():
            stream.write(chunk)
            if fill is not None:
                stream.write_by(fill)
        stream.end()

    def drain(self) -> None:
        """Wait until everything submitted is done; raise the first error."""
        with self._lock:
            while (self._queue or self._busy) and self._error is None:
                self._room.wait()
            self._raise_error()

    def close(self) -> None:
        """Stop without waiting for what is queued, join the threads, close the items that are still open."""
        with self._lock:
            self._closed = True
            self._wake_all()
        for thread in self._threads:
            thread.join()
        self._queue.clear()
        while self._open:
            self._open.pop().close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _wake_all(self) -> None:
        self._ready.notify_all()
        self._room.notify_all()
        self._turn.notify_all()

    def _enqueue(self, entry: _File[State] | _Piece[State]) -> None:
        with self._lock:
            while len(self._queue) >= QUEUE_FILES and self._error is None:
                self._room.wait()
            self._raise_error()
            self._queue.append(entry)
            # A file of many extents is work for all of them.
            if isinstance(entry, _File) and entry.extents > 1:
                self._ready.notify_all()
            else:
                self._ready.notify()

    def _take_buffer(self) -> mmap.mmap:
        with self._lock:
            while True:
                self._raise_error()
                if self._free_buffers:
                    return self._free_buffers.pop()
                if self._buffers_left:
                    self._buffers_left -= 1
                    return mmap.mmap(-1, EXTENT_BYTES, flags=mmap.MAP_PRIVATE)
                self._room.wait()

    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                entry, index = taken
                if isinstance(entry, _Piece):
                    self._do_piece(entry)
                else:
                    self._do_extent(entry, index)
                with self._lock:
                    self._busy -= 1
                    if isinstance(entry, _Piece) and isinstance(entry.buffer, mmap.mmap):
                        self._free_buffers.append(entry.buffer)
                        self._room.notify_all()
                    elif not self._busy and not self._queue:
                        self._room.notify_all()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - carried to the submitting thread, whatever it is
            with self._lock:
                if self._error is None:
                    self._error = error
                self._wake_all()

    def _take(self) -> tuple[_File[State] | _Piece[State], int] | None:
        with self._lock:
            while not self._queue:
                if self._closed or self._error is not None:
                    return None
                self._ready.wait()
            if self._closed or self._error is not None:
                return None
            entry = self._queue[0]
            self._busy += 1
            if isinstance(entry, _Piece):
                self._queue.popleft()
                self._room.notify_all()
                return entry, entry.index
            index = entry.taken
            entry.taken += 1
            if entry.taken >= entry.extents:
                self._queue.popleft()
                if len(self._queue) <= QUEUE_FILES // 2:
                    self._room.notify_all()
            return entry, index

    def _do_extent(self, file: _File[State], index: int) -> None:
        item = file.detached
        assert item is not None
        if index == 0:
            self._begin(file, alone=file.extents <= 1)
        else:
            self._wait_begun(file)
        if file.extents:
            offset = index * EXTENT_BYTES
            buffer = self._read(item, offset, min(EXTENT_BYTES, file.size - offset))
            self._do(file, index, buffer, alone=file.extents == 1)
        if index >= file.extents - 1:
            self._work.end(file.state)
            with self._lock:
                self._open.discard(item)
            item.close()

    def _read(self, item: DetachedItem, offset: int, length: int) -> Buffer:
        if not hasattr(item, "read_into"):
            return item.read_extent(offset, length)
        view = self._memory.view(length)
        cast("ReadsInto", item).read_into(offset, view)
        return view

    def _do_piece(self, piece: _Piece[State]) -> None:
        alone = piece.index == 0 and piece.is_last
        if piece.index == 0:
            self._begin(piece.file, alone=alone)
        else:
            self._wait_begun(piece.file)
        if piece.length:
            self._do(piece.file, piece.index, memoryview(piece.buffer)[: piece.length], alone=alone)
        if piece.is_last:
            self._work.end(piece.file.state)

    def _begin(self, file: _File[State], *, alone: bool) -> None:
        try:
            file.state = self._work.begin(file.item)
            file.begun = True
        finally:
            if not alone:
                with self._lock:
                    file.is_ready = True
                    self._turn.notify_all()

    def _wait_begun(self, file: _File[State]) -> None:
        # Not cut short by an error elsewhere: an item may check its extents in order inside read_extent, so either
        # every extent that was taken is read, or none of this file after a failed begin.
        if not file.begun:
            with self._lock:
                while not file.is_ready:
                    self._turn.wait()
            if not file.begun:
                raise _Stopped

    def _do(self, file: _File[State], index: int, buffer: Buffer, *, alone: bool) -> None:
        if alone:
            self._work.ordered(file.state, self._work.extent(file.state, 0, buffer))
            return
        result = self._work.extent(file.state, index * EXTENT_BYTES, buffer)
        with self._lock:
            while file.turn != index:
                # close() alone is no reason to give up: who holds the turn was taken earlier and will finish.
                if self._error is not None:
                    raise _Stopped
                self._turn.wait()
        self._work.ordered(file.state, result)
        with self._lock:
            file.turn += 1
            self._turn.notify_all()


class StreamedExtents(Generic[State, Result]):
    """
    One streamed item being cut into extents, for a caller that pushes chunks; ``submit_streamed`` is the usual way.

    Each extent is held back until more content or the end has come, since a worker must know which one is the last.
    """

    def __init__(self, pool: ExtentPool[State, Result], item: HasHeader) -> None:
        self._pool = pool
        self._file: _File[State] = _File(item, detached=None, extents=0)
        self._size = item.header.size
        self._path = item.header.path
        self._buffer: _Memory | None = None
        self._filled = 0
        self._index = 0
        self.total = 0

    def write(self, chunk: Buffer) -> None:
        """Take over a copy of *chunk*; raise FormatError when it is more than the header announced."""
        length, filled, buffer = len(chunk), self._filled, self._buffer
        # Most chunks are small and fit into what is left of the buffer.
        if buffer is not None and filled + length <= len(buffer) and self.total + length <= self._size:
            buffer[filled : filled + length] = chunk
            self._filled = filled + length
            self.total += length
            return
        for part in _parts(chunk, EXTENT_BYTES):
            self.total += len(part)
            if self._size != UNKNOWN_SIZE and self.total > self._size:
                raise FormatError(f"{self._path} was announced with {self._size} bytes, but more came")
            self._append(part)

    def write_by(self, fill: Callable[[memoryview], int]) -> None:
        """Let *fill* write to the extents themselves, until it has nothing more or all that was announced has come."""
        while self.total < self._size:
            if self._buffer is None or self._filled == len(self._buffer):
                self._next_buffer()
            assert self._buffer is not None
            left = min(len(self._buffer) - self._filled, self._size - self.total)
            taken = fill(memoryview(self._buffer)[self._filled : self._filled + left])
            if not taken:
                return
            self._filled += taken
            self.total += taken

    def end(self) -> None:
        """Hand over the last extent; raise FormatError when less came than the header announced."""
        if self._size not in (UNKNOWN_SIZE, self.total):
            raise FormatError(f"{self._path} was announced with {self._size} bytes, but {self.total} came")
        self._hand_over(is_last=True)

    def _append(self, part: memoryview) -> None:
        while part:
            if self._buffer is None or self._filled == len(self._buffer):
                self._next_buffer()
            assert self._buffer is not None
            taken = min(len(part), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = part[:taken]
            self._filled += taken
            part = part[taken:]

    def _next_buffer(self) -> None:
        if self._buffer is not None:
            self._hand_over(is_last=False)
        is_small = self._size != UNKNOWN_SIZE and self._size <= SMALL_BYTES
        self._buffer = bytearray(self._size) if is_small else self._pool._take_buffer()  # noqa: SLF001 - one machine in two classes

    def _hand_over(self, *, is_last: bool) -> None:
        buffer: _Memory = bytearray() if self._buffer is None else self._buffer
        piece = _Piece(self._file, self._index, buffer, self._filled, is_last=is_last)
        self._buffer, self._filled = None, 0
        self._index += 1
        self._pool._enqueue(piece)  # noqa: SLF001 - one machine in two classes


def _parts(chunk: Buffer, limit: int) -> Iterator[memoryview]:
    view = memoryview(chunk).cast("B")
    for start in range(0, len(view), limit):
        yield view[start : start + limit]
