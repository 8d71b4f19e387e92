"""
Reading one file of a live data directory, its pages checked on the way.

The server writes while pgkeep reads. What replay mends is not an error: a file that grew is cut at the size that it
had when it was opened, one that shrank is filled with zeros (as BASE_BACKUP does), one that is gone before it is opened
is left out. A page that looks damaged may be one that was being written: it is read again a few times, a moment
apart, before it is reported.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from pgkeep.datadir.scan import ScannedFile
from pgkeep.errors import ServerError
from pgkeep.pg.data_directory import page_file
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.page import PageVerdict, beyond, check_pages
from pgkeep.streams.item import EXTENT_BYTES, Buffer, ItemHeader
from pgkeep.streams.record import DamagedPages

REREAD_PAUSES_SECONDS = (0.0, 0.001, 0.01, 0.05, 0.2)
"""How long to wait before each further look at an extent's failing pages."""

LISTED_BLOCKS = 1_000
"""How many damaged blocks of one file are listed; more are only counted, and no longer read again."""

LISTED_FILES = 10_000
"""How many damaged files, and how many suspect pages, are kept."""


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


class PageReport:
    """
    What the page checks of one backup found; every method may be called from any thread.

    Attributes:
        checked: Pages whose checksum was computed.
        after_start: Pages that fail, but that replay writes anew: their LSN is not before the start LSN.
        mended: Pages that were right when they were read again.
        damaged_count: Pages that are truly bad, listed or not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.checked = 0
        self.after_start = 0
        self.mended = 0
        self.damaged_count = 0
        self._suspects: dict[str, list[tuple[int, Lsn]]] = {}
        self._suspects_kept = 0
        self._damaged: dict[str, tuple[list[int], int]] = {}

    def add(self, path: str, verdict: PageVerdict, *, mended: int = 0) -> None:
        """Take the last *verdict* on some pages of the file at virtual *path*."""
        with self._lock:
            self.checked += verdict.checked
            self.mended += mended
            self.after_start += verdict.after_start
            if verdict.suspects and self._suspects_kept < LISTED_FILES:
                self._suspects.setdefault(path, []).extend(verdict.suspects)
                self._suspects_kept += verdict.after_start
            self._add_damaged(path, verdict.bad)

    def settle(self, stop_lsn: Lsn) -> None:
        """Count suspects that claim an LSN past *stop_lsn*, the end of the backup, as damaged: no server wrote it."""
        with self._lock:
            for path, suspects in self._suspects.items():
                blocks = beyond(suspects, stop_lsn)
                self.after_start -= len(blocks)
                self._add_damaged(path, blocks)
            self._suspects.clear()
            self._suspects_kept = 0

    def damaged_in(self, path: str) -> int:
        """Return how many pages of the file at *path* are known to be bad so far."""
        return self._damaged.get(path, ([], 0))[1]

    def damaged(self) -> list[DamagedPages]:
        """Return the damaged files, sorted by path; at most ``LISTED_FILES`` of them."""
        with self._lock:
            return [
                DamagedPages(path=path, blocks=sorted(blocks), count=count)
                for path, (blocks, count) in sorted(self._damaged.items())
            ]

    def _add_damaged(self, path: str, blocks: Iterable[int]) -> None:
        found = list(blocks)
        if not found:
            return
        self.damaged_count += len(found)
        listed, count = self._damaged.get(path, ([], 0))
        if listed or len(self._damaged) < LISTED_FILES:
            listed += found[: LISTED_BLOCKS - len(listed)]
            self._damaged[path] = (listed, count + len(found))


@dataclass(frozen=True, slots=True)
class PageCheck:
    """
    How the pages of one backup are checked.

    Attributes:
        start_lsn: Where the base backup started.
        report: Takes the verdicts.
        block_size: Bytes, pg_control's.
        blocks_per_segment: Blocks of one file of a relation, pg_control's.
        wait: Lets a moment pass, in seconds.
    """

    start_lsn: Lsn
    report: PageReport
    block_size: int = 8192
    blocks_per_segment: int = 131_072
    wait: Callable[[float], None] = field(default=_wait, repr=False)


class ReadReport:
    """
    What happened to files under the reader's hands; every method may be called from any thread.

    Attributes:
        vanished: Files that were gone when they were to be opened.
        shrunk: Files that ended before the size that they had when they were opened.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.vanished = 0
        self.shrunk = 0

    def count_vanished(self) -> None:
        """Count a file that was gone before it could be opened."""
        with self._lock:
            self.vanished += 1

    def count_shrunk(self) -> None:
        """Count a file that lost its end while it was read."""
        with self._lock:
            self.shrunk += 1


