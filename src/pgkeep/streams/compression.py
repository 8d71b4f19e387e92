"""Compression of a stream as a stage between a source and a sink: gzip, lz4, zstd, each in its standard file format."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from pgkeep.errors import FormatError, UsageError
from pgkeep.streams.item import CHUNK_BYTES, Buffer

_SLICE_BYTES = 1 << 10
"""Input per call when decompressing: 4 bytes of zstd may become 128 KiB, so this keeps one call within 32 MiB."""


class Compression(enum.Enum):
    """A way to compress; the value is the name that people write."""

    NONE = "none"
    GZIP = "gzip"
    LZ4 = "lz4"
    ZSTD = "zstd"

    @property
    def suffix(self) -> str:
        """What a file name gets: ``.zst``; empty for none."""
        return {"none": "", "gzip": ".gz", "lz4": ".lz4", "zstd": ".zst"}[self.value]

    @property
    def default_level(self) -> int:
        """The level that serves when none is asked for; chosen for speed, since dumps are large."""
        return {"none": 0, "gzip": 1, "lz4": 1, "zstd": 1}[self.value]

    @property
    def levels(self) -> range:
        """Levels that may be asked for."""
        return {"none": range(1), "gzip": range(1, 10), "lz4": range(1, 13), "zstd": range(1, 23)}[self.value]

    def level(self, asked: int | None) -> int:
        """Return the level to use for *asked*; 0 and None mean the default."""
        if not asked:
            return self.default_level
        if asked not in self.levels:
            raise UsageError(
                f"compression level out of range for {self.value}: "
                f"expected {self.levels.start} to {self.levels.stop - 1}, found {asked}"
            )
        return asked


class _Compressor(Protocol):
    def compress(self, data: Buffer, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: Buffer, /) -> bytes: ...


def compress(chunks: Iterable[Buffer], compression: Compression, level: int | None = None) -> Iterator[Buffer]:
    """Yield *chunks* compressed, at most ``CHUNK_BYTES`` at a time; memory does not grow with the stream."""
    if compression is Compression.NONE:
        yield from chunks
        return
    compressor = _compressor(compression, compression.level(level))
    yield from _cut(_head(compressor))
    for chunk in chunks:
        yield from _cut(compressor.compress(chunk))
    yield from _cut(compressor.flush())


def decompress(chunks: Iterable[Buffer], compression: Compression) -> Iterator[Buffer]:
    """
    Yield what *chunks* held before they were compressed, at most ``CHUNK_BYTES`` at a time.

    Several compressed files one after the other are read as one, as the standard programs do.

    Raises:
        FormatError: The stream is damaged, or ends before its end.
    """
    if compression is Compression.NONE:
        yield from chunks
        return
    decompressor, complaints = _decompressor(compression)
    is_empty = True
    in_frame = True
    ready = bytearray()
    for piece in _slices(chunks):
        pending: Buffer = piece
        while len(pending):
            is_empty = False
            if not in_frame:
                decompressor, complaints = _decompressor(compression)
                in_frame = True
            try:
                ready += decompressor.decompress(pending)
            except complaints as error:
                raise FormatError(f"damaged {compression.value} stream: {error}") from error
            pending = b""
            if decompressor.eof:
                pending = decompressor.unused_data or b""
                in_frame = False
        if len(ready) >= CHUNK_BYTES:
            yield from _cut(bytes(ready))
            ready.clear()
    if in_frame or is_empty:
        raise FormatError(f"{compression.value} stream ends before its end")
    yield from _cut(bytes(ready))


def _slices(chunks: Iterable[Buffer]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        for offset in range(0, len(view), _SLICE_BYTES):
            yield view[offset : offset + _SLICE_BYTES]


def _cut(data: Buffer) -> Iterator[Buffer]:
    view = memoryview(data)
    for offset in range(0, len(view), CHUNK_BYTES):
        yield view[offset : offset + CHUNK_BYTES]


def _head(compressor: _Compressor) -> bytes:
    begin = getattr(compressor, "begin", None)
    return bytes(begin()) if begin is not None else b""


def _compressor(compression: Compression, level: int) -> _Compressor:
    if compression is Compression.GZIP:
        return zlib.compressobj(level, zlib.DEFLATED, 31)
    if compression is Compression.LZ4:
        import lz4.frame

        made: _Compressor = lz4.frame.LZ4FrameCompressor(
            compression_level=level if level > 1 else 0, content_checksum=True, block_size=lz4.frame.BLOCKSIZE_MAX1MB
        )
        return made
    import zstandard

    return zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()


def _decompressor(compression: Compression) -> tuple[_Decompressor, tuple[type[Exception], ...]]:
    """Return a decompressor of one frame, and what it raises for damaged bytes."""
    if compression is Compression.GZIP:
        return zlib.decompressobj(31), (zlib.error,)
    if compression is Compression.LZ4:
        import lz4.frame

        return lz4.frame.LZ4FrameDecompressor(), (RuntimeError,)
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj(), (zstandard.ZstdError,)
