"""
Reading ahead: files are read, checked and digested by threads while earlier ones are on their way to the daemon.

Order is kept: pieces come out as the items went in, each item's by offset. Small files travel in batches, since a
thread's wake-up costs more than a page does. Large ones are read straight into slots of the ring, where there is one:
then nobody copies them. What is read and not yet taken is bounded, whatever the sizes.

As long as the daemon has slots to go on with, the caller's own thread reads the next one: what it digests afterwards is
then still in its processor's cache, and no thread has to be woken. The others help when the daemon is about to wait;
what none of them has begun when its turn comes, the caller reads itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from blake3 import blake3

from pgkeep.streams.item import EXTENT_BYTES, Buffer, DetachedItem, ItemHeader, ReadsInto

AHEAD_BYTES = 6 * EXTENT_BYTES
"""How much may be read and not taken."""

AHEAD_FILES = 64
"""How many files may be open and not taken; each holds a descriptor."""

BATCH_BYTES = 1 << 20
BATCH_FILES = 32
SMALL_BYTES = 256 << 10
"""Files up to this size are read in batches."""

ENOUGH_LENT_PART = 4
"""With one in so many of the slots to go on with, the daemon does not wait for us."""


@dataclass(frozen=True, slots=True)
class Piece:
    """
    One extent that was read.

    Attributes:
        header: Of its item.
        offset: Where in the content it is.
        content: The bytes.
        digest: BLAKE3 of the content, 64 hexadecimal digits, where the piece is all of it; empty otherwise.
        slot: The slot of the ring that holds the content; -1 for none.
    """

    header: ItemHeader
    offset: int
    content: Buffer
    digest: str
    slot: int = -1

    @property
    def is_last(self) -> bool:
        """Whether the item ends with it."""
        return self.offset + len(self.content) >= self.header.size


class Slots(Protocol):
    """Memory that pieces may be read into, as the channel's ring has it."""

    @property
    def slots(self) -> int:
        """How many there are."""
        ...

    @property
    def slot_bytes(self) -> int:
        """Bytes of each."""
        ...

    @property
    def lent(self) -> int:
        """How many the daemon has, as far as is known."""
        ...

    def reserve(self) -> int | None:
        """Return a slot; None when there is none now."""
        ...

    def view(self, slot: int, length: int) -> memoryview:
        """Return the memory of a slot."""
        ...


class _Task:
    """What one thread does at a time: some whole small files, or one extent of a large one."""

    __slots__ = ("error", "is_done", "parts", "pieces", "slot", "view")

    def __init__(
        self, parts: list[tuple[DetachedItem, int, int]], *, slot: int = -1, view: memoryview | None = None
    ) -> None:
        self.parts = parts
        self.slot = slot
        self.view = view
        self.pieces: list[Piece] = []
        self.error: BaseException | None = None
        self.is_done = False

    @property
    def bytes(self) -> int:
        # What stands in the ring is bounded by the ring.
        return 0 if self.slot >= 0 else sum(length for _, _, length in self.parts)

    def read(self) -> None:
        """Do it."""
        self.pieces = [_read(*part, self) for part in self.parts]


