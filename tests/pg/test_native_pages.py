from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.pg.page import check_pages, native_wrong_pages, page_checksums, wrong_pages


@given(
    seed=st.integers(0, 2**32 - 1),
    pages=st.integers(0, 9),
    block_size=st.sampled_from([1024, 8192, 32768]),
    first_block=st.integers(0, 2**32 - 1),
    flips=st.lists(st.integers(0, 2**20), max_size=6),
)
def test_the_twin_in_c_finds_what_numpy_finds(
    seed: int, pages: int, block_size: int, first_block: int, flips: list[int]
) -> None:
    """Right pages, zero pages and pages with flipped bits get the same verdict from both."""
    native = native_wrong_pages()
    assert native is not None, "native/page_checksums.c was not built: run ./dev setup"
    words = np.random.default_rng(seed).integers(0, 2**32, (pages, block_size // 4), dtype=np.uint32)
    words[::3] = 0
    checksums = page_checksums(words.tobytes(), first_block, block_size=block_size)
    words[:, 2] = (words[:, 2] & np.uint32(0xFFFF0000)) | np.array(checksums, np.uint32)
    for flip in flips:
        if words.size:
            words.reshape(-1)[flip % words.size] ^= np.uint32(1 << flip % 32)
    assert native(words, first_block) == wrong_pages(words, first_block)


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_pages_need_no_alignment(offset: int) -> None:
    """A buffer that begins at an odd address is read as any other."""
    content = np.random.default_rng(offset).integers(0, 256, 3 * 8192 + offset, dtype=np.uint8).tobytes()
    shifted = memoryview(content)[offset:]
    assert check_pages(shifted, 11) == check_pages(bytes(shifted), 11)
