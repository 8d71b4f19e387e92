from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.data_directory import page_file
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.page import PAGES_PER_BATCH, beyond, check_pages, page_checksums, page_lsns
from tests.lab.cluster import Cluster

SIZE = 8192
MASK = 0xFFFFFFFF
BASE_OFFSETS = (
    "5b1f36e9 b8525960 02ab50aa 1de66d2a 79ff467a 9bb9f8a3 217e7cd2 83e13d2c f8d4474f e39eb970 42c6ae16 993216fa "
    "7b093b5d 98daff3c f718902a 0b1c9cdb e58f764b 187636bc 5d7b3bb1 e73de7de 92bec979 cca6c0b2 304a0979 85aa43d4 "
    "783125bb 6ca8eaa2 e407eac6 4b5cfc3e 9fbf8c76 15ca20be f2ca9fd3 959bd756"
)


def plain_checksum(page: bytes, block: int) -> int:
    """Return a page's checksum, one number at a time: the definition, slow."""
    words = list(struct.unpack(f"<{len(page) // 4}I", page))
    words[2] &= 0xFFFF0000
    sums = [int(text, 16) for text in BASE_OFFSETS.split()]
    for position, word in enumerate([*words, *[0] * 64]):
        mixed = sums[position % 32] ^ word
        sums[position % 32] = (mixed * 16777619 & MASK) ^ (mixed >> 17)
    result = 0
    for value in sums:
        result ^= value
    return (result ^ block) % 65535 + 1


def make_page(body: bytes, *, block: int, lsn: int, size: int = SIZE) -> bytes:
    """Return a page with *body* at its end and the right checksum."""
    header = struct.pack("<IIHHHHHHI", lsn >> 32, lsn & MASK, 0, 0, 24, size - 100, size, size | 4, 0)
    page = bytearray(header.ljust(size, b"\0"))
    page[size - len(body) :] = body
    struct.pack_into("<H", page, 8, plain_checksum(bytes(page), block))
    return bytes(page)


@given(
    st.sampled_from([1024, 8192, 32768]),
    st.binary(min_size=1, max_size=900),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=40)
def test_checksums_are_the_definitions(size: int, body: bytes, block: int, lsn: int) -> None:
    """The batch computation equals the definition for every page size and block number, and the page is found good."""
    page = make_page(body, block=block, lsn=lsn, size=size)
    assert page_checksums(page, block, block_size=size) == [plain_checksum(page, block)]
    verdict = check_pages(page, block, block_size=size)
    assert (verdict.checked, list(verdict.bad), verdict.after_start) == (1, [], 0)
    assert page_lsns(page, block_size=size).tolist() == [lsn]


