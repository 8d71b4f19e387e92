"""
Ship what a receiver has spooled into the vault, exactly as ``archive-push`` would: each file once, durable, compared.

Complete segments and history files go at once, the segment that is being received every so often, as a partial segment
that its complete one replaces. A file leaves the spool when the vault holds it; the newest one stays, because it tells
the receiver where to go on. Where the vault cannot take something, that is said, and tried again for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from pgkeep.errors import ArchiveError, PgkeepError, VaultError
from pgkeep.jobs.archive.segment_pieces import segment_part
from pgkeep.jobs.archive.wal_pusher import Push, push_file
from pgkeep.jobs.receiving.start import spooled_end
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.pg.wal import WalSegment, is_segment_name
from pgkeep.spool.directory import Spool, SpooledSegment
from pgkeep.spool.proof import Proof
from pgkeep.vault.wal_archive import WalArchive

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0

_NICE = 10
_LONGEST_WAY_SECONDS = 10.0
_LOOK_SECONDS = 0.1

Durable = Callable[[], tuple[WalSegment, int] | None]
"""Returns the segment that is received now, and how many of its bytes are durable."""


class Shipper:
    """
    Ships one spool.

    Args:
        spool: From where.
        archive: Where to.
        durable: See above.
        window_seconds: How often the segment that is being received is shipped as far as it goes.
        compression_level: Of zstd.
        say: Takes one line for the log.
        warn: Takes one warning.
        is_behind: Tells whether receiving has WAL to catch up with.
        proof: Returns until when all commits have been received, as far as that is known.

    Attributes:
        trouble: Why the vault takes nothing, as one line; empty when it does. For any thread.
    """

    def __init__(
        self,
        spool: Spool,
        archive: WalArchive,
        durable: Durable,
        *,
        window_seconds: float,
        compression_level: int,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        is_behind: Callable[[], bool] = lambda: False,
        proof: Callable[[], Proof | None] = lambda: None,
    ) -> None:
        self._spool = spool
        self._archive = archive
        self._durable = durable
        self._proof = proof
        self._window_seconds = window_seconds
        self._compression_level = compression_level
        self._say = say
        self._warn = warn
        self._is_behind = is_behind
        self._arrived = threading.Event()
        self._partial: tuple[WalSegment, int] | None = None
        self._refused: set[str] = set()
        self._shipped_histories: set[Timeline] = set()
        self._shipped: WalPosition | None = None
        self.trouble = ""

    def shipped(self) -> WalPosition | None:
        """Return up to where WAL was shipped; None before anything was. For any thread."""
        return self._shipped

    def wake(self) -> None:
        """Say that something has arrived, or that it should end; for any thread."""
        self._arrived.set()

    def run(self, stop: threading.Event) -> None:
        """Ship until *stop* is set, with what the processor has left over; ``finish`` does the rest."""
        # On Linux this is the thread's own priority.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        pause = FIRST_PAUSE_SECONDS
        partial_at = time.monotonic()
        # What an earlier receiver left is shipped first, its partial segment too.
        is_due = True
        while True:
            # In this order: whoever sets *stop* wakes afterwards, and neither is missed whatever comes between.
            self._arrived.clear()
            if stop.is_set():
                return
            try:
                self._give_way(stop)
                self.ship(with_partial=is_due)
                if self.trouble:
                    self._say(f"is over: {self.trouble}")
                    self.trouble = ""
                if is_due:
                    partial_at = time.monotonic()
                pause = FIRST_PAUSE_SECONDS
                left = partial_at + self._window_seconds - time.monotonic()
                is_due = not self._arrived.wait(max(0.0, left)) or left <= 0
            except FileNotFoundError:
                # The receiver completed a segment between the look at its name and the look into it.
                continue
            except (PgkeepError, OSError) as error:
                if _text(error) != self.trouble:
                    self._warn(f"{_text(error)}; the spool keeps it, trying again in {pause:g} s")
                self.trouble = _text(error)
                stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _give_way(self, stop: threading.Event) -> None:
        """
        Let receiving catch up first: what only the server has is what can be lost.

        Not for long, since a server that is always busy is always ahead; nor when the spool is half full.
        """
        deadline = time.monotonic() + _LONGEST_WAY_SECONDS
        while self._is_behind() and time.monotonic() < deadline and 2 * self._spool.used_bytes < self._spool.max_bytes:
            if stop.wait(_LOOK_SECONDS):
                return

    def finish(self) -> None:
        """Ship everything, as far as it goes; raise PgkeepError when the vault does not take it."""
        try:
            self.ship(with_partial=True)
        except OSError as error:
            raise VaultError(f"cannot read the spool {self._spool.path}: {error.strerror}") from error
        if self._partial is not None:
            segment, length = self._partial
            self._say(f"shipped up to {Lsn(segment.start_lsn + length)} on timeline {segment.timeline}")

    def ship(self, *, with_partial: bool) -> None:
        """Ship what is there now: history files, then segments in order, then the newest as far as it goes."""
        for timeline in self._spool.histories():
            # They stay in the spool, so that receiving needs no vault.
            if timeline not in self._shipped_histories:
                self._push(timeline.history_file_name)
                self._shipped_histories.add(timeline)
        segments = self._spool.segments()
        for spooled in segments[:-1]:
            self._ship_older(spooled)
        if not segments:
            return
        newest = segments[-1]
        if newest.is_complete:
            # It stays, but it is shipped as soon as any other.
            if self._partial != (newest.segment, newest.segment.size):
                self._push(newest.name)
                self._partial = (newest.segment, newest.segment.size)
        elif with_partial:
            self._ship_partial(newest)

    def _ship_older(self, spooled: SpooledSegment) -> None:
        if spooled.name in self._refused:
            return
        if spooled.is_complete:
            self._push(spooled.name)
        else:
            # A timeline ended in it, or WAL is missing behind it: it never becomes complete.
            try:
                self._ship_partial(spooled)
            except ArchiveError as error:
                self._refused.add(spooled.name)
                self._warn(f"{error.message}; {spooled.name} stays in the spool {self._spool.path}")
                return
        self._spool.remove(spooled.name)

    def _push(self, name: str) -> None:
        push = Push(self._spool.path / name, is_ahead=False)
        push_file(self._archive, push, compression_level=self._compression_level)
        if is_segment_name(name):
            segment = WalSegment.parse(name, size=self._spool.segment_size)
            self._shipped = WalPosition(segment.timeline, segment.end_lsn)

    def _ship_partial(self, spooled: SpooledSegment) -> None:
        path = self._spool.path / spooled.name
        # Before it is looked at: what comes meanwhile is not promised. One that grows no more has a time of its own.
        proof, mtime_ns = self._proof(), path.stat().st_mtime_ns
        segment, durable = spooled.segment, self._durable()
        length = spooled_end(self._spool, spooled) - segment.start_lsn
        if durable is not None and durable[0] == segment:
            length = max(length, durable[1])
        if not length or (self._partial is not None and self._partial[0] == segment and self._partial[1] >= length):
            return
        proved_ns = proof.time_of(segment.timeline) if proof is not None else None
        is_received = durable is None or durable[0] == segment
        written_ns = min(mtime_ns, proved_ns or 0) if is_received else mtime_ns
        self._archive.put(
            spooled.name,
            segment_part(path, length),
            compression_level=self._compression_level,
            written_ns=written_ns,
        )
        self._partial = (segment, length)
        self._shipped = WalPosition(segment.timeline, Lsn(segment.start_lsn + length))


def _text(error: PgkeepError | OSError) -> str:
    return error.message if isinstance(error, PgkeepError) else f"{error.filename}: {error.strerror}"
