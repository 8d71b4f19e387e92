r"""
Sealed files: zstd that stock tools read, ending in a seal that any flipped bit breaks.

::

    zstd frames                      the content; each frame carries its own XXH64
    50 2A 4D 18                      magic of a skippable frame, which zstd and zstdcat pass over
    28 00 00 00                      its payload: 40 bytes
    "PGKEEP1\0"                       8 bytes
    BLAKE3                           32 bytes, of every byte before the skippable frame

The seal is the last thing in the file and there is nothing after it, so a truncated file has no seal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard
from blake3 import blake3

from pgkeep.errors import FormatError

SEAL_MAGIC = (0x184D2A50).to_bytes(4, "little")
SEAL_TAG = b"PGKEEP1\0"
DIGEST_BYTES = 32
SEAL_START = SEAL_MAGIC + (len(SEAL_TAG) + DIGEST_BYTES).to_bytes(4, "little") + SEAL_TAG
SEAL_BYTES = len(SEAL_START) + DIGEST_BYTES

READ_BYTES = 1 << 20


def seal_of(frames: bytes | bytearray | memoryview) -> bytes:
    """Return the seal, 48 bytes, that belongs after *frames*."""
    return SEAL_START + blake3(frames).digest()


def seal(content: bytes | bytearray | memoryview, *, compression_level: int = 1) -> bytes:
    """Return *content* as a whole sealed file of one frame; for content that fits in memory."""
    compressor = zstandard.ZstdCompressor(level=compression_level, write_checksum=True)
    frames = compressor.compress(content)
    return frames + seal_of(frames)


def unseal(sealed: bytes | bytearray | memoryview, *, name: str, max_size: int) -> bytes:
    """
    Return the content of a whole sealed file.

    Args:
        sealed: All bytes of the file.
        name: What messages call it.
        max_size: Bytes; more content than this is an error, so that damage cannot ask for all memory.

    Raises:
        FormatError: Some byte is not what was written.
    """
    view = memoryview(sealed)
    frames = _checked_frames(view, name)
    decompressor = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    pieces: list[bytes] = []
    size = 0
    try:
        for start in range(0, len(frames), READ_BYTES):
            piece = decompressor.decompress(frames[start : start + READ_BYTES])
            size += len(piece)
            if size > max_size:
                raise FormatError(f"{name} holds more than the expected {max_size} bytes")
            pieces.append(piece)
    except zstandard.ZstdError as error:
        raise FormatError(f"{name} is damaged: {error}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _checked_frames(sealed: memoryview, name: str) -> memoryview:
    if len(sealed) < SEAL_BYTES:
        raise FormatError(f"{name} is truncated: a seal needs {SEAL_BYTES} bytes, found {len(sealed)}")
    frames, trailer = sealed[:-SEAL_BYTES], sealed[-SEAL_BYTES:]
    _check_seal(trailer, blake3(frames).digest(), name)
    return frames


def _check_seal(trailer: bytes | memoryview, digest: bytes, name: str) -> None:
    if bytes(trailer[: len(SEAL_START)]) != SEAL_START:
        raise FormatError(f"{name} does not end in a seal: it is truncated or damaged")
    if bytes(trailer[len(SEAL_START) :]) != digest:
        raise FormatError(
            f"{name} is damaged: its seal says BLAKE3 {bytes(trailer[len(SEAL_START) :]).hex()[:16]}, "
            f"its bytes give {digest.hex()[:16]}"
        )


class SealedWriter:
    """
    Write a sealed file piece by piece; nothing is valid before ``finish``.

    Args:
        file: Where the bytes go; stays open, is not synced.
        compression_level: Of zstd.
    """

    def __init__(self, file: BinaryIO, *, compression_level: int = 1) -> None:
        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=compression_level, write_checksum=True)
        self._frame: zstandard.ZstdCompressionObj | None = None
        self._digest = blake3()
        self.stored_bytes = 0

    def write(self, content: bytes | bytearray | memoryview) -> None:
        """Append *content* to the current frame."""
        if self._frame is None:
            self._frame = self._compressor.compressobj()
        self._put(self._frame.compress(content))

    def end_frame(self) -> None:
        """End the current frame, so that what was written so far can be read and checked without the rest."""
        if self._frame is not None:
            self._put(self._frame.flush())
            self._frame = None

    def append_frames(self, stored: bytes | bytearray | memoryview) -> None:
        """Append whole zstd frames as they are; the current frame must have been ended."""
        assert self._frame is None
        self._put(stored)

    def finish(self) -> str:
        """Write the seal; return the BLAKE3 of the whole file, seal included, as 64 hexadecimal digits."""
        self.end_frame()
        self._put(SEAL_START + self._digest.digest())
        return str(self._digest.hexdigest())

    def _put(self, stored: bytes | bytearray | memoryview) -> None:
        if stored:
            self._file.write(stored)
            self._digest.update(stored)
            self.stored_bytes += len(stored)


class _HashedFrames:
    """The bytes before a seal, digested while the decompressor takes them."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file = file
        self._left = size
        self._name = name
        self.digest = blake3()

    def read(self, size: int) -> bytes:
        """Return up to *size* bytes; nothing at the end."""
        stored = self._file.read(min(size, self._left))
        if not stored and self._left:
            raise FormatError(f"{self._name} became shorter while it was read")
        self._left -= len(stored)
        self.digest.update(stored)
        return stored


def read_sealed(file: BinaryIO, *, name: str) -> Iterator[bytes]:
    """
    Yield the content of a sealed file, at most 1 MiB at a time.

    The seal is checked when the last byte has passed: a caller that must not act on damaged content consumes all of it
    first.

    Args:
        file: A seekable file, read from its start.
        name: What messages call it.

    Raises:
        FormatError: Some byte is not what was written; at the latest at the end.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size < SEAL_BYTES:
        raise FormatError(f"{name} is truncated: a seal needs {SEAL_BYTES} bytes, found {size}")
    frames = _HashedFrames(file, size - SEAL_BYTES, name)
    # stream_reader, since it bounds what one call returns: a segment of zeros is 30,000 times its stored size.
    content = zstandard.ZstdDecompressor().stream_reader(
        cast("BinaryIO", frames), read_size=READ_BYTES, read_across_frames=True, closefd=False
    )
    try:
        while piece := content.read(READ_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise FormatError(f"{name} is damaged: {error}") from error
    # A last frame that was cut is silent in stream_reader; the seal is not.
    while frames.read(READ_BYTES):
        pass
    _check_seal(file.read(SEAL_BYTES), frames.digest.digest(), name)


def read_first_frame(file: BinaryIO, *, name: str, max_size: int) -> bytes:
    """
    Return the content of the first frame of a sealed file, checked by the frame's own checksum and no more.

    Raises:
        FormatError: The frame is damaged, longer than *max_size* bytes, or not there.
    """
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    content = bytearray()
    while not decompressor.eof:
        stored = file.read(64 << 10)
        if not stored:
            raise FormatError(f"{name} is truncated within its first frame")
        try:
            content += decompressor.decompress(stored)
        except zstandard.ZstdError as error:
            raise FormatError(f"{name} is damaged: {error}") from error
        if len(content) > max_size:
            raise FormatError(f"{name} holds more than the expected {max_size} bytes")
    return bytes(content)
