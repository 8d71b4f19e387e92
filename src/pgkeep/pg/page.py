"""
Page checksums and page LSNs, for many pages at a time.

The checksum is that of ``src/include/storage/checksum_impl.h``: 32 FNV-1a sums side by side over the page, folded
together, mixed with the block number. numpy does a batch of pages per step; the interpreter sees one loop of 64 rounds.
Where ``native/page_checksums.c`` was built, it does the same five times as fast and leaves the other threads alone.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pgkeep.errors import FormatError
from pgkeep.pg.data_directory import DEFAULT_BLOCK_SIZE
from pgkeep.pg.lsn import Lsn

PAGES_PER_BATCH = 512

Buffer = bytes | bytearray | memoryview
_Words = npt.NDArray[np.uint32]

# LSN, checksum, flags, pd_lower and pd_upper: the kernel copies no less than that at once.
_WORDS_OF_HEAD = 4

_SUMS = 32
_PRIME = np.uint32(16777619)
_SHIFT = np.uint32(17)
_LOW_HALF = np.uint32(0xFFFF)
_HIGH_HALF = np.uint32(0xFFFF0000)
# checksumBaseOffsets
_BASE_OFFSETS = np.array(
    [
        0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
        0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
        0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
        0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
    ],
    dtype=np.uint32,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PageVerdict:
    """
    What a look at some pages found.

    Attributes:
        checked: Pages looked at; new pages, which carry no checksum, included.
        bad: Block numbers, ascending, of pages that are damaged: the checksum is wrong, or a new page is not all zeros.
        suspects: Block number and LSN of pages whose checksum is wrong but whose LSN is not before the start LSN:
            written while the backup ran, maybe read half-way through, and mended by replay. That holds only when the
            LSN is one that the server had reached: garbage claims any LSN. Whoever learns the stop LSN later judges
            them again with ``beyond``.
        headless: Those of *bad* that begin with zeros where the header is, and are not zeros throughout. A page looks
            so that was read half-way through its first write, too: then WAL has a record that writes it anew.
    """

    checked: int
    bad: Sequence[int]
    suspects: Sequence[tuple[int, Lsn]] = ()
    headless: Sequence[int] = ()

    @property
    def after_start(self) -> int:
        """The number of suspects."""
        return len(self.suspects)


def beyond(suspects: Iterable[tuple[int, Lsn]], stop_lsn: Lsn) -> list[int]:
    """Return the block numbers of those *suspects* whose LSN no page of a backup ending at *stop_lsn* can have."""
    return [block for block, lsn in suspects if lsn > stop_lsn]


def check_pages(
    buffer: Buffer,
    first_block: int,
    *,
    start_lsn: Lsn | None = None,
    stop_lsn: Lsn | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> PageVerdict:
    """
    Return which pages of *buffer* are damaged.

    Args:
        buffer: Whole pages, any number of them.
        first_block: Block number of the first one within its fork.
        start_lsn: Where the backup started; None when the files do not change, then every wrong page is bad.
        stop_lsn: Where it ended, when that is known: a wrong page that claims a later LSN is bad.
        block_size: Bytes per page, a power of two, 1024 to 32768.

    Raises:
        FormatError: *buffer* does not hold whole pages.

    Source:
        ``PageIsVerified`` in ``src/backend/storage/page/bufpage.c``; the rule about the start LSN is that of
        ``verify_page_checksum`` in ``src/backend/backup/basebackup.c``.
    """
    pages = _as_pages(buffer, block_size)
    bad: list[int] = []
    suspects: list[tuple[int, Lsn]] = []
    headless: list[int] = []
    for index in (native_wrong_pages() or wrong_pages)(pages, first_block):
        page, block = pages[index], first_block + index
        if int(page[3]) >> 16 == 0:
            # pd_upper is 0: a page that was never initialised, which must then be zeros throughout.
            if page.any():
                bad.append(block)
                if not page[:_WORDS_OF_HEAD].any():
                    headless.append(block)
            continue
        lsn = _lsn_of(page)
        if start_lsn is None or lsn < start_lsn or (stop_lsn is not None and lsn > stop_lsn):
            bad.append(block)
        else:
            suspects.append((block, lsn))
    return PageVerdict(len(pages), bad, suspects, headless)


def wrong_pages(pages: _Words, first_block: int) -> list[int]:
    """Return the indexes of *pages* whose stored checksum is not the right one, new pages among them."""
    found: list[int] = []
    for begin in range(0, len(pages), PAGES_PER_BATCH):
        batch = pages[begin : begin + PAGES_PER_BATCH]
        wrong = _checksums(batch, first_block + begin) != batch[:, 2] & _LOW_HALF
        found += (np.nonzero(wrong)[0] + begin).tolist()
    return found


@functools.cache
def native_wrong_pages() -> Callable[[_Words, int], list[int]] | None:
    """Return the twin of ``wrong_pages`` in C; None where it was not built."""
    try:
        function = ctypes.CDLL(f"{sys.prefix}/lib/pgkeep/page_checksums.so").pgkeep_wrong_pages
    except OSError:
        return None
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p]

    def native(pages: _Words, first_block: int) -> list[int]:
        count, words = pages.shape
        indexes = np.empty(count, np.uint32)
        found = function(pages.ctypes.data, count, words, first_block & 0xFFFFFFFF, indexes.ctypes.data)
        return list(indexes[:found].tolist())

    return native


def page_checksums(buffer: Buffer, first_block: int, *, block_size: int = DEFAULT_BLOCK_SIZE) -> list[int]:
    """Return the checksum that each page of *buffer* should carry, 1 to 65535, new pages included."""
    pages = _as_pages(buffer, block_size)
    checksums: list[int] = []
    for begin in range(0, len(pages), PAGES_PER_BATCH):
        checksums += _checksums(pages[begin : begin + PAGES_PER_BATCH], first_block + begin).tolist()
    return checksums


def page_lsns(buffer: Buffer, *, block_size: int = DEFAULT_BLOCK_SIZE) -> npt.NDArray[np.uint64]:
    """Return the LSN of each page of *buffer*, 0 for a new page."""
    pages = _as_pages(buffer, block_size)
    lsns: npt.NDArray[np.uint64] = (pages[:, 0].astype(np.uint64) << np.uint64(32)) | pages[:, 1]
    return lsns


def _as_pages(buffer: Buffer, block_size: int) -> _Words:
    size = memoryview(buffer).nbytes
    if block_size < 1024 or size % block_size:
        raise FormatError(f"page checksums need whole pages of {block_size} bytes, found {size} bytes")
    return np.frombuffer(buffer, np.dtype("<u4")).reshape(-1, block_size // 4)


def _lsn_of(page: _Words) -> Lsn:
    return Lsn(int(page[0]) << 32 | int(page[1]))


def _checksums(pages: _Words, first_block: int) -> _Words:
    count, words = pages.shape
    rounds = pages.reshape(count, words // _SUMS, _SUMS)
    sums = np.empty((count, _SUMS), np.uint32)
    mixed = np.empty((count, _SUMS), np.uint32)
    sums[:] = _BASE_OFFSETS
    # The checksum is computed as if pd_checksum, the low half of the third word, were zero.
    first = rounds[:, 0, :].copy()
    first[:, 2] &= _HIGH_HALF
    for number in range(words // _SUMS):
        np.bitwise_xor(sums, rounds[:, number, :] if number else first, out=mixed)
        np.right_shift(mixed, _SHIFT, out=sums)
        np.multiply(mixed, _PRIME, out=mixed)
        np.bitwise_xor(sums, mixed, out=sums)
    for _ in range(2):
        np.right_shift(sums, _SHIFT, out=mixed)
        np.multiply(sums, _PRIME, out=sums)
        np.bitwise_xor(sums, mixed, out=sums)
    folded: _Words = np.bitwise_xor.reduce(sums, axis=1)
    folded ^= (np.arange(count, dtype=np.uint64) + np.uint64(first_block)).astype(np.uint32)
    return folded % np.uint32(65535) + np.uint32(1)