class ReadAhead:
    """
    Threads that read detached items; all methods belong to the thread that made it.

    Args:
        workers: Number of threads, 1 or more.
        slots: Memory to read large items into; None for memory of its own.
        wait: Waits until a slot may be free; only called when nothing is left to be taken.
    """

    def __init__(self, workers: int, *, slots: Slots | None = None, wait: Callable[[], None] = lambda: None) -> None:
        self._slots = slots
        self._wait = wait
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._waiting: deque[_Task] = deque()
        self._ordered: deque[_Task] = deque()
        self._batch: list[tuple[DetachedItem, int, int]] = []
        self._batch_bytes = 0
        self._open: dict[DetachedItem, int] = {}
        self._bytes = 0
        self._is_closed = False
        self._threads = [threading.Thread(target=self._run, name=f"read-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def is_full(self) -> bool:
        """Whether something must be taken before more is submitted."""
        return self._bytes > AHEAD_BYTES or len(self._open) >= AHEAD_FILES

    def submit(self, item: DetachedItem) -> Iterator[Piece]:
        """Take over *item*; yield what must be taken meanwhile, oldest first, for the bound to hold."""
        size = item.header.size
        if size <= SMALL_BYTES:
            self._open[item] = 1
            self._batch.append((item, 0, size))
            self._batch_bytes += size
            if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_FILES:
                self._end_batch()
        elif self._slots is not None and hasattr(item, "read_into"):
            self._end_batch()
            yield from self._submit_slots(item, self._slots)
        else:
            self._end_batch()
            self._open[item] = -(-size // EXTENT_BYTES)
            for offset in range(0, size, EXTENT_BYTES):
                self._enqueue(_Task([(item, offset, min(EXTENT_BYTES, size - offset))]))
                while self.is_full and self._ordered:
                    yield from self.take()
        while self.is_full:
            yield from self.take()

    def _submit_slots(self, item: DetachedItem, slots: Slots) -> Iterator[Piece]:
        size, enough_lent = item.header.size, -(-slots.slots // ENOUGH_LENT_PART)
        self._open[item] = -(-size // slots.slot_bytes)
        for offset in range(0, size, slots.slot_bytes):
            while (slot := slots.reserve()) is None:
                if self._ordered:
                    yield from self.take()
                else:
                    self._wait()
            length = min(slots.slot_bytes, size - offset)
            task = _Task([(item, offset, length)], slot=slot, view=slots.view(slot, length))
            if self._ordered or slots.lent < enough_lent:
                self._enqueue(task)
            else:
                task.read()
                yield from self._taken(task)

    def drain(self) -> Iterator[Piece]:
        """Yield all that is left; raise what went wrong."""
        self._end_batch()
        while self._ordered:
            yield from self.take()

    def close(self) -> None:
        """Stop, join the threads, close the items that are still open."""
        with self._lock:
            self._is_closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        self._ordered.clear()
        self._waiting.clear()
        while self._open:
            self._open.popitem()[0].close()

    def _end_batch(self) -> None:
        if self._batch:
            parts, self._batch, self._batch_bytes = self._batch, [], 0
            self._enqueue(_Task(parts))

    def _enqueue(self, task: _Task) -> None:
        self._bytes += task.bytes
        self._ordered.append(task)
        with self._lock:
            self._waiting.append(task)
            self._work.notify()

    def take(self) -> Iterator[Piece]:
        """Yield what was submitted first: some whole items, or a piece of a large one; wait until it has been read."""
        if not self._ordered:
            self._end_batch()
        task = self._ordered.popleft()
        with self._lock:
            # Quicker than to wait for a thread that was woken and has not come to it.
            is_ours = bool(self._waiting) and self._waiting[0] is task
            if is_ours:
                self._waiting.popleft()
            while not is_ours and not task.is_done:
                self._done.wait()
        if is_ours:
            task.read()
        self._bytes -= task.bytes
        yield from self._taken(task)

    def _taken(self, task: _Task) -> Iterator[Piece]:
        if task.error is not None:
            raise task.error
        for item, _, _ in task.parts:
            self._open[item] -= 1
            if not self._open[item]:
                del self._open[item]
                item.close()
        pieces, task.pieces = task.pieces, []
        yield from pieces

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._is_closed:
                    self._work.wait()
                if self._is_closed:
                    return
                task = self._waiting.popleft()
            try:
                task.read()
            except BaseException as error:  # noqa: BLE001 - carried to the thread that takes
                task.error = error
            with self._lock:
                task.is_done = True
                self._done.notify()


def _read(item: DetachedItem, offset: int, length: int, task: _Task) -> Piece:
    content: Buffer = b""
    if task.view is not None:
        cast("ReadsInto", item).read_into(offset, task.view)
        content = task.view
    elif length:
        content = item.read_extent(offset, length)
    is_whole = length == item.header.size
    return Piece(item.header, offset, content, blake3(content).hexdigest() if is_whole else "", task.slot)
