"""Verifying the members of volumes: where they lie, their digests, the pages in them."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection

from blake3 import blake3

from pgkeep.errors import BackupUnusable
from pgkeep.pg.data_directory import RELATION_SEGMENT_BYTES, page_file
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.page import check_pages
from pgkeep.pg.wal_blocks import BlockReference
from pgkeep.streams.extents import HasHeader
from pgkeep.streams.item import Buffer, ItemHeader
from pgkeep.streams.record import DamagedPages, FileEntry, RecordHead, VolumeEntry
from pgkeep.streams.thread_memory import ThreadMemory
from pgkeep.vault.half_written import MAX_HEADLESS, not_written_anew
from pgkeep.vault.layout import volume_name
from pgkeep.vault.stored_backup import StoredItem
from pgkeep.vault.verify_report import Finding, VerifyReport
from pgkeep.vault.volume import END_FRAME
from pgkeep.vault.wal_archive import WalArchive

_IN_DATA_DIRECTORY = re.compile(r"/(?:pitr|pitr_block/[^/]+)/(?P<inside>(?:pgdata|tblspc/[^/]+)/(?P<below>.+))")
"""A file of a base backup; increments have names of their own, and no pages at fixed places."""


class VolumeCheck:
    """The members of one volume, which must tile it."""

    def __init__(self, entry: VolumeEntry) -> None:
        self.entry = entry
        self._end = 0
        self._members = blake3()
        self._problem = ""

    def add(self, file: FileEntry) -> None:
        """Take the next member, by offset."""
        at = file.at
        assert at is not None
        if at.offset != self._end and not self._problem:
            self._problem = f"{file.path} begins at offset {at.offset}, but the member before it ends at {self._end}"
        self._end = at.offset + at.header_length + sum(at.frames) + at.padding_length
        self._members.update(bytes.fromhex(at.stored_digest))

    def problem(self) -> str:
        """Return what is wrong with the whole; empty when nothing is."""
        if self._problem:
            return self._problem
        if self._end + len(END_FRAME) != self.entry.size:
            return f"its members end at {self._end}, expected {self.entry.size - len(END_FRAME)}"
        self._members.update(END_FRAME)
        if self._members.hexdigest() != self.entry.digest:
            return f"its members have the digest {self._members.hexdigest()}, the record says {self.entry.digest}"
        return ""


class NotedItem:
    """A stored item whose damage is noted rather than raised; *memory* is where its extents are read to."""

    def __init__(self, item: StoredItem, report: VerifyReport, memory: ThreadMemory) -> None:
        self.item = item
        self._report = report
        self._memory = memory
        self._lock = threading.Lock()
        self._is_noted = False

    @property
    def header(self) -> ItemHeader:
        """The item's header."""
        return self.item.header

    def read_extent(self, offset: int, length: int) -> Buffer:
        """Return the extent, valid until this thread reads the next one; nothing when it is damaged."""
        try:
            view = self._memory.view(length)
            self.item.read_into(offset, view)
        except BackupUnusable as error:
            with self._lock:
                is_first, self._is_noted = not self._is_noted, True
            if is_first:
                at = self.item.at
                self._report.find(Finding(at.backup_id, volume_name(at.volume), self.header.path, error.message))
            return b""
        return view

    def close(self) -> None:
        """Close the item."""
        self.item.close()


class PageVerification:
    """
    Extent work: check the pages of what is a relation's file.

    Args:
        head: Of the backup that is verified.
        block_size: Bytes.
        report: Takes what is found.
    """

    def __init__(self, head: RecordHead, *, block_size: int, report: VerifyReport) -> None:
        self._report = report
        self._block_size = block_size
        self._known: dict[str, DamagedPages] = {damaged.path: damaged for damaged in head.damaged}
        self._has_checksums = head.data_checksums
        self._backup_id = head.backup_id
        self._start_lsn = Lsn.parse(head.start_lsn) if head.start_lsn else None
        self._stop_lsn = Lsn.parse(head.stop_lsn) if head.stop_lsn else None
        self._head = head
        # Volume and path of each.
        self._headless: dict[BlockReference, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def begin(self, item: HasHeader, /) -> NotedItem:
        """Nothing but the item is needed."""
        assert isinstance(item, NotedItem)
        return item

    def extent(self, noted: NotedItem, offset: int, buffer: Buffer, /) -> None:
        """Check the pages of one extent."""
        at = noted.item.at
        # What an older backup holds was judged by that one's LSNs; its own verification looks at its pages.
        if not self._has_checksums or at.backup_id != self._backup_id:
            return
        path, volume = noted.header.path, volume_name(at.volume)
        place = _IN_DATA_DIRECTORY.search(path)
        relation = page_file(place["below"]) if place else None
        whole = len(buffer) // self._block_size * self._block_size
        if place is None or relation is None or not whole:
            return
        first_block = relation.first_block(blocks_per_segment=RELATION_SEGMENT_BYTES // self._block_size)
        verdict = check_pages(
            memoryview(buffer)[:whole],
            first_block + offset // self._block_size,
            start_lsn=self._start_lsn,
            stop_lsn=self._stop_lsn,
            block_size=self._block_size,
        )
        new = {block for block in verdict.bad if not _is_known(self._known.get(path), block)}
        known = len(verdict.bad) - len(new)
        self._report.count_pages(verdict.checked, after_start=verdict.after_start, known=known)
        for block in new.intersection(verdict.headless):
            if self._note_headless(BlockReference.at(place["inside"], block), volume, path):
                new.remove(block)
        self._find(volume, path, new)

    def ordered(self, noted: NotedItem, result: None, /) -> None:
        """Nothing needs an order."""

    def end(self, noted: NotedItem, /) -> None:
        """Nothing is left to do."""

    def judge_headless(self, archive: WalArchive) -> None:
        """Ask the backup's WAL about the pages without a head, when all pages have been seen."""
        if not self._headless:
            return
        damaged = not_written_anew(archive, self._head, self._headless)
        self._report.count_pages(0, after_start=len(self._headless) - len(damaged), known=0)
        by_place: dict[tuple[str, str], list[int]] = {}
        for page in damaged:
            by_place.setdefault(self._headless[page], []).append(page.block)
        for place, blocks in sorted(by_place.items()):
            self._find(*place, blocks)

    def _note_headless(self, page: BlockReference | None, volume: str, path: str) -> bool:
        """Keep *page* to be judged later; tell whether that can be done."""
        with self._lock:
            if page is None or len(self._headless) >= MAX_HEADLESS:
                return False
            self._headless[page] = volume, path
        return True

    def _find(self, volume: str, path: str, blocks: Collection[int]) -> None:
        if blocks:
            what = f"{len(blocks)} pages have a wrong checksum, the first is block {min(blocks)}"
            self._report.find(Finding(self._backup_id, volume, path, what, tuple(sorted(blocks)[:1000])))


def _is_known(known: DamagedPages | None, block: int) -> bool:
    if known is None:
        return False
    # A record lists at most 1,000 blocks of a file; with more, the others are known by their number only.
    return block in known.blocks or known.count > len(known.blocks)
