"""Sealed files: stock zstd reads them, and no flipped bit or missing byte passes."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.vault.sealed import SEAL_BYTES, SealedWriter, read_first_frame, read_sealed, seal, unseal

CONTENT = b"hello, sealed world " * 20


def written(frames: list[bytes]) -> bytes:
    """Return a sealed file of the given frames."""
    file = io.BytesIO()
    writer = SealedWriter(file)
    for frame in frames:
        writer.write(frame)
        writer.end_frame()
    writer.finish()
    return file.getvalue()


def read(stored: bytes) -> bytes:
    """Return the content of a sealed file, streamed."""
    return b"".join(read_sealed(io.BytesIO(stored), name="it"))


@given(frames=st.lists(st.binary(max_size=5000), max_size=4))
def test_what_is_sealed_is_read(frames: list[bytes]) -> None:
    """Streaming and whole reading give back the content of all frames."""
    content = b"".join(frames)
    stored = written(frames)
    assert read(stored) == content
    assert unseal(stored, name="it", max_size=len(content)) == content
    assert read(seal(content)) == content


def test_a_long_run_of_zeros_comes_in_bounded_pieces() -> None:
    """What one step returns does not grow with the ratio of compression."""
    pieces = list(read_sealed(io.BytesIO(seal(bytes(64 << 20))), name="it"))
    assert sum(map(len, pieces)) == 64 << 20
    assert max(map(len, pieces)) <= 1 << 20


def test_stock_zstd_reads_it(tmp_path: Path) -> None:
    """The seal is a skippable frame: zstdcat prints the content, and zstd -t is content."""
    path = tmp_path / "file.zst"
    path.write_bytes(seal(CONTENT))
    assert subprocess.run(["zstdcat", path], check=True, capture_output=True, timeout=60).stdout == CONTENT
    subprocess.run(["zstd", "-tq", path], check=True, timeout=60)


def test_no_flipped_bit_passes() -> None:
    """Every bit of the file counts, in both ways of reading."""
    stored = seal(CONTENT)
    assert read(stored) == CONTENT
    for position in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(FormatError):
            unseal(damaged, name="it", max_size=1 << 20)
        with pytest.raises(FormatError):
            read(bytes(damaged))


@pytest.mark.parametrize("extra", [b"\0", b"more"])
def test_nothing_may_follow_the_seal(extra: bytes) -> None:
    """A file with something after its seal is not what was written."""
    with pytest.raises(FormatError) as caught:
        read(seal(CONTENT) + extra)
    assert str(caught.value) == "it does not end in a seal: it is truncated or damaged"


def test_no_prefix_passes() -> None:
    """A file cut anywhere is refused."""
    stored = seal(CONTENT)
    for length in range(len(stored)):
        with pytest.raises(FormatError):
            read(stored[:length])
    with pytest.raises(FormatError) as caught:
        unseal(stored[:10], name="it", max_size=99)
    assert str(caught.value) == f"it is truncated: a seal needs {SEAL_BYTES} bytes, found 10"


def test_the_first_frame_is_read_alone() -> None:
    """A head in a frame of its own is read, and checked, without the rest."""
    stored = written([b"head\n", b"list " * 1000])
    assert read_first_frame(io.BytesIO(stored[:40]), name="it", max_size=99) == b"head\n"
    with pytest.raises(FormatError) as caught:
        read_first_frame(io.BytesIO(stored), name="it", max_size=3)
    assert str(caught.value) == "it holds more than the expected 3 bytes"
    with pytest.raises(FormatError) as caught:
        read_first_frame(io.BytesIO(stored[:9]), name="it", max_size=99)
    assert str(caught.value) == "it is truncated within its first frame"


def test_content_beyond_the_limit_is_refused() -> None:
    """Whoever expects a segment of 1 MiB does not unpack a gigabyte."""
    with pytest.raises(FormatError) as caught:
        unseal(seal(bytes(1 << 20)), name="it", max_size=1000)
    assert str(caught.value) == "it holds more than the expected 1000 bytes"


@given(st.binary(max_size=200))
def test_any_bytes_are_sealed_or_a_format_error(stored: bytes) -> None:
    """Garbage is refused by the format's own error."""
    with pytest.raises(FormatError):
        read(stored)
