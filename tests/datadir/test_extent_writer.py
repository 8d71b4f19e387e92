"""Writing past the page cache, and through it where that is not possible."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgkeep.datadir import extent_writer
from pgkeep.datadir.extent_writer import DIRECT_BYTES, ExtentWriter
from pgkeep.streams.item import EXTENT_BYTES, Buffer

SIZES = [
    0,
    1,
    8192,
    DIRECT_BYTES,
    DIRECT_BYTES + 1,
    EXTENT_BYTES,
    EXTENT_BYTES + 8192,
    2 * EXTENT_BYTES + 4095,
    6 * EXTENT_BYTES,
]


def write(path: Path, content: bytes, *, writer: ExtentWriter | None = None, size: int | None = None) -> None:
    """Write *content* as the pool would, the extents in no order and in each kind of buffer."""
    kinds = [bytes, bytearray, memoryview, lambda part: memoryview(bytearray(part)), _in_pages, _beside_pages]
    writer = writer or ExtentWriter()
    file = writer.begin(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), len(content) if size is None else size
    )
    offsets = range(0, len(content), EXTENT_BYTES)
    for number, offset in enumerate(reversed(offsets)):
        buffer: Buffer = kinds[number % len(kinds)](content[offset : offset + EXTENT_BYTES])
        writer.write(file, offset, buffer)
    file.close()


def _in_pages(content: bytes, *, beside: int = 0) -> memoryview:
    memory = mmap.mmap(-1, EXTENT_BYTES + beside, flags=mmap.MAP_PRIVATE)
    view = memoryview(memory)[beside : beside + len(content)]
    view[:] = content
    return view


def _beside_pages(content: bytes) -> memoryview:
    return _in_pages(content, beside=512)


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Make every write past the page cache fail as a file system does that doesn't mean its O_DIRECT."""
    refused: list[int] = []
    real_pwrite = os.pwrite

    def pwrite(descriptor: int, buffer: Buffer, offset: int) -> int:
        if os.get_blocking(descriptor) and _is_direct(descriptor):
            refused.append(offset)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real_pwrite(descriptor, buffer, offset)

    monkeypatch.setattr(extent_writer.os, "pwrite", pwrite)
    return refused


def _is_direct(descriptor: int) -> bool:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    [flags] = [int(line.split()[1], 8) for line in lines if line.startswith("flags:")]
    return bool(flags & os.O_DIRECT)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_what_is_read(tmp_path: Path, size: int) -> None:
    """Aligned or not, in any kind of buffer, in any order of extents."""
    content = os.urandom(size)

    write(tmp_path / "file", content)

    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize(("make", "is_copied"), [(_in_pages, False), (_beside_pages, True), (bytes, True)])
def test_only_what_does_not_begin_with_a_page_is_copied_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[bytes], Buffer], is_copied: bool
) -> None:
    """The kernel takes whole pages from where they are, and the file is the same either way."""
    content = os.urandom(EXTENT_BYTES)
    given = make(content)
    copied: list[bool] = []
    real_pwrite = os.pwrite

    def pwrite(descriptor: int, buffer: memoryview, offset: int) -> int:
        assert _is_direct(descriptor)
        copied.append(buffer.obj is not memoryview(given).obj)
        return real_pwrite(descriptor, buffer, offset)

    monkeypatch.setattr(extent_writer.os, "pwrite", pwrite)
    writer = ExtentWriter()
    file = writer.begin(os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT, 0o600), EXTENT_BYTES)
    writer.write(file, 0, given)
    file.close()

    assert set(copied) == {is_copied}
    assert (tmp_path / "file").read_bytes() == content


def test_a_size_that_is_not_known_before_is_written_through_the_page_cache(tmp_path: Path) -> None:
    """Only the end tells how long it is."""
    content = os.urandom(EXTENT_BYTES + 1)

    write(tmp_path / "file", content, size=-1)

    assert (tmp_path / "file").read_bytes() == content


def test_a_file_system_that_refuses_at_the_write_is_asked_once(tmp_path: Path, refusals: list[int]) -> None:
    """From then on everything goes through the page cache."""
    writer = ExtentWriter()
    content = os.urandom(3 * EXTENT_BYTES)

    write(tmp_path / "one", content, writer=writer)
    write(tmp_path / "two", content, writer=writer)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == content
    assert refusals == [2 * EXTENT_BYTES]


def test_any_other_error_of_a_write_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is not a file system that refuses."""

    def fail(descriptor: int, buffer: Buffer, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = ExtentWriter()
    file = writer.begin(os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT, 0o600), EXTENT_BYTES)
    monkeypatch.setattr(extent_writer.os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output error"):
        writer.write(file, 0, bytes(EXTENT_BYTES))
    file.close()


def test_room_is_taken_before_the_first_write(tmp_path: Path) -> None:
    """A file that cannot fit is known at once, and no descriptor is lost."""
    before = len(os.listdir("/proc/self/fd"))
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT, 0o600)

    with pytest.raises(OSError, match=r"No space left on device|File too large"):
        ExtentWriter().begin(descriptor, 1 << 60)

    assert len(os.listdir("/proc/self/fd")) == before
