"""Segments with a true header and made-up content, and archives to put them in."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from pgkeep.pg.lsn import SystemIdentifier, Timeline
from pgkeep.pg.wal import WalSegment
from pgkeep.vault.wal_archive import WalArchive

SYSTEM = SystemIdentifier(7_312_345_678_901_234_567)
MIB = 1 << 20


def segment_named(name: str, *, size: int = MIB) -> WalSegment:
    """Return the segment called *name*."""
    return WalSegment.parse(name, size=size)


def segment_at(number: int, *, timeline: int = 1, size: int = MIB) -> WalSegment:
    """Return segment *number* of *timeline*."""
    return WalSegment(Timeline(timeline), number, size)


def wal_of(
    segment: WalSegment,
    *,
    seed: int = 0,
    used: int | None = None,
    system: int = SYSTEM,
    page_timeline: int | None = None,
) -> bytes:
    """
    Return the bytes of *segment*.

    Args:
        segment: Which one.
        seed: Other seeds give other content.
        used: Bytes before the zeros of a segment that is not complete; None for a full one.
        system: System identifier in the header.
        page_timeline: Timeline in the header, when it is not the segment's own.
    """
    timeline = int(segment.timeline) if page_timeline is None else page_timeline
    header = struct.pack("<HHIQI4xQII", 0xD110, 0x0002, timeline, segment.start_lsn, 0, system, segment.size, 8192)
    rest = random.Random(seed * 1_000_003 + segment.number)
    body = b"".join(rest.randbytes(512) + bytes(512) for _ in range(segment.size // 1024))
    content = (header + body)[: segment.size]
    return content if used is None else content[:used] + bytes(segment.size - used)


def made_archive(directory: Path, *, size: int = MIB, system: int = SYSTEM) -> WalArchive:
    """Make the directories of a cluster in a vault under *directory*, and return its empty WAL archive."""
    root = directory / "main" / "wal"
    root.mkdir(parents=True, exist_ok=True)
    (root.parent / "cluster.json").touch()
    return WalArchive(root, system_identifier=SystemIdentifier(system), segment_size=size)


def stored_path(archive: WalArchive, name: str) -> Path:
    """Return where *archive* keeps *name*."""
    directory = archive.root / name[:8]
    return (directory if name.endswith(".history") else directory / name[:16]) / f"{name}.zst"


def all_files(archive: WalArchive) -> list[str]:
    """Return every file under the archive's directory, relative and sorted."""
    return sorted(str(path.relative_to(archive.root)) for path in archive.root.rglob("*") if path.is_file())
