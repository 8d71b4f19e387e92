"""What carries the parts of a database to the sessions that load them: bounded, and ended by the first error."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from pgkeep.modes.parallel_dump_outbox import Stopped
from pgkeep.streams.item import Buffer

Part = TypeVar("Part")

_PIECES = 4


class Gate:
    """
    The state that all threads of one load share.

    Attributes:
        changed: Guards the state, and tells of every change of it.
        cancelled: Set when the load is over.
        error: The first that any of them met.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.cancelled = threading.Event()
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """End the load with *error*, unless it has ended."""
        with self.changed:
            if self.error is None and not self.cancelled.is_set():
                self.error = error
            self.cancelled.set()
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; raise what ended the load before. The caller holds ``changed``."""
        self.changed.wait_for(lambda: self.cancelled.is_set() or condition())
        if self.error is not None:
            raise self.error
        if self.cancelled.is_set():
            raise Stopped


class Pieces:
    """Bytes on their way from the thread that reads the supply to the one that feeds a child."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._pieces: deque[bytes] = deque()
        self._is_over = False

    def put(self, chunks: Iterator[Buffer]) -> None:
        """Take *chunks*, as fast as they are used up."""
        for chunk in chunks:
            with self._gate.changed:
                self._gate.wait_for(lambda: len(self._pieces) < _PIECES)
                self._pieces.append(bytes(chunk))
                self._gate.changed.notify_all()

    def end(self) -> None:
        """Say that no more will come."""
        with self._gate.changed:
            self._is_over = True
            self._gate.changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        """Yield what was put in, to the end."""
        while True:
            with self._gate.changed:
                self._gate.wait_for(lambda: self._is_over or bool(self._pieces))
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._gate.changed.notify_all()
            yield piece


class Parts(Generic[Part]):
    """
    Parts on their way to the threads that load them.

    Args:
        gate: Of the load.
        limit: How many may be here or in work at a time.
    """

    def __init__(self, gate: Gate, limit: int) -> None:
        self._gate = gate
        self._limit = limit
        self._parts: deque[Part] = deque()
        self._in_hand = 0
        self._is_over = False

    def reserve(self) -> None:
        """Wait until there is room for one more part."""
        with self._gate.changed:
            self._gate.wait_for(lambda: self._in_hand < self._limit)
            self._in_hand += 1

    def put(self, part: Part) -> None:
        """Hand over a part that there is room for."""
        with self._gate.changed:
            self._parts.append(part)
            self._gate.changed.notify_all()

    def take(self) -> Part | None:
        """Wait for a part; None when no more will come."""
        with self._gate.changed:
            self._gate.wait_for(lambda: self._is_over or bool(self._parts))
            return self._parts.popleft() if self._parts else None

    def done(self) -> None:
        """Say that a part that was taken is loaded."""
        with self._gate.changed:
            self._in_hand -= 1
            self._gate.changed.notify_all()

    def end(self) -> None:
        """Say that no more will come."""
        with self._gate.changed:
            self._is_over = True
            self._gate.changed.notify_all()
