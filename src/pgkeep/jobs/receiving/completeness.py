"""Until when all commits have been received, as the server's own words tell."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server.wal_stream import WalChunk, WalStream
from pgkeep.spool.proof import Proof, read_proof, write_proof

_PUBLISH_SECONDS = 0.2


class _Promise(NamedTuple):
    """All that was committed before a time is in the WAL before an end."""

    timeline: Timeline
    end: Lsn
    time_ns: int


class Completeness:
    """
    What the receiver knows of it; one thread tells, any may ask.

    Args:
        spool: Where it is written for other processes.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        # Where the server's WAL ended when it sent something, and when that was. The first of them is kept until it is
        # reached: who is always a bit behind would never reach the last.
        self._first: _Promise | None = None
        self._last: _Promise | None = None
        self._proof = self._published = read_proof(spool)
        self._published_at = 0.0

    @property
    def proof(self) -> Proof | None:
        """What is known now; for any thread."""
        return self._proof

    def begin(self) -> None:
        """Forget what a connection said that has ended."""
        self._first = self._last = None

    def hear(self, chunk: WalChunk, stream: WalStream) -> None:
        """Take note of what the server said with *chunk*."""
        self._last = _Promise(chunk.timeline, stream.server_end, stream.sent_ns)
        # The end of a timeline may come before what was promised of it.
        if self._first is None or self._first.timeline != chunk.timeline:
            self._first = self._last

    def reach(self, timeline: Timeline, end: Lsn) -> int:
        """Say that all WAL before *end* is durable; return a time for what ends there, 0 when none is known."""
        for promise in (self._last, self._first):
            if promise is not None and promise.timeline == timeline and promise.end <= end:
                self._proof = Proof(int(timeline), promise.time_ns)
                self._first = self._last = None if promise is self._last else self._last
                break
        return (self._proof.time_of(timeline) if self._proof is not None else None) or 0

    def publish(self, *, at_once: bool = False) -> None:
        """Write down what is known, now and then or *at_once*; what cannot be written, nobody knows."""
        now = time.monotonic()
        proof = self._proof
        if proof is None or proof == self._published or not (at_once or now - self._published_at > _PUBLISH_SECONDS):
            return
        with contextlib.suppress(OSError):
            write_proof(self._spool, proof)
            self._published = proof
        self._published_at = now
