"""What a receiver tells the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pgkeep.vault.wal_holes import WalHole


@dataclass(frozen=True, slots=True, kw_only=True)
class Ears:
    """
    Who hears what of a receiver; all are called from its thread.

    Attributes:
        say: Takes one line for the log.
        warn: Takes one warning.
        record_hole: Writes down WAL that cannot be received any more.
        streams: Told when the server streams.
        arrived: Told when a file is there to be shipped.
    """

    say: Callable[[str], None]
    warn: Callable[[str], None]
    record_hole: Callable[[WalHole], None]
    streams: Callable[[], None]
    arrived: Callable[[], None]
