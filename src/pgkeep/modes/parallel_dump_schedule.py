"""
Which worker does what next in a parallel dump.

A database goes through three states: it waits; it is *open*, which takes one worker for as long as pg_dump runs on it
and gives others its ranges to copy; it is done when both are over. Ranges of a database exist only once it is open, and
no worker waits for another one's work, so the order in which things end does not matter.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Database = TypeVar("Database")
Range = TypeVar("Range")


@dataclass(eq=False)
class Opened(Generic[Database, Range]):
    """
    One open database.

    Attributes:
        database: Which.
        ranges: What is still to be copied.
        pending: Pieces of work that are not done, pg_dump among them.
    """

    database: Database
    ranges: deque[Range] = field(default_factory=deque)
    pending: int = 1


class Schedule(Generic[Database, Range]):
    """
    The work of one job.

    Args:
        databases: In the order in which they are opened.
        at_once: How many of them may be open.
    """

    def __init__(self, databases: Sequence[Database], *, at_once: int) -> None:
        self._waiting = deque(databases)
        self._open: list[Opened[Database, Range]] = []
        self._at_once = at_once
        self._changed = threading.Condition()
        self._is_stopped = False

    def next(self) -> tuple[Opened[Database, Range], Range | None] | None:
        """
        Wait for work.

        Returns:
            A database to open and to run pg_dump on (no range), a range of an open one, or None when all is given out.
        """
        with self._changed:
            while not self._is_stopped:
                if self._waiting and len(self._open) < self._at_once:
                    opened: Opened[Database, Range] = Opened(self._waiting.popleft())
                    self._open.append(opened)
                    return opened, None
                for opened in self._open:
                    if opened.ranges:
                        return opened, opened.ranges.popleft()
                if not self._waiting and not self._open:
                    return None
                self._changed.wait()
            return None

    def add(self, opened: Opened[Database, Range], ranges: Sequence[Range]) -> None:
        """Give the ranges of an open database to whoever is free."""
        with self._changed:
            opened.ranges.extend(ranges)
            opened.pending += len(ranges)
            self._changed.notify_all()

    def done(self, opened: Opened[Database, Range], finish: Callable[[], None]) -> None:
        """Say that a piece of work is done; the last one of a database calls *finish* before that counts as done."""
        with self._changed:
            opened.pending -= 1
            if opened.pending:
                return
        finish()
        with self._changed:
            self._open.remove(opened)
            self._changed.notify_all()

    def stop(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
