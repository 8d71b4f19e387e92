"""What is wrong with a receiver, from how far everybody is: figures in, troubles out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from pgkeep.jobs.amount import size_text
from pgkeep.jobs.receiving.troubles import Trouble
from pgkeep.pg.lsn import Lsn
from pgkeep.server.slots import ReplicationSlot
from pgkeep.vault.wal_holes import WalHole

STALL_SECONDS = 60.0
"""WAL that the server has had for so long, and the receiver has not, is a stall."""

SHIPPING_SECONDS = 60.0
"""How long shipping may take, beyond the window, before WAL counts as unshipped for too long."""

_SLOT_PERCENT = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    How far everybody is; ages in seconds, None for no such WAL.

    Attributes:
        receiving: Why nothing is received, as the receiver has said it; empty when it streams.
        shipping: The same of the shipper.
        server_end: Of the server's WAL; None when it is not known.
        received: Up to where WAL is durable in the spool.
        shipped: Up to where it was shipped.
        ships_to: Where that leads, in words.
        unreceived_seconds: Age of the oldest WAL that was not received.
        unshipped_seconds: Age of the oldest WAL that was not shipped.
        window_seconds: How old that may be.
        slot: As the server lists it, or did when it last answered; None when it has none.
        unanswered: Why the server says nothing of the slot, where it sends WAL nevertheless; empty when it does.
        idle_slot_seconds: For how long nobody has streamed from the slot.
        asks_in_danger: How often in a row the server was asked, and the slot was in danger; see ``is_in_danger``.
        holes: Those behind which there is no base backup.
    """

    receiving: str
    shipping: str
    server_end: Lsn | None
    received: Lsn | None
    shipped: Lsn | None
    ships_to: str
    unreceived_seconds: float | None
    unshipped_seconds: float | None
    window_seconds: float
    slot: ReplicationSlot | None
    unanswered: str
    idle_slot_seconds: float | None
    asks_in_danger: int
    holes: list[WalHole]

    @property
    def kept_bytes(self) -> int | None:
        """WAL that the server keeps for the slot; None when that is not known."""
        return kept_bytes(self.slot, self.server_end)


def kept_bytes(slot: ReplicationSlot | None, server_end: Lsn | None) -> int | None:
    """Return how much WAL the server keeps for *slot*; None when that is not known."""
    if slot is None or slot.restart_lsn is None or server_end is None:
        return None
    return max(0, server_end - slot.restart_lsn)


def is_in_danger(slot: ReplicationSlot | None, server_end: Lsn | None) -> bool:
    """Tell whether *slot* has used 70 % of what the server keeps for it, or more than that."""
    kept = kept_bytes(slot, server_end)
    if slot is None or kept is None:
        return False
    safe = slot.safe_wal_bytes
    return slot.wal_status == "unreserved" or (safe is not None and safe * _SLOT_PERCENT < kept * (100 - _SLOT_PERCENT))


def unshipped_text(shipped: str, received: str, age_seconds: float, *, ships_to: str, window_seconds: float) -> str:
    """Return what is said of WAL behind *shipped*, empty for all, that has waited for so long."""
    return (
        f"WAL from {shipped or 'its beginning'} to {received} has waited for {_duration(age_seconds)} to get into "
        f"{ships_to}, expected {window_seconds:g} s"
    )


def judge(figures: Figures) -> Iterator[Trouble]:
    """Yield what is wrong."""
    if figures.receiving:
        yield Trouble("receiving", figures.receiving, is_said=True)
    if figures.shipping:
        yield Trouble("shipping", figures.shipping, is_said=True)
    age = figures.unreceived_seconds
    if age is not None and age > STALL_SECONDS:
        yield Trouble(
            "stalled",
            f"STALLED: the server has WAL up to {figures.server_end}, received is up to {figures.received}, "
            f"and nothing came for {_duration(age)}",
        )
    age = figures.unshipped_seconds
    if age is not None and age > figures.window_seconds + SHIPPING_SECONDS:
        yield Trouble(
            "unshipped",
            "UNSHIPPED: "
            + unshipped_text(
                str(figures.shipped or ""),
                str(figures.received),
                age,
                ships_to=figures.ships_to,
                window_seconds=figures.window_seconds,
            ),
        )
    yield from _slot(figures)
    if figures.holes:
        hole = figures.holes[-1]
        yield Trouble(
            "hole",
            f"NO BASE BACKUP behind the hole in the WAL from {hole.start} to {hole.stop}: make one now",
            state=f"{hole.start} {hole.stop}",
        )


def _slot(figures: Figures) -> Iterator[Trouble]:
    if figures.unanswered:
        yield Trouble("unanswered", f"the server does not say how the slot stands: {figures.unanswered}")
    slot, kept = figures.slot, figures.kept_bytes
    if slot is None:
        return
    if slot.is_lost:
        # The receiver makes it anew, and says so.
        yield Trouble("slot", f'slot "{slot.name}" is lost: the server has given up WAL for it', is_said=True)
    # A receiver that has just come back may be about to catch up.
    elif figures.asks_in_danger > 1:
        loses = "loses WAL at the next checkpoint"
        if slot.wal_status != "unreserved":
            loses = f"loses WAL after another {size_text(max(0, slot.safe_wal_bytes or 0))}"
        yield Trouble(
            "slot",
            f'slot "{slot.name}" keeps {size_text(kept or 0)} on the server, and {loses}',
            state=slot.wal_status,
        )
    idle = figures.idle_slot_seconds
    if idle is not None and idle > STALL_SECONDS:
        size = f" and keeps {size_text(kept)} on the server" if kept is not None else ""
        yield Trouble("inactive", f'slot "{slot.name}" has been inactive for {_duration(idle)}{size}')


def _duration(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))