@given(st.integers(0, SIZE * 8 - 1))
def test_a_flipped_bit_is_found(bit: int) -> None:
    """One bit changed anywhere in a page is found, when no LSN excuses it."""
    page = bytearray(make_page(b"row", block=7, lsn=1000))
    page[bit // 8] ^= 1 << bit % 8
    assert check_pages(page, 7).bad == [7]


def test_a_page_in_another_place_is_found() -> None:
    """A page with a right checksum but of another block is bad: blocks were swapped."""
    pages = make_page(b"one", block=1, lsn=5) + make_page(b"zero", block=0, lsn=5)
    assert check_pages(pages, 0).bad == [0, 1]


def test_new_pages_are_zeros() -> None:
    """A page of zeros is good; a page that claims to be new but holds something is not."""
    damaged = bytearray(SIZE)
    damaged[5000] = 1
    verdict = check_pages(bytes(SIZE) + damaged + bytes(SIZE), 10)
    assert (verdict.checked, list(verdict.bad)) == (3, [11])


@pytest.mark.parametrize(
    ("first", "is_headless"), [(0, False), (13, False), (16, True), (4096, True), (SIZE - 1, True)]
)
def test_a_page_without_its_head(first: int, is_headless: bool) -> None:
    """What holds something, but nothing where its head would be, is told from other damage."""
    page = bytearray(SIZE)
    page[first:] = b"\1" * (SIZE - first)
    page[14:16] = bytes(2)
    verdict = check_pages(page, 7, start_lsn=Lsn(1))
    assert (list(verdict.bad), list(verdict.headless)) == ([7], [7] if is_headless else [])


def test_a_wrong_page_past_the_start_is_a_suspect() -> None:
    """A wrong page is excused only by an LSN between start and stop."""
    page = bytearray(make_page(b"row", block=3, lsn=5000))
    page[8000] ^= 1
    assert check_pages(page, 3).bad == [3]
    assert check_pages(page, 3, start_lsn=Lsn(5001)).bad == [3]
    verdict = check_pages(page, 3, start_lsn=Lsn(5000))
    assert (list(verdict.bad), list(verdict.suspects), verdict.after_start) == ([], [(3, 5000)], 1)
    assert check_pages(page, 3, start_lsn=Lsn(5000), stop_lsn=Lsn(5000)).after_start == 1
    assert check_pages(page, 3, start_lsn=Lsn(4000), stop_lsn=Lsn(4999)).bad == [3]


def test_a_suspect_is_judged_when_the_stop_is_known() -> None:
    """A page full of garbage claims any LSN; the server cannot have written one past the stop."""
    assert beyond([(3, Lsn(5000)), (4, Lsn(9000))], Lsn(8999)) == [4]


def test_batches_leave_no_page_out() -> None:
    """Damage at the borders of batches is found with the right block numbers."""
    good = make_page(b"row", block=0, lsn=5)
    count = 2 * PAGES_PER_BATCH + 3
    blocks = [0, PAGES_PER_BATCH - 1, PAGES_PER_BATCH, 2 * PAGES_PER_BATCH, count - 1]
    pages = bytearray(SIZE * count)
    for block in blocks:
        pages[block * SIZE : (block + 1) * SIZE] = good
    verdict = check_pages(memoryview(pages), 100)
    assert (verdict.checked, list(verdict.bad)) == (count, [100 + block for block in blocks])


@pytest.mark.parametrize("size", [1, SIZE - 1, SIZE + 4])
def test_half_a_page_is_refused(size: int) -> None:
    """The caller deals with a file's odd tail."""
    with pytest.raises(FormatError) as caught:
        check_pages(bytes(size), 0)
    assert str(caught.value) == f"page checksums need whole pages of 8192 bytes, found {size} bytes"


def test_no_page_is_no_damage() -> None:
    """An empty file has no bad page."""
    assert check_pages(b"", 0).checked == 0


def relation_pages(cluster: Cluster) -> Iterator[tuple[str, int, bytes]]:
    """Yield path, first block and content of every relation file of a stopped cluster."""
    root = str(cluster.data_directory)
    for directory, _, files in os.walk(root):
        for name in files:
            path = os.path.relpath(os.path.join(directory, name), root)
            if (relation := page_file(path)) is not None:
                with open(os.path.join(root, path), "rb") as file:
                    yield path, relation.first_block(blocks_per_segment=131072), file.read()


def test_a_real_clusters_pages_are_good(cluster: Cluster) -> None:
    """Every page that a server wrote has the checksum computed here, and a page moved by one block has not."""
    cluster.sql("CREATE TABLE t AS SELECT i, md5(i::text) AS text FROM generate_series(1, 60000) i")
    cluster.sql("CREATE INDEX ON t (text)")
    cluster.sql("CREATE UNLOGGED TABLE u AS SELECT * FROM t")
    cluster.sql("VACUUM t")
    last_lsn = Lsn.parse(cluster.current_lsn())
    cluster.stop()
    checked = 0
    for path, first_block, data in relation_pages(cluster):
        verdict = check_pages(data, first_block)
        assert (path, list(verdict.bad)) == (path, [])
        assert all(lsn <= last_lsn + (1 << 20) for lsn in page_lsns(data).tolist()), path
        checked += verdict.checked
        filled = sum(1 for offset in range(0, len(data), SIZE) if any(data[offset + 14 : offset + 16]))
        assert len(check_pages(data, first_block + 1).bad) == filled
    assert checked > 2000
