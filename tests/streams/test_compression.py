"""Compression of a stream: round trips, damage, memory."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError, UsageError
from pgkeep.streams.compression import Compression, compress, decompress
from pgkeep.streams.item import CHUNK_BYTES

SQUEEZED = [one for one in Compression if one is not Compression.NONE]
TEXT = b"".join(b"row %d\tvalue\n" % number for number in range(20000))


def joined(chunks: Iterator[object]) -> bytes:
    """Return the chunks as one."""
    return b"".join(bytes(chunk) for chunk in chunks)  # type: ignore[call-overload]  # buffers


@given(st.lists(st.binary(max_size=5000), max_size=8), st.sampled_from(Compression), st.integers(1, 5000))
def test_round_trip(chunks: list[bytes], compression: Compression, cut: int) -> None:
    """What is compressed comes back, however the stream is cut."""
    stored = joined(compress(chunks, compression))
    pieces = [stored[offset : offset + cut] for offset in range(0, len(stored), cut)]
    assert joined(decompress(pieces, compression)) == b"".join(chunks)


@pytest.mark.parametrize("compression", SQUEEZED, ids=lambda one: one.value)
def test_standard_programs_agree(compression: Compression) -> None:
    """The stream is a file of the standard format, and several of them after each other are one."""
    readers: dict[Compression, Callable[[bytes], bytes]] = {
        Compression.GZIP: gzip.decompress,
        Compression.LZ4: lz4.frame.decompress,
        Compression.ZSTD: lambda data: zstandard.ZstdDecompressor().stream_reader(data).read(),
    }
    stored = joined(compress([TEXT], compression))
    assert readers[compression](stored) == TEXT
    assert joined(decompress([stored + stored], compression)) == TEXT + TEXT


@pytest.mark.parametrize("compression", SQUEEZED, ids=lambda one: one.value)
@pytest.mark.parametrize("level", [1, 9])
def test_chunks_are_bounded(compression: Compression, level: int) -> None:
    """No chunk is larger than the contract of items allows, in either direction."""
    noise = os.urandom(3 * CHUNK_BYTES + 5)
    stored = [bytes(chunk) for chunk in compress([noise, bytes(20 * CHUNK_BYTES)], compression, level)]
    assert max(map(len, stored)) <= CHUNK_BYTES
    sizes = [len(chunk) for chunk in decompress(stored, compression)]
    assert max(sizes) <= CHUNK_BYTES
    assert sum(sizes) == 23 * CHUNK_BYTES + 5


@pytest.mark.parametrize("compression", SQUEEZED, ids=lambda one: one.value)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data, ""),
        (lambda data: data[:-1], "{} stream ends before its end"),
        (lambda data: data[: len(data) // 2], "{} stream ends before its end"),
        (lambda _: b"", "{} stream ends before its end"),
        (lambda _: b"not compressed at all", "damaged {} stream: "),
        (lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], "damaged {} stream: "),
        (lambda data: data + b"tail that is no frame", "damaged {} stream: "),
    ],
    ids=["none", "last byte", "half", "everything", "not compressed", "flipped bit", "tail"],
)
def test_damage(compression: Compression, damage: Callable[[bytes], bytes], message: str) -> None:
    """A damaged stream is an error of the format, never wrong content."""
    stored = damage(joined(compress([TEXT], compression)))
    if not message:
        assert joined(decompress([stored], compression)) == TEXT
        return
    with pytest.raises(FormatError) as failure:
        joined(decompress([stored], compression))
    assert str(failure.value).startswith(message.format(compression.value))


def test_levels() -> None:
    """0 and None mean the default level; a level out of range is refused with the range."""
    assert [one.level(0) for one in Compression] == [0, 1, 1, 1]
    assert Compression.ZSTD.level(22) == 22
    with pytest.raises(UsageError) as failure:
        Compression.GZIP.level(10)
    assert str(failure.value) == "compression level out of range for gzip: expected 1 to 9, found 10"
