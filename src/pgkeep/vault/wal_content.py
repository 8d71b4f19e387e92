"""The content of archived WAL: cut into frames on its way in, drawn out of sealed files, checked against its name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import IO, cast

import zstandard
from blake3 import blake3

from pgkeep.errors import ArchiveError, FormatError, VaultError
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.pg.wal import LONG_HEADER_BYTES, WalSegment, check_wal_header, is_partial_name, is_segment_name
from pgkeep.vault.sealed import SEAL_BYTES, SEAL_START

Buffer = bytes | bytearray | memoryview

FRAME_BYTES = 4 << 20
"""Content of one zstd frame: what is compressed, and held in memory, at once."""

MAX_TEXT_BYTES = 16 << 20
"""Largest history or backup history file, in bytes; a real one has a few KiB."""

_READ_BYTES = 1 << 20


class ContentCheck:
    """
    Sees the content of one file pass, and raises ArchiveError when it is not what the file's name says.

    Args:
        name: As the server calls the file.
        system_identifier: Of the cluster.
        segment_size: Bytes.
    """

    def __init__(self, name: str, *, system_identifier: SystemIdentifier, segment_size: int) -> None:
        self._name = name
        self._system_identifier = system_identifier
        self._segment_size = segment_size
        self._size = 0
        self._is_wal = is_segment_name(name) or is_partial_name(name)

    def feed(self, extent: Buffer) -> None:
        """Take the next buffer; the first one holds the whole header of a segment."""
        if self._is_wal and not self._size:
            self._check_header(extent)
        self._size += len(extent)
        limit = self._segment_size if self._is_wal else MAX_TEXT_BYTES
        if self._size > limit:
            raise ArchiveError(f"{self._name} has more than the expected {limit} bytes")

    def finish(self) -> None:
        """Say that all has passed."""
        if self._is_wal and self._size != self._segment_size:
            raise ArchiveError(f"{self._name} has {self._size} bytes, not {self._segment_size}")
        if not self._size:
            raise ArchiveError(f"{self._name} is empty")

    def _check_header(self, extent: Buffer) -> None:
        try:
            segment = WalSegment.parse(self._name[:24], size=self._segment_size)
            header = memoryview(extent)[:LONG_HEADER_BYTES]
            check_wal_header(header, segment, system_identifier=self._system_identifier)
        except FormatError as error:
            raise ArchiveError(error.message) from error


def extents(content: Iterable[Buffer]) -> Iterator[Buffer]:
    """Yield *content* again in buffers of FRAME_BYTES, the last one shorter, each valid until the next is asked for."""
    held = memoryview(b"")
    filled = 0
    for buffer in content:
        view = memoryview(buffer)
        if not filled and len(view) == FRAME_BYTES:
            yield view
            continue
        held = held or memoryview(bytearray(FRAME_BYTES))
        while view:
            length = min(len(view), FRAME_BYTES - filled)
            held[filled : filled + length] = view[:length]
            filled += length
            view = view[length:]
            if filled == FRAME_BYTES:
                yield held
                filled = 0
    if filled:
        yield held[:filled]


def sealed_content(fd: int, *, name: str) -> Iterator[memoryview]:
    """
    Yield the content of a sealed file in one reused buffer of FRAME_BYTES; the last one may be shorter.

    Raises:
        FormatError: The file is damaged; this may come as late as at the end.
        VaultError: It cannot be read.
    """
    frames = _SealedFrames(fd, name)
    # stream_reader only calls read(); its annotation asks for a whole file.
    source = cast("IO[bytes]", frames)
    reader = zstandard.ZstdDecompressor().stream_reader(source, read_size=_READ_BYTES, read_across_frames=True)
    buffer = memoryview(bytearray(FRAME_BYTES))
    try:
        while filled := _fill(reader, buffer):
            yield buffer[:filled]
    except zstandard.ZstdError as error:
        raise FormatError(f"{name} is damaged: {error}") from error
    frames.finish()


def content_digest(fd: int, *, name: str) -> bytes:
    """Return the BLAKE3 of the content of a sealed file; raises as ``sealed_content`` does."""
    digest = blake3()
    for piece in sealed_content(fd, name=name):
        digest.update(piece)
    return digest.digest()


def is_continued_by(shorter: Iterable[Buffer], longer: Iterable[Buffer]) -> bool:
    """
    Tell whether *longer* has all that *shorter* has: they are equal up to where *shorter* is zeros to its end.

    Both come in buffers of the same sizes, as ``sealed_content`` of two files of one size yields them.
    """
    differ = False
    for mine_buffer, other_buffer in zip(shorter, longer, strict=True):
        mine, other = bytes(mine_buffer), bytes(other_buffer)
        if not differ and mine != other:
            mine = mine[first_difference(mine, other) :]
            differ = True
        if differ and mine.count(0) != len(mine):
            return False
    return True


def first_difference(left: bytes, right: bytes) -> int:
    """Return the offset of the first byte in which two buffers differ; the shorter length when there is none."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high) // 2
        if left[low : middle + 1] == right[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low


class _SealedFrames:
    """The stored bytes before the seal, for a reader that pulls; every byte that passes is digested."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._offset = 0
        self._digest = blake3()
        self._size = max(os.fstat(fd).st_size - SEAL_BYTES, 0)
        self._seal = self._pread(SEAL_BYTES, self._size)
        if not self._seal.startswith(SEAL_START):
            raise FormatError(f"{name} does not end in a seal: it is truncated or damaged")

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most *size*; none at the end."""
        left = self._size - self._offset
        stored = self._pread(left if size < 0 else min(size, left), self._offset)
        self._offset += len(stored)
        self._digest.update(stored)
        return stored

    def finish(self) -> None:
        """Raise FormatError unless all bytes together are what was sealed."""
        while self.read(_READ_BYTES):
            pass
        if self._digest.digest() != self._seal[len(SEAL_START) :]:
            raise FormatError(f"{self._name} is damaged: its bytes do not give the BLAKE3 of its seal")

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise VaultError(f"cannot read {self._name}: {error.strerror}") from error


def _fill(reader: zstandard.ZstdDecompressionReader, buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer):
        count = reader.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled
