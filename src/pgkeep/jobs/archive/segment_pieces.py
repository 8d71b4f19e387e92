"""The bytes of a WAL segment on disk, all of them or as far as they count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PIECE_BYTES = 1 << 20


def segment_pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of the segment at *path* in buffers of whole pages."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def segment_part(path: Path, size: int) -> Iterator[bytes]:
    """Yield the segment at *path* with zeros behind its first *size* bytes, as a new one has them."""
    left = size
    for piece in segment_pieces(path):
        kept = piece[: max(0, left)]
        left -= len(kept)
        yield kept + bytes(len(piece) - len(kept))
