"""
One file of a relation, put together as a stream from the file of a Full and the increments since.

Every source is read once, from its beginning to its end and at the pace of the others, so that a source that checks
itself has been checked when the stream has ended, and so that there is never more in memory than a piece of each. What
an increment does is what ``datadir/roll_forward.py`` does in place, piece by piece: blocks from its truncation length
on become zeros, then its own blocks take their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pgkeep.errors import FormatError
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.data_directory import DEFAULT_BLOCK_SIZE
from pgkeep.pg.incremental_file import MAX_HEADER_BYTES, parse_header
from pgkeep.streams.item import CHUNK_BYTES, EXTENT_BYTES, Buffer, DetachedItem

_BLOCKS_PER_CHUNK = CHUNK_BYTES // DEFAULT_BLOCK_SIZE

Read = Callable[[int, int], object]
"""Takes the size of what has been read to its end, and its CRC-32C."""


class OrderedContent:
    """
    The content of a detached item, read in order.

    Args:
        item: Whose; it is closed at the end.
        read: Is told when all of it has been read.
    """

    def __init__(self, item: DetachedItem, read: Read) -> None:
        self.path = item.header.path
        self.size = item.header.size
        self._item = item
        self._read = read
        self._crc = 0
        self._loaded = 0
        self._extent = memoryview(b"")

    def peek(self, length: int) -> memoryview:
        """Return what is next without going on: at most *length* bytes, and of one extent."""
        if not self._extent and self._loaded < self.size:
            taken = min(EXTENT_BYTES, self.size - self._loaded)
            self._extent = memoryview(self._item.read_extent(self._loaded, taken)).cast("B")
            self._crc = crc32c(self._extent, self._crc)
            self._loaded += taken
        return self._extent[:length]

    def take(self, length: int) -> memoryview:
        """Return the next *length* bytes, or what is left."""
        first = self._next(length)
        if len(first) == length or self._loaded == self.size:
            return first
        pieces, missing = [first], length - len(first)
        while missing and (piece := self._next(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return memoryview(b"".join(pieces))

    def chunks(self) -> Iterator[Buffer]:
        """Yield all that is left."""
        while chunk := self._next(CHUNK_BYTES):
            yield chunk
        self.finish()

    def finish(self) -> None:
        """Read what nobody has asked for, say that all has been read, and close the item."""
        while self._next(EXTENT_BYTES):
            pass
        self._item.close()
        self._read(self.size, self._crc)

    def _next(self, length: int) -> memoryview:
        piece = self.peek(length)
        self._extent = self._extent[len(piece) :]
        return piece


class RolledFile:
    """
    What a Full's file is after some increments; ``chunks`` may be called once.

    Args:
        whole: The file as the Full, or a later backup that sent all of it, holds it.
        increments: The increments since, oldest first; one or more.

    Attributes:
        size: Bytes of the result.

    Raises:
        FormatError: What should be an increment is none.
    """

    def __init__(self, whole: OrderedContent, increments: Sequence[OrderedContent]) -> None:
        self._whole = whole
        self._increments = [_Increment(content) for content in increments]
        self.size = self._increments[-1].result_bytes

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content, and read every source to its end."""
        blocks = self.size // DEFAULT_BLOCK_SIZE
        for first in range(0, blocks, _BLOCKS_PER_CHUNK):
            chunk = np.zeros((min(_BLOCKS_PER_CHUNK, blocks - first), DEFAULT_BLOCK_SIZE), np.uint8)
            flat = chunk.reshape(-1)
            # Where the file is shorter than what an increment counts of it, zeros take its place.
            known = np.frombuffer(self._whole.take(len(flat)), np.uint8)
            flat[: len(known)] = known
            for increment in self._increments:
                increment.apply(chunk, first)
            yield flat.data
        self._whole.finish()
        for increment in self._increments:
            increment.finish()


class _Increment:
    """One increment on its way through."""

    def __init__(self, content: OrderedContent) -> None:
        self._content = content
        try:
            header = parse_header(content.peek(MAX_HEADER_BYTES), size=content.size)
        except FormatError as error:
            raise FormatError(f"{content.path}: {error.message}") from error
        self.result_bytes = header.result_bytes
        self._truncation_blocks = header.truncation_blocks
        self._blocks: npt.NDArray[np.int64] = np.array(header.blocks, np.int64)
        # The server sorts them (GetFileBackupMethod in basebackup_incremental.c), and one pass relies on it.
        if (np.diff(self._blocks) <= 0).any():
            raise FormatError(f"{content.path}: incremental file has block numbers that do not ascend")
        self._next = 0
        content.take(header.header_bytes)

    def apply(self, chunk: npt.NDArray[np.uint8], first: int) -> None:
        """Change *chunk*, whole blocks from the block *first* of the file on."""
        end = first + len(chunk)
        if self._truncation_blocks < end:
            chunk[max(0, self._truncation_blocks - first) :] = 0
        begin, self._next = self._next, int(np.searchsorted(self._blocks, end))
        if count := self._next - begin:
            content = np.frombuffer(self._content.take(count * DEFAULT_BLOCK_SIZE), np.uint8)
            chunk[self._blocks[begin : self._next] - first] = content.reshape(count, DEFAULT_BLOCK_SIZE)

    def finish(self) -> None:
        """Read the blocks that a later increment has cut off."""
        self._content.finish()
