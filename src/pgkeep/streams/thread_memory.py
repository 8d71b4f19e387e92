"""Memory for one extent that each thread has for itself, and uses again and again."""

from __future__ import annotations

import mmap
import threading

from pgkeep.streams.item import EXTENT_BYTES


class ThreadMemory:
    """
    One extent's worth of pages for each thread that asks.

    New memory for each extent costs as much as much of the work on it: the kernel clears every page, and takes it back.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def view(self, length: int) -> memoryview:
        """Return the first *length* bytes of this thread's memory, page-aligned; with what they had before."""
        memory: mmap.mmap | None = getattr(self._local, "memory", None)
        if memory is None:
            memory = self._local.memory = mmap.mmap(-1, EXTENT_BYTES, flags=mmap.MAP_PRIVATE)
        return memoryview(memory)[:length]
