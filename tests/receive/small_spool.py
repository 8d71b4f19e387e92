"""A spool and an archive of small segments, without a server, and a shipper between them that says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.spool.directory import Spool
from pgkeep.vault.wal_archive import WalArchive

SYSTEM, SEGMENT = SystemIdentifier(7), 1 << 20

QUIET: dict[str, Any] = {
    "window_seconds": 3600,
    "compression_level": 1,
    "say": lambda _: None,
    "warn": lambda _: None,
}
"""Arguments of a Shipper; what it ships in part it ships in an hour."""


def small_spool(directory: Path) -> Spool:
    """Return a spool with room for eight segments; it is a context manager."""
    return Spool(directory / "spool", system_identifier=SYSTEM, segment_size=SEGMENT, max_bytes=8 * SEGMENT)


def small_archive(directory: Path) -> WalArchive:
    """Return an archive for it."""
    return WalArchive(directory / "wal", system_identifier=SYSTEM, segment_size=SEGMENT)
