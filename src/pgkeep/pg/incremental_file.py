"""
``INCREMENTAL.*``: the changed blocks of one file of a relation, as BASE_BACKUP of PostgreSQL 17 and newer sends them.

The file is a header and then whole blocks (``sendFile`` in ``src/backend/backup/basebackup.c``), integers as the
server's machine has them, which is little-endian wherever PostgreSQL 17 is packaged:

====================  =========================================================
bytes                 content
====================  =========================================================
0–3                   magic, 0xd3ae1f0d
4–7                   *n*, how many blocks follow
8–11                  truncation length, in blocks
12–(11 + 4 n)         the blocks' numbers within the file, each four bytes
to a whole block      padding, only where *n* is not 0
then                  *n* blocks, in the order of their numbers above
====================  =========================================================

What it does to the file that the backup before it knew (``reconstruct_from_incremental_file`` in
``src/bin/pg_combinebackup/reconstruct.c``): blocks from the truncation length on are not those of the earlier backup
any more, the blocks of the increment take their places, and the file ends behind the last block of either.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pgkeep.errors import FormatError
from pgkeep.pg.data_directory import DEFAULT_BLOCK_SIZE, RELATION_SEGMENT_BYTES, page_file

MAGIC = 0xD3AE1F0D
NAME_PREFIX = "INCREMENTAL."
SEGMENT_BLOCKS = RELATION_SEGMENT_BYTES // DEFAULT_BLOCK_SIZE
FIXED_BYTES = 12
MAX_HEADER_BYTES = FIXED_BYTES + 4 * SEGMENT_BLOCKS + DEFAULT_BLOCK_SIZE

_FIXED = struct.Struct("<III")

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks that are neighbours in the increment and in the relation's file; offsets and length in bytes."""

    source_offset: int
    target_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class IncrementalHeader:
    """
    What an incremental file says before its blocks.

    Attributes:
        truncation_blocks: How many blocks of the earlier file count at most.
        blocks: Number of each block that follows, in the order in which they follow; 0 to ``SEGMENT_BLOCKS`` - 1.
    """

    truncation_blocks: int
    blocks: tuple[int, ...] = ()

    @property
    def header_bytes(self) -> int:
        """Where the first block stands, padding included."""
        unpadded = FIXED_BYTES + 4 * len(self.blocks)
        return -(-unpadded // DEFAULT_BLOCK_SIZE) * DEFAULT_BLOCK_SIZE if self.blocks else unpadded

    @property
    def file_bytes(self) -> int:
        """Size of the incremental file."""
        return self.header_bytes + len(self.blocks) * DEFAULT_BLOCK_SIZE

    @property
    def kept_bytes(self) -> int:
        """How much of the earlier file counts at most; where it is shorter, zeros take its place."""
        return self.truncation_blocks * DEFAULT_BLOCK_SIZE

    @property
    def result_bytes(self) -> int:
        """Size of the relation's file when the increment has been applied."""
        return max(self.truncation_blocks, max(self.blocks, default=-1) + 1) * DEFAULT_BLOCK_SIZE

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """
        Yield where the blocks between two offsets of the incremental file belong, in the order of the file.

        Args:
            start: Offset in bytes; 0, or a whole number of blocks behind the beginning of the first block.
            stop: The same, or the file's size.
        """
        first = max(0, (start - self.header_bytes) // DEFAULT_BLOCK_SIZE)
        end = min(len(self.blocks), (stop - self.header_bytes) // DEFAULT_BLOCK_SIZE)
        while first < end:
            count, number = 1, self.blocks[first]
            while first + count < end and self.blocks[first + count] == number + count:
                count += 1
            yield Run(
                self.header_bytes + first * DEFAULT_BLOCK_SIZE, number * DEFAULT_BLOCK_SIZE, count * DEFAULT_BLOCK_SIZE
            )
            first += count

    def render(self) -> bytes:
        """Return the header's bytes, padding included."""
        numbers = struct.pack(f"<{len(self.blocks)}I", *self.blocks)
        fixed = _FIXED.pack(MAGIC, len(self.blocks), self.truncation_blocks)
        return (fixed + numbers).ljust(self.header_bytes, b"\0")


def is_incremental(path: str) -> bool:
    """Tell whether the file at *path* holds changed blocks and not the file itself."""
    return path.rpartition("/")[2].startswith(NAME_PREFIX)


def is_increment(inside: str) -> bool:
    """Tell whether the file at *inside*, ``pgdata/…`` or ``tblspc/…``, is named and placed as an increment is."""
    # In directories where no relations are, anybody may call a file so.
    return is_incremental(inside) and page_file(relation_path(inside.removeprefix("pgdata/"))) is not None


def relation_path(path: str) -> str:
    """Return the path of the file that the incremental file at *path* changes; any other path is returned as it is."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}{name.removeprefix(NAME_PREFIX)}"


def incremental_path(path: str) -> str:
    """Return the path under which the changed blocks of the file at *path* are sent."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}{NAME_PREFIX}{name}"


def parse_header(content: Buffer, *, size: int) -> IncrementalHeader:
    """
    Return the header at the beginning of an incremental file.

    Args:
        content: At least the header: the whole file, or its first ``MAX_HEADER_BYTES``.
        size: Bytes of the whole file.

    Raises:
        FormatError: It is not the beginning of an incremental file of *size* bytes.
    """
    if len(content) < FIXED_BYTES:
        raise FormatError(f"incremental file has {len(content)} bytes, expected at least {FIXED_BYTES}")
    magic, count, truncation_blocks = _FIXED.unpack_from(content)
    if magic != MAGIC:
        raise FormatError(f"incremental file begins with 0x{magic:08x}, expected 0x{MAGIC:08x}")
    if count > SEGMENT_BLOCKS:
        raise FormatError(f"incremental file has {count} blocks, expected at most {SEGMENT_BLOCKS}")
    # Of a relation that was cut off in a later file, servers before 17.8 and 18.2 say how far that is from this one's
    # beginning (GetFileBackupMethod in basebackup_incremental.c): this file was full then, and is.
    truncation_blocks = min(truncation_blocks, SEGMENT_BLOCKS)
    if len(content) < FIXED_BYTES + 4 * count:
        raise FormatError(f"incremental file ends within the numbers of its {count} blocks")
    header = IncrementalHeader(truncation_blocks, struct.unpack_from(f"<{count}I", content, FIXED_BYTES))
    if count and max(header.blocks) >= SEGMENT_BLOCKS:
        raise FormatError(
            f"incremental file has a block number {max(header.blocks)}, expected less than {SEGMENT_BLOCKS}"
        )
    if size != header.file_bytes:
        raise FormatError(
            f"incremental file with {count} blocks has {size} bytes, expected {header.file_bytes}: "
            f"blocks of {DEFAULT_BLOCK_SIZE} bytes"
        )
    return header
