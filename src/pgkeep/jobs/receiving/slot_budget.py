"""What a receiver's slot may keep on the server, and the end of a slot that keeps more while nobody receives."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Callable

from pgkeep.errors import PgkeepError
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.receiving.source import SourceOptions, check_cluster
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import ReplicationSlot, drop_slot, find_slot
from pgkeep.vault.wal_holes import WalHole

STILL_SECONDS = 10.0
STILL_ANSWERS = 3
"""A slot is dropped when it stood still for so long and in so many answers: a connection that broke is made again."""


class SlotBudget:
    """
    Bounds what one slot keeps, for where the server does not.

    Args:
        options: Which server and slot.
        max_bytes: WAL that the slot may keep; 0 for any.
        segment_size: Of the server's WAL.
        record_hole: Writes down WAL that is given up.
        warn: Takes one warning.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        options: SourceOptions,
        *,
        max_bytes: int,
        segment_size: int,
        record_hole: Callable[[WalHole], None],
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._max_bytes = max_bytes
        self._segment_size = segment_size
        self._record_hole = record_hole
        self._warn = warn
        self._clock = clock
        self._still_at: Lsn | None = None
        self._still_since = 0.0
        self._answers = 0
        self._written: set[tuple[Timeline, Lsn]] = set()
        self._told = ""

    def note(self, slot: ReplicationSlot | None, *, is_received: bool) -> None:
        """Take in what the server says of the slot now, and whether WAL is received."""
        at = slot.restart_lsn if slot is not None and not slot.is_active and not is_received else None
        if at is None or at != self._still_at:
            self._still_at, self._still_since, self._answers = at, self._clock(), 0
        self._answers += 1

    def is_exceeded(self, kept_bytes: int | None) -> bool:
        """Tell whether the slot keeps too much, and has stood still for so long that nobody is about to receive it."""
        return (
            0 < self._max_bytes < (kept_bytes or 0)
            and self._still_at is not None
            and self._answers >= STILL_ANSWERS
            and self._clock() - self._still_since >= STILL_SECONDS
        )

    def give_up(self, received: WalPosition | None) -> bool:
        """
        Drop the slot, so that the server may forget the WAL, and write down what that costs.

        Args:
            received: Up to where WAL was received; None when nothing was.

        Returns:
            Whether it is gone; where it is not, that was said, once.
        """
        try:
            # Not as the receiver: its name is one that synchronous commits may wait for.
            with Server.open(dataclasses.replace(self._options.target, application_name="pgkeep")) as server:
                is_gone = self._drop(server, received)
        except PgkeepError as error:
            if error.message != self._told:
                self._warn(f'slot "{self._options.slot}" keeps too much and cannot be dropped: {error.message}')
            self._told = error.message
            return False
        self._told = ""
        return is_gone

    def _drop(self, server: Server, received: WalPosition | None) -> bool:
        name, identity = self._options.slot, queries.identify(server)
        check_cluster(server, self._options, identity.system_identifier)
        # Another server than the one that answered last may have a slot of that name, or somebody receives meanwhile.
        slot, end = find_slot(server, name), queries.flushed_lsn(server)
        if slot is None or slot.is_active or slot.restart_lsn is None or slot.restart_lsn != self._still_at:
            self.note(slot, is_received=False)
            return slot is None
        reason = (
            f'slot "{name}" was dropped: it kept {size_text(max(0, end - slot.restart_lsn))} on the server, more than '
            f"slot_wal_max ({size_text(self._max_bytes)})"
        )
        start, stop = received.lsn if received is not None else slot.restart_lsn, Lsn(end - end % self._segment_size)
        if start < stop and (identity.timeline, start) not in self._written:
            # Written before it is true: a slot that is gone without a word would be a silent hole.
            self._record_hole(
                WalHole(
                    timeline=int(identity.timeline),
                    start=str(start),
                    stop=str(stop),
                    time=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
                    reason=reason,
                )
            )
            self._written.add((identity.timeline, start))
        drop_slot(server, name)
        self.note(None, is_received=False)
        self._warn(f"{reason}; make a new base backup as soon as receiving goes on")
        return True
