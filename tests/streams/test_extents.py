"""The extent pool: order within a file, errors, memory, threads."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.streams.extents import SMALL_BYTES, ExtentPool, HasHeader
from pgkeep.streams.item import EXTENT_BYTES, UNKNOWN_SIZE, Buffer, BytesItem, ItemHeader

DEADLINE_SECONDS = 20.0


@dataclass(eq=False)
class Repeated:
    """A detached item whose extents each hold one repeated byte: their index."""

    path: str
    size: int
    closed: int = 0
    fail_at: int = -1

    @property
    def header(self) -> ItemHeader:
        """The header."""
        return ItemHeader(path=self.path, size=self.size)

    def read_extent(self, offset: int, length: int) -> Buffer:
        """Return the extent, or fail where told to."""
        index = offset // EXTENT_BYTES
        if index == self.fail_at:
            raise OSError(5, "scripted")
        return bytes([index % 251]) * length

    def close(self) -> None:
        """Count."""
        self.closed += 1


@dataclass
class Streamed:
    """A streamed item of given chunks."""

    header: ItemHeader
    pieces: list[bytes]

    def chunks(self) -> Iterator[Buffer]:
        """Yield them."""
        yield from self.pieces


@dataclass
class Filling(Streamed):
    """A streamed item that puts what is left of a piece, once its first byte was asked for, where it is wanted."""

    rest: bytes = b""

    def chunks(self) -> Iterator[Buffer]:
        """Yield the first byte of each piece, and what is not taken of the rest."""
        for piece in self.pieces:
            self.rest = piece[1:]
            yield piece[:1]
            if self.rest:
                rest, self.rest = self.rest, b""
                yield rest

    def fill(self, buffer: memoryview) -> int:
        """Put at most a mebibyte and one byte; nothing once less than that is left."""
        taken = min(len(buffer), (1 << 20) + 1)
        if len(self.rest) < taken:
            return 0
        buffer[:taken], self.rest = self.rest[:taken], self.rest[taken:]
        return taken


@dataclass
class Collected:
    """What the collecting work saw of one file."""

    path: str
    content: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=list)
    ended: int = 0


class Collecting:
    """Work that keeps what it is given."""

    def __init__(self) -> None:
        self.files: dict[str, Collected] = {}
        self.open_at_once = 0
        self._open = 0
        self._lock = threading.Lock()

    def begin(self, item: HasHeader, /) -> Collected:
        """Note the file."""
        collected = Collected(item.header.path)
        with self._lock:
            self._open += 1
            self.open_at_once = max(self.open_at_once, self._open)
            self.files[collected.path] = collected
        return collected

    def extent(self, state: Collected, offset: int, buffer: Buffer, /) -> tuple[int, Buffer]:
        """Pass the buffer on."""
        return offset, buffer

    def ordered(self, state: Collected, result: tuple[int, Buffer], /) -> None:
        """Append."""
        state.offsets.append(result[0])
        state.content += result[1]

    def end(self, state: Collected, /) -> None:
        """Count."""
        state.ended += 1
        with self._lock:
            self._open -= 1


def submit_all(
    pool: ExtentPool[Collected, tuple[int, Buffer]], items: Iterable[Repeated], submitted: list[Repeated]
) -> None:
    """Submit all *items*, noting each that was tried."""
    with pool:
        for item in items:
            submitted.append(item)
            pool.submit_detached(item)


SIZES = st.sampled_from([0, 1, 511, EXTENT_BYTES - 1, EXTENT_BYTES, EXTENT_BYTES + 1, 3 * EXTENT_BYTES + 7])


@settings(max_examples=30)
@given(sizes=st.lists(SIZES, max_size=8), workers=st.integers(1, 4), streamed=st.integers(0, 255))
def test_every_file_arrives_whole_and_in_order(sizes: list[int], workers: int, streamed: int) -> None:
    """Whatever the mix of sizes and kinds, each file's extents pass in order and it ends once."""
    work = Collecting()
    items = [Repeated(f"f{n}", size) for n, size in enumerate(sizes)]
    with ExtentPool(workers, work) as pool:
        for n, item in enumerate(items):
            if streamed >> n & 1:
                content = b"".join(
                    bytes(item.read_extent(o, min(EXTENT_BYTES, item.size - o)))
                    for o in range(0, item.size, EXTENT_BYTES)
                )
                pool.submit_streamed(BytesItem(ItemHeader(path=item.path, size=item.size), content))
            else:
                pool.submit_detached(item)
    assert sorted(work.files) == sorted(item.path for item in items)
    assert work.open_at_once <= workers
    for n, item in enumerate(items):
        seen = work.files[item.path]
        assert len(seen.content) == item.size
        assert seen.offsets == list(range(0, item.size, EXTENT_BYTES))
        assert seen.content[-1:] == bytes([seen.offsets[-1] // EXTENT_BYTES]) if item.size else True
        assert seen.ended == 1
        assert item.closed == (0 if streamed >> n & 1 else 1)


@pytest.mark.parametrize(
    "lengths",
    [[1], [1 << 20], [2 * EXTENT_BYTES], [2 * EXTENT_BYTES + 1, 100, EXTENT_BYTES - 101], [100, 3 * EXTENT_BYTES - 7]],
)
def test_content_that_is_put_in_extents_is_the_same(lengths: list[int]) -> None:
    """An item that writes to the extents itself, in part or to their ends, arrives like any other."""
    pieces = [
        bytes([n + 1]) * (length // 2) + bytes([n + 9]) * (length - length // 2) for n, length in enumerate(lengths)
    ]
    content = b"".join(pieces)
    work = Collecting()
    with ExtentPool(2, work) as pool:
        pool.submit_streamed(Filling(ItemHeader("f", size=len(content)), pieces))
    assert work.files["f"].content == content
    assert work.files["f"].offsets == list(range(0, len(content), EXTENT_BYTES))
    assert work.files["f"].ended == 1


@pytest.mark.parametrize("size", [SMALL_BYTES + 1, EXTENT_BYTES, 3 * EXTENT_BYTES + 5, UNKNOWN_SIZE])
def test_extents_of_a_stream_that_is_not_small_begin_with_a_page(size: int) -> None:
    """Also when their memory is used again."""
    content = bytes(range(256)) * (3 * EXTENT_BYTES // 256) if size == UNKNOWN_SIZE else bytes(size)
    work = Collecting()
    places: list[int] = []

    def extent(state: Collected, offset: int, buffer: Buffer, /) -> tuple[int, Buffer]:
        places.append(ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % mmap.PAGESIZE)
        return Collecting.extent(work, state, offset, buffer)

    work.extent = extent  # type: ignore[method-assign]
    with ExtentPool(1, work) as pool:
        for path in ("a", "b", "c"):
            pool.submit_streamed(Streamed(ItemHeader(path=path, size=size), [content]))

    assert len(places) == 3 * -(-len(content) // EXTENT_BYTES)
    assert not any(places)
    assert all(bytes(file.content) == content for file in work.files.values())


def test_a_stream_of_unknown_size_ends_where_its_chunks_end() -> None:
    """An exact number of extents has no empty extent after it."""
    work = Collecting()
    with ExtentPool(2, work) as pool:
        header = ItemHeader(path="s", size=UNKNOWN_SIZE)
        pool.submit_streamed(Streamed(header, [bytes(1 << 20)] * 8))
        pool.submit_streamed(Streamed(ItemHeader(path="none", size=UNKNOWN_SIZE), []))
    assert work.files["s"].offsets == [0, EXTENT_BYTES]
    assert len(work.files["s"].content) == 8 << 20
    assert work.files["none"].ended == 1


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([b"abc"], "f was announced with 5 bytes, but 3 came"),
        ([b"abc", b"def"], "f was announced with 5 bytes, but more came"),
    ],
)
def test_a_stream_must_have_the_size_it_announced(pieces: list[bytes], message: str) -> None:
    """A known size is a promise."""
    pool = ExtentPool(1, Collecting())
    with pytest.raises(FormatError) as caught, pool:
        pool.submit_streamed(Streamed(ItemHeader(path="f", size=5), pieces))
    assert str(caught.value) == message


@pytest.mark.parametrize("fail_at", [0, 1, 5])
def test_the_first_error_reaches_the_submitter_and_every_item_is_closed(fail_at: int) -> None:
    """An error in a worker ends the pool: it is raised to who submits, all threads end, all items are closed."""
    before = threading.active_count()
    items = [Repeated("good", EXTENT_BYTES * 2), Repeated("bad", EXTENT_BYTES * 6, fail_at=fail_at)]
    items += [Repeated(f"later{n}", EXTENT_BYTES * 2) for n in range(200)]
    submitted: list[Repeated] = []
    with pytest.raises(OSError, match="scripted"):
        submit_all(ExtentPool(3, Collecting()), items, submitted)
    assert threading.active_count() == before
    assert [item.closed for item in submitted] == [1] * len(submitted)


@pytest.mark.parametrize("step", ["begin", "extent", "ordered", "end"])
def test_an_error_in_any_step_of_the_work_ends_the_pool(step: str) -> None:
    """Nobody waits for a turn that never comes."""

    class Failing(Collecting):
        pass

    def fail(*_args: object) -> None:
        raise RuntimeError(step)

    setattr(Failing, step, fail)
    with pytest.raises(RuntimeError, match=step):
        submit_all(ExtentPool(2, Failing()), [Repeated(f"f{n}", EXTENT_BYTES * 3) for n in range(100)], [])


def test_leaving_by_an_exception_stops_without_draining() -> None:
    """An error of the submitting side is the one that is seen, and nothing is left behind."""
    before = threading.active_count()
    items = [Repeated(f"f{n}", EXTENT_BYTES * 4) for n in range(20)]

    def until_the_source_fails() -> Iterator[Repeated]:
        yield from items
        raise KeyError

    with pytest.raises(KeyError):
        submit_all(ExtentPool(2, Collecting()), until_the_source_fails(), [])
    assert threading.active_count() == before
    assert all(item.closed == 1 for item in items)


def test_drain_waits_for_all_that_was_submitted() -> None:
    """After drain every item has ended, and the pool goes on."""
    work = Collecting()
    with ExtentPool(2, work) as pool:
        for n in range(30):
            pool.submit_detached(Repeated(f"f{n}", n * 300_000))
        pool.drain()
        assert all(seen.ended == 1 for seen in work.files.values())
        assert len(work.files) == 30
        pool.submit_detached(Repeated("after", 1))
    assert work.files["after"].ended == 1