class LocalFile:
    """A detached item over a file of the data directory; see ``streams/item.py`` for the contract."""

    __slots__ = ("_descriptor", "_first_block", "_pages", "_report", "_shrank", "header")

    def __init__(
        self, header: ItemHeader, descriptor: int, *, pages: PageCheck | None, first_block: int, report: ReadReport
    ) -> None:
        """Own *descriptor*; callers use ``open_file``."""
        self.header = header
        self._descriptor = descriptor
        self._pages = pages
        self._first_block = first_block
        self._report = report
        self._shrank = False

    def read_extent(self, offset: int, length: int) -> Buffer:
        """Return the extent, with zeros for what the file no longer has; see ``DetachedItem.read_extent``."""
        if offset + length < self.header.size:
            self._advise(offset + length)
        content: Buffer = self._read(offset, length)
        present = len(content)
        if self._pages is not None:
            content = self._check(self._pages, content, offset)
        if present < length:
            self._note_shrunk()
            return bytes(content) + bytes(length - present)
        return content

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """
        Fill *buffer* with the content at *offset*: ``read_extent`` for a caller that has the memory.

        *offset* is a multiple of a power of two of at least a megabyte, and of the pieces' size.
        """
        if offset % EXTENT_BYTES == 0 and offset + EXTENT_BYTES < self.header.size:
            self._advise(offset + EXTENT_BYTES)
        present = 0
        try:
            while present < len(buffer) and (
                count := os.preadv(self._descriptor, [buffer[present:]], offset + present)
            ):
                present += count
        except OSError as error:
            raise ServerError(f"cannot read {self.header.path} at byte {offset}: {error.strerror}") from error
        if self._pages is not None:
            content = buffer[:present]
            checked = self._check(self._pages, content, offset)
            if checked is not content:
                buffer[:present] = checked
        if present < len(buffer):
            self._note_shrunk()
            buffer[present:] = bytes(len(buffer) - present)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self, offset: int, length: int) -> bytes:
        """Return *length* bytes at *offset*, fewer only where the file ends."""
        try:
            content = os.pread(self._descriptor, length, offset)
            while len(content) < length:
                more = os.pread(self._descriptor, length - len(content), offset + len(content))
                if not more:
                    break
                content += more
        except OSError as error:
            raise ServerError(f"cannot read {self.header.path} at byte {offset}: {error.strerror}") from error
        return content

    def _note_shrunk(self) -> None:
        if not self._shrank:
            self._shrank = True
            self._report.count_shrunk()

    def _advise(self, offset: int) -> None:
        # The kernel's own read-ahead is lost when several threads read one file; a failed hint changes nothing.
        os.posix_fadvise(self._descriptor, offset, EXTENT_BYTES, os.POSIX_FADV_WILLNEED)

    def _check(self, pages: PageCheck, content: Buffer, offset: int) -> Buffer:
        """Return *content* with its failing pages as they were read last, and report them."""
        # A relation is extended by whole pages; an odd tail is an extension under way, which replay repeats.
        whole = len(content) - len(content) % pages.block_size
        first_block = self._first_block + offset // pages.block_size
        verdict = check_pages(
            memoryview(content)[:whole], first_block, start_lsn=pages.start_lsn, block_size=pages.block_size
        )
        if not verdict.bad:
            pages.report.add(self.header.path, verdict)
            return content
        latest = bytearray(content)
        last_verdict = self._reread(pages, latest, offset, verdict)
        failing = len(verdict.bad) + verdict.after_start
        still_failing = len(last_verdict.bad) + last_verdict.after_start
        pages.report.add(self.header.path, last_verdict, mended=failing - still_failing)
        return latest

    def _reread(self, pages: PageCheck, latest: bytearray, offset: int, verdict: PageVerdict) -> PageVerdict:
        """Read the bad pages again, into *latest*, until they are right or the attempts are used up."""
        size = pages.block_size
        bad, suspects = list(verdict.bad), list(verdict.suspects)
        for pause in REREAD_PAUSES_SECONDS:
            if not bad or pages.report.damaged_in(self.header.path) >= LISTED_BLOCKS:
                break
            pages.wait(pause)
            still_bad: list[int] = []
            for block in bad:
                position = (block - self._first_block) * size
                page = self._read(position, size)
                # Cut off meanwhile: zeros, as for any other part of the file that is gone.
                page += bytes(size - len(page))
                latest[position - offset : position - offset + size] = page
                again = check_pages(page, block, start_lsn=pages.start_lsn, block_size=size)
                still_bad += again.bad
                suspects += again.suspects
            bad = still_bad
        return PageVerdict(verdict.checked, bad, suspects)


def open_file(
    scanned: ScannedFile,
    *,
    report: ReadReport,
    pages: PageCheck | None = None,
    barrier: bool = False,
) -> LocalFile | None:
    """
    Return *scanned*, opened, with size and times as of now; None, and counted, when it has vanished.

    Args:
        scanned: A file, not a directory.
        report: Takes what happens to it.
        pages: How its pages are checked when it has any; None when the cluster has no checksums.
        barrier: See ``ItemHeader.barrier``; for ``global/pg_control``.

    Raises:
        ServerError: It cannot be opened, or is no longer a file.
    """
    try:
        # O_NONBLOCK: should a pipe have taken the file's place, fail below instead of waiting for its writer.
        descriptor = os.open(scanned.real_path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        report.count_vanished()
        return None
    except OSError as error:
        raise ServerError(
            f"cannot open {scanned.real_path}: {error.strerror}",
            hint="run pgkeep as the user that owns the data directory" if isinstance(error, PermissionError) else "",
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ServerError(f"cannot read {scanned.real_path}: it was a file and no longer is one")
    header = scanned.header(status)
    if barrier:
        header = replace(header, barrier=True)
    relation = page_file(scanned.inside) if pages is not None else None
    first_block = 0
    if pages is not None and relation is not None:
        first_block = relation.first_block(blocks_per_segment=pages.blocks_per_segment)
    return LocalFile(
        header, descriptor, pages=pages if relation is not None else None, first_block=first_block, report=report
    )
