"""Items made up for tests: of any size, streamed or detached, with content that only their path decides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pgkeep.streams.item import CHUNK_BYTES, UNKNOWN_SIZE, Buffer, ItemHeader, ItemKind, ItemRole
from pgkeep.streams.record import Level, RecordHead

ROOT = "@postgresql/pitr/pgdata"
FULL = "20261120T204800Z-F"
DIFFERENTIAL = "20261121T204800Z-D"
INCREMENTAL = "20261122T204800Z-I"


def content_of(path: str, size: int) -> bytes:
    """Return *size* bytes that compress a little and differ from path to path."""
    block = random.Random(path).randbytes(3000) + b"lorem ipsum " * 400
    return (block * (size // len(block) + 1))[:size]


def header_of(path: str, size: int = 0, *, kind: ItemKind = ItemKind.FILE, link: str = "") -> ItemHeader:
    """Return the header of a made item."""
    file_mode = 0o700 if kind is ItemKind.DIRECTORY else 0o600
    return ItemHeader(path, kind, size, 1_700_000_000_123_456_789, file_mode, "postgres", "postgres", link)


@dataclass(eq=False)
class MadeDetached:
    """A detached item over bytes in memory."""

    header: ItemHeader
    content: bytes
    closed: int = 0

    def read_extent(self, offset: int, length: int) -> Buffer:
        """Return a view."""
        return memoryview(self.content)[offset : offset + length]

    def close(self) -> None:
        """Count."""
        self.closed += 1


@dataclass
class MadeStreamed:
    """A streamed item over bytes in memory; its one buffer is used again for each chunk."""

    header: ItemHeader
    content: bytes
    chunk_bytes: int = CHUNK_BYTES

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content from a buffer that changes after each chunk."""
        buffer = bytearray(self.chunk_bytes)
        for start in range(0, len(self.content), self.chunk_bytes):
            piece = self.content[start : start + self.chunk_bytes]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
            buffer[:] = b"\xee" * self.chunk_bytes


def detached(path: str, size: int) -> MadeDetached:
    """Return a detached item of *size* bytes."""
    return MadeDetached(header_of(path, size), content_of(path, size))


def streamed(path: str, size: int, *, announced: bool = True, role: ItemRole = ItemRole.DATA) -> MadeStreamed:
    """Return a streamed item of *size* bytes, its size *announced* or not."""
    header = ItemHeader(
        path, size=size if announced else UNKNOWN_SIZE, mtime_ns=1_700_000_000 * 10**9, file_mode=0o640, role=role
    )
    return MadeStreamed(header, content_of(path, size))


def directory(path: str) -> MadeStreamed:
    """Return the item of a directory."""
    return MadeStreamed(header_of(path, kind=ItemKind.DIRECTORY), b"")


def symlink(path: str, target: str) -> MadeStreamed:
    """Return the item of a symbolic link."""
    return MadeStreamed(header_of(path, kind=ItemKind.SYMLINK, link=target), b"")


def head_of(backup_id: str, *, base: str = "", files_from: str | None = None, **fields: object) -> RecordHead:
    """Return the head of a made backup of mode pitr."""
    return RecordHead(
        backup_id=backup_id,
        cluster="main",
        mode="pitr",
        level=Level(backup_id[-1]),
        base=base,
        files_from=backup_id if files_from is None else files_from,
        **fields,  # type: ignore[arg-type]
    )
