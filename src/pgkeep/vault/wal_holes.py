"""
WAL that was never received, written down when the receiver went on behind it: ``<cluster>/wal-holes.jsonl``.

One JSON object a line, oldest first, only ever added to. What another archiver brings later fills a hole; the lines
stay, and who reads them asks the archive.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pgkeep.errors import VaultError
from pgkeep.vault.unnamed_file import inherit_owner, write_all

HOLES_FILE = "wal-holes.jsonl"


class WalHole(msgspec.Struct, frozen=True, kw_only=True):
    """
    WAL that was not received.

    Attributes:
        timeline: Of its end.
        start: First LSN that is missing.
        stop: First LSN that was received again; the beginning of a segment.
        time: When that was noticed; ISO-8601, UTC.
        reason: What the server said.
    """

    timeline: int
    start: str
    stop: str
    time: str
    reason: str


def add_hole(cluster_directory: Path, hole: WalHole) -> None:
    """Write *hole* down, durably."""
    path = cluster_directory / HOLES_FILE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        directory = os.open(cluster_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            inherit_owner(fd, directory)
            write_all(fd, msgspec.json.encode(hole) + b"\n")
            os.fsync(fd)
            os.fsync(directory)
        finally:
            os.close(fd)
            os.close(directory)
    except OSError as error:
        raise VaultError(f"cannot write {path}: {error.strerror}") from error


def read_holes(cluster_directory: Path) -> list[WalHole]:
    """Return the holes, oldest first; a last line that was cut short is left out."""
    path = cluster_directory / HOLES_FILE
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise VaultError(f"cannot read {path}: {error.strerror}") from error
    holes = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            continue
        try:
            holes.append(msgspec.json.decode(line, type=WalHole))
        except msgspec.DecodeError as error:
            raise VaultError(f"line {number} of {path} is damaged: {error}") from error
    return holes
