"""
Whole WAL segments, from wherever they can be had: an archive directory, the server's own pg_wal, the wire.

The contract of a supply:

- ``fetch`` returns when the segment is there as far as it is needed, or raises ``NotThere`` at the deadline.
- The content is read once, in order, before the next ``fetch``; every chunk is valid until the next is asked for.
- The content is exactly as long as a segment. The last one may end early: what is not yet written is zeros, and
  ``held_until`` says from where on. Such a segment is a partial one, and is called so by whoever stores it.
- Nothing of another cluster, another position or a later timeline is ever handed out: the header of every segment is
  checked, and for a file of pg_wal once more after it was read, since the server reuses its files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pgkeep.errors import ArchiveError, ServerError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import WalSegment
from pgkeep.streams.item import CHUNK_BYTES, Buffer

POLL_SECONDS = 0.1


class NotThere(ArchiveError):
    """A segment, or a part of it that is needed, cannot be had from a supply."""


@dataclass(frozen=True, slots=True)
class WalContent:
    """
    One segment, ready to be read.

    Attributes:
        segment: Which one.
        held_until: Bytes from here to the segment's end are zeros and mean nothing; the end of a complete segment.
        source: Where it comes from, for logs.
        chunks: Yields the content, ``segment.size`` bytes in all, at most 1 MiB at a time; to be called once.
        is_servers_own: Whether the server itself has it, and not only an archive, which may hold WAL of a past that the
            server does not have any more.
    """

    segment: WalSegment
    held_until: Lsn
    source: str
    chunks: Callable[[], Iterator[Buffer]] = field(repr=False)
    is_servers_own: bool = True

    @property
    def is_partial(self) -> bool:
        """Whether the segment ends before its file does."""
        return self.held_until < self.segment.end_lsn


class WalSupply(Protocol):
    """Somewhere that WAL can be had from."""

    @property
    def name(self) -> str:
        """For people: ``archive directory /wal``."""
        ...

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:
        """
        Return *segment*, held at least up to *through* or to its end, whichever comes first.

        Args:
            segment: Named by the newest timeline that holds it.
            through: The first byte that is not needed.
            deadline: By ``time.monotonic()``; one that has passed means: now or not at all.

        Raises:
            NotThere: It cannot be had, or not by the deadline; the hint says what would help.
            FormatError: Under its name is something else.
        """
        ...

    def history(self, timeline: Timeline) -> bytes | None:
        """Return the content of the history file of *timeline*; None when it is not there."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class FirstOf:
    """Several supplies, asked in order for every segment until one has it."""

    def __init__(self, supplies: Sequence[WalSupply], *, cancelled: threading.Event | None = None) -> None:
        self._supplies = list(supplies)
        self._cancelled = cancelled or threading.Event()
        self.name = ", ".join(supply.name for supply in supplies)

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:
        """Return *segment* from the first supply that has it; see the protocol."""
        missing: list[NotThere] = []
        found: list[WalContent] = []

        def ask_all() -> bool:
            missing.clear()
            for supply in self._supplies:
                try:
                    found.append(supply.fetch(segment, through=through, deadline=0.0))
                    return True
                except NotThere as error:
                    missing.append(error)
            return False

        if wait_until(ask_all, deadline, self._cancelled):
            return found[0]
        reasons = "; ".join(error.message.partition(" cannot be had from ")[2] for error in missing)
        hint = next((error.hint for error in missing if error.hint), "")
        raise NotThere(f"WAL segment {segment.name} cannot be had from {reasons or 'anywhere'}", hint=hint)

    def history(self, timeline: Timeline) -> bytes | None:
        """Return a history file from the first supply that has it."""
        for supply in self._supplies:
            if (content := supply.history(timeline)) is not None:
                return content
        return None

    def close(self) -> None:
        """Close all of them."""
        for supply in self._supplies:
            supply.close()


class FlushedWal:
    """Up to where the server has WAL on its disk; asked again only when the last answer is not enough."""

    def __init__(self, name: str, flushed: Callable[[], Lsn], cancelled: threading.Event) -> None:
        self._name = name
        self._flushed = flushed
        self._cancelled = cancelled
        self._seen = Lsn(0)

    def wait_for(self, segment: WalSegment, *, through: Lsn, deadline: float) -> Lsn:
        """Wait until what is needed of *segment* is flushed; return up to where all of it is, or its end."""
        needed = min(through, segment.end_lsn)
        if not wait_until(lambda: self._reaches(needed), deadline, self._cancelled):
            raise NotThere(
                f"WAL segment {segment.name} cannot be had from {self._name}: "
                f"WAL is flushed up to {self._seen}, needed up to {needed}",
                hint="a standby must have received and replayed the WAL: look at its lag",
            )
        return min(self._seen, segment.end_lsn)

    def _reaches(self, needed: Lsn) -> bool:
        if self._seen < needed:
            self._seen = self._flushed()
        return self._seen >= needed


def wait_until(condition: Callable[[], bool], deadline: float, cancelled: threading.Event) -> bool:
    """Return whether *condition* came to hold before *deadline*; it is looked at once in any case."""
    while not condition():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if cancelled.wait(min(POLL_SECONDS, left)):
            raise ServerError("cancelled while waiting for WAL")
    return True


def zeros(length: int) -> Iterator[Buffer]:
    """Yield *length* zeros, the rest of a segment that has not been written."""
    if length:
        chunk = memoryview(bytes(min(CHUNK_BYTES, length)))
        for offset in range(0, length, CHUNK_BYTES):
            yield chunk[: length - offset]
