"""
Watch over a receiver: hold what the server has against what was received, spooled and shipped, every other second.

It says what is wrong once, and when it is over, and writes all of it into the spool, where ``check`` and ``info`` find
it. Neither receiving nor shipping waits for it, and nothing that it meets ends them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from pgkeep.errors import PgkeepError, error_text
from pgkeep.jobs.receiving.backlog import Backlog
from pgkeep.jobs.receiving.judgement import Figures, is_in_danger, judge
from pgkeep.jobs.receiving.receiver import Receiver
from pgkeep.jobs.receiving.ship import Shipper
from pgkeep.jobs.receiving.slot_budget import SlotBudget
from pgkeep.jobs.receiving.source import SourceOptions
from pgkeep.jobs.receiving.troubles import Troubles
from pgkeep.jobs.recovery.windows import holes_without_base, is_missing
from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import ReplicationSlot, find_slot
from pgkeep.spool.directory import Spool
from pgkeep.spool.state import BACULA, VAULT, ReceiverState, read_state, write_state
from pgkeep.spool.taken import read_taken
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.layout import MANIFEST_FILE
from pgkeep.vault.wal_holes import HOLES_FILE, WalHole

LOOK_SECONDS = 2.0
ASK_SECONDS = 5.0


class Watchdog:
    """
    Watches over one receiver and its shipper; runs in a thread of its own.

    Args:
        cluster: In the vault; None where Bacula's jobs take the WAL, which say for themselves what they lack.
        spool: Of the receiver.
        receiver: Who receives.
        shipper: Who ships; None in the same case.
        options: Which server.
        window_seconds: How old unshipped WAL may be.
        slot_wal_max: WAL that the slot may keep before it is dropped, in bytes; 0 for any.
        record_hole: Writes down WAL that is given up.
        say: Takes one line for the log.
        warn: Takes one warning.
    """

    def __init__(
        self,
        cluster: ClusterVault | None,
        spool: Spool,
        receiver: Receiver,
        shipper: Shipper | None,
        options: SourceOptions,
        *,
        window_seconds: float,
        slot_wal_max: int,
        record_hole: Callable[[WalHole], None],
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._spool = spool
        self._receiver = receiver
        self._shipper = shipper
        # The receiver's name is one that synchronous commits may wait for.
        self._target = dataclasses.replace(options.target, application_name="pgkeep")
        self._slot_name = options.slot
        self._ships_to = VAULT if shipper is not None else BACULA
        self._window_seconds = window_seconds
        self._warn = warn
        self._budget = SlotBudget(
            options, max_bytes=slot_wal_max, segment_size=spool.segment_size, record_hole=record_hole, warn=warn
        )
        self._troubles = Troubles(say=say, warn=warn)
        self._slot: ReplicationSlot | None = None
        self._server_end: Lsn | None = None
        self._ask_at = 0.0
        self._asks_in_danger = 0
        self._is_answered = False
        self._asks_unanswered = 0
        self._refusal = ""
        self._unreceived = Backlog()
        self._unshipped = Backlog()
        self._idle_since: float | None = None
        self._holes: list[WalHole] = []
        self._holes_key: object = None
        self._unshipped_at_start = self._left_before()

    def run(self, stop: threading.Event) -> None:
        """Look until *stop* is set."""
        told = ""
        while not stop.is_set():
            # What it cannot see now it sees at another look; it must never end what it watches over.
            try:
                self.look()
                told = ""
            except Exception as error:  # noqa: BLE001 - nor may a fault of its own end it unheard
                text = error_text(error)
                if text != told:
                    self._warn(f"cannot watch over it: {text}")
                told = text
            stop.wait(LOOK_SECONDS)

    def look(self) -> None:
        """Look once: say what is new, and write down how it stands."""
        is_fresh = time.monotonic() >= self._ask_at
        if is_fresh:
            self._ask_at = time.monotonic() + ASK_SECONDS
            self._ask()
        figures = self._figures()
        self._troubles.update(judge(figures))
        # A disk without room is the receiver's to say; check sees that for itself.
        with suppress(OSError):
            write_state(self._spool.path, self._state(figures))
        # Last: whatever becomes of it, how the receiver stands was said.
        is_exceeded = is_fresh and self._is_answered and self._budget.is_exceeded(figures.kept_bytes)
        if is_exceeded and self._budget.give_up(self._receiver.received()):
            self._slot = None

    def finish(self) -> None:
        """Write down how it stands in the end, when nothing runs any more."""
        self._is_answered = False
        try:
            with suppress(OSError):
                write_state(self._spool.path, self._state(self._figures()))
        except Exception as error:  # noqa: BLE001 - what ended the receiving is told after it
            self._warn(f"cannot write down how it stands: {error_text(error)}")

    def _ask(self) -> None:
        """Ask the server; in a session that does not stay, since one that stays would hold up a smart shutdown."""
        try:
            with Server.open(self._target) as server:
                self._slot, self._server_end = find_slot(server, self._slot_name), queries.flushed_lsn(server)
        except PgkeepError as error:
            # What was wrong is not over because nobody says so. The receiver tells of a server that is away.
            self._is_answered = False
            self._asks_unanswered = 0 if self._receiver.trouble else self._asks_unanswered + 1
            self._refusal = error.message
            return
        self._is_answered, self._asks_unanswered = True, 0
        self._budget.note(self._slot, is_received=not self._receiver.trouble)
        self._asks_in_danger = self._asks_in_danger + 1 if is_in_danger(self._slot, self._server_end) else 0

    def _figures(self) -> Figures:
        now, received = time.time(), self._receiver.received()
        shipped = self._shipper.shipped() if self._shipper is not None else read_taken(self._spool.path)
        slot, server_end = self._slot, self._receiver.server_end or self._server_end
        if received is not None:
            if server_end is not None:
                self._unreceived.note(WalPosition(received.timeline, server_end), now)
            self._unreceived.settle(received)
            self._unshipped.note(received, self._unshipped_at_start or now)
            self._unshipped_at_start = None
            self._unshipped.settle(shipped)
        is_idle = slot is not None and not slot.is_active and (self._is_answered or not self._receiver.is_streaming)
        self._idle_since = (self._idle_since or now) if is_idle else None
        return Figures(
            receiving=self._receiver.trouble,
            shipping=self._shipper.trouble if self._shipper is not None else "",
            ships_to=self._ships_to,
            server_end=server_end,
            received=received.lsn if received is not None else None,
            shipped=shipped.lsn if shipped is not None else None,
            unreceived_seconds=_age(self._unreceived.since, now),
            unshipped_seconds=_age(self._unshipped.since, now),
            window_seconds=self._window_seconds,
            slot=slot,
            unanswered=self._refusal if self._asks_unanswered > 1 else "",
            idle_slot_seconds=_age(self._idle_since, now),
            asks_in_danger=self._asks_in_danger,
            holes=self._open_holes(),
        )

    def _open_holes(self) -> list[WalHole]:
        """Return the holes behind which there is no base backup; looked for again when there is news of either."""
        cluster = self._cluster
        if cluster is None:
            return []
        try:
            status = (cluster.directory / HOLES_FILE).stat()
        except FileNotFoundError:
            return []
        # A backup counts from its record on, which comes last; before that its directory is there for long.
        ids = [name for name in cluster.backup_ids() if (cluster.backup_directory(name) / MANIFEST_FILE).exists()]
        key = (status.st_mtime_ns, status.st_size, ids)
        if key != self._holes_key:
            self._holes = holes_without_base(cluster)
            self._holes_key = key
        else:
            # What another archiver brings changes neither.
            self._holes = [hole for hole in self._holes if is_missing(cluster, hole)]
        return self._holes

    def _state(self, figures: Figures) -> ReceiverState:
        received, slot = self._receiver.received(), figures.slot if self._is_answered else None
        return ReceiverState(
            time=_iso(time.time()),
            window_seconds=self._window_seconds,
            ships_to=self._ships_to,
            is_streaming=self._receiver.is_streaming,
            slot=self._slot_name,
            timeline=int(received.timeline) if received is not None else 0,
            server_lsn=_text(figures.server_end),
            received_lsn=_text(figures.received),
            shipped_lsn=_text(figures.shipped),
            unreceived_since=_iso(self._unreceived.since),
            unshipped_since=_iso(self._unshipped.since),
            spool_bytes=self._spool.used_bytes,
            spool_max_bytes=self._spool.max_bytes,
            slot_is_active=slot.is_active if slot is not None else None,
            slot_wal_status=slot.wal_status if slot is not None else "",
            slot_kept_bytes=figures.kept_bytes if slot is not None else None,
            slot_safe_bytes=slot.safe_wal_bytes if slot is not None else None,
            troubles=self._troubles.messages(),
        )

    def _left_before(self) -> float | None:
        """Return since when an earlier receiver had left WAL unshipped; None when it had not."""
        with suppress(PgkeepError, ValueError):
            before = read_state(self._spool.path)
            if before is not None and before.unshipped_since:
                return dt.datetime.fromisoformat(before.unshipped_since).timestamp()
        return None


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else max(0.0, now - since)


def _iso(seconds: float | None) -> str:
    return "" if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")


def _text(lsn: Lsn | None) -> str:
    return "" if lsn is None else str(lsn)
