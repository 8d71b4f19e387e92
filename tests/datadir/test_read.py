"""Reading a live data directory's files: what changes under the reader's hands, and pages that fail."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pgkeep.datadir import read
from pgkeep.datadir.read import LocalFile, PageCheck, PageReport, ReadReport, open_file
from pgkeep.datadir.scan import ScannedFile
from pgkeep.errors import ServerError
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.page import page_checksums
from pgkeep.streams.item import EXTENT_BYTES
from pgkeep.streams.record import DamagedPages

PAGE = 8192
START = Lsn.parse("0/5000000")
BEFORE = Lsn.parse("0/4000000")
AFTER = Lsn.parse("0/6000000")
PATH = "@postgresql/pitr/pgdata/base/5/16384"


def page(block: int, *, lsn: Lsn = BEFORE, fill: bytes = b"r") -> bytes:
    """Return a right page of *block*."""
    head = struct.pack("<IIHHHHHHI", lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 24, PAGE, PAGE, PAGE | 4, 0)
    content = bytearray(head + fill * (PAGE - len(head)))
    struct.pack_into("<H", content, 8, page_checksums(bytes(content), block)[0])
    return bytes(content)


def torn(content: bytes) -> bytes:
    """Return *content* with its second half from another time."""
    return content[: PAGE // 2] + b"t" * (PAGE // 2)


class Relation:
    """A relation's file, its reports, and a wait that the test scripts."""

    def __init__(self, directory: Path, *pages: bytes, name: str = "16384") -> None:
        self.real_path = directory / name
        self.real_path.write_bytes(b"".join(pages))
        self.pages = PageReport()
        self.report = ReadReport()
        self.waits: list[float] = []
        self.on_wait: Callable[[], None] = lambda: None
        self.name = name

    def open(self, *, checks: bool = True) -> LocalFile:
        check = PageCheck(START, self.pages, wait=self._wait) if checks else None
        scanned = ScannedFile(
            f"@postgresql/pitr/pgdata/base/5/{self.name}",
            f"base/5/{self.name}",
            str(self.real_path),
            os.stat(self.real_path),
        )
        opened = open_file(scanned, report=self.report, pages=check)
        assert opened is not None
        return opened

    def write(self, block: int, content: bytes) -> None:
        descriptor = os.open(self.real_path, os.O_WRONLY)
        os.pwrite(descriptor, content, block * PAGE)
        os.close(descriptor)

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.on_wait()


def read_all(file: LocalFile) -> bytes:
    """Return the content as a sink would read it, and close the file."""
    content = b""
    for offset in range(0, file.header.size, EXTENT_BYTES):
        content += bytes(file.read_extent(offset, min(EXTENT_BYTES, file.header.size - offset)))
    file.close()
    return content


def test_a_file_is_read_extent_by_extent_as_it_is(tmp_path: Path) -> None:
    """Whole extents and a shorter last one."""
    content = os.urandom(2 * EXTENT_BYTES + 12_345)
    relation = Relation(tmp_path, content)

    assert read_all(relation.open(checks=False)) == content


def test_header_tells_size_and_times_as_of_the_opening(tmp_path: Path) -> None:
    """What the walk saw earlier may be out of date."""
    relation = Relation(tmp_path, page(0))
    scanned = ScannedFile(PATH, "base/5/16384", str(relation.real_path), os.stat(relation.real_path))
    relation.write(1, page(1))
    os.utime(relation.real_path, ns=(1, 1_700_000_000_123_456_789))

    opened = open_file(scanned, report=relation.report, barrier=True)

    assert opened is not None
    assert (opened.header.size, opened.header.mtime_ns) == (2 * PAGE, 1_700_000_000_123_456_789)
    assert opened.header.barrier
    opened.close()


def test_a_file_that_grows_is_cut_at_its_size_when_opened(tmp_path: Path) -> None:
    """Replay writes what came later."""
    relation = Relation(tmp_path, page(0), page(1))
    file = relation.open()
    relation.write(2, page(2))

    assert read_all(file) == page(0) + page(1)
    assert relation.pages.checked == 2


def test_a_file_that_shrinks_is_filled_with_zeros_and_counted_once(tmp_path: Path) -> None:
    """The truncation is in the WAL; the size was promised."""
    size = EXTENT_BYTES + 4 * PAGE
    relation = Relation(tmp_path, *(page(block) for block in range(size // PAGE)))
    file = relation.open()
    os.truncate(relation.real_path, 3 * PAGE + 100)

    content = read_all(file)

    assert len(content) == size
    assert content[: 3 * PAGE] == page(0) + page(1) + page(2)
    assert content[3 * PAGE + 100 :].strip(b"\0") == b""
    assert relation.report.shrunk == 1
    assert (relation.pages.checked, relation.pages.damaged()) == (3, [])


def test_a_file_removed_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    """The open descriptor keeps it."""
    relation = Relation(tmp_path, page(0))
    file = relation.open()
    relation.real_path.unlink()

    assert read_all(file) == page(0)


def test_a_file_that_vanished_before_it_is_opened_is_left_out_and_counted(tmp_path: Path) -> None:
    """DROP TABLE during a backup is not an error."""
    relation = Relation(tmp_path, page(0))
    scanned = ScannedFile(PATH, "base/5/16384", str(relation.real_path), os.stat(relation.real_path))
    relation.real_path.unlink()

    assert open_file(scanned, report=relation.report) is None
    assert relation.report.vanished == 1


def test_a_pipe_in_a_files_place_is_an_error_not_a_wait(tmp_path: Path) -> None:
    """Opening it must not wait for a writer."""
    relation = Relation(tmp_path, page(0))
    scanned = ScannedFile(PATH, "base/5/16384", str(relation.real_path), os.stat(relation.real_path))
    relation.real_path.unlink()
    os.mkfifo(relation.real_path)

    with pytest.raises(ServerError) as raised:
        open_file(scanned, report=relation.report)

    assert raised.value.message == f"cannot read {relation.real_path}: it was a file and no longer is one"


def test_a_damaged_page_is_read_again_and_then_reported_with_its_block(tmp_path: Path) -> None:
    """The content that was read is in the backup all the same."""
    relation = Relation(tmp_path, page(0), torn(page(1)), page(2))

    content = read_all(relation.open())

    assert content == page(0) + torn(page(1)) + page(2)
    assert relation.waits == list(read.REREAD_PAUSES_SECONDS)
    assert relation.pages.damaged() == [DamagedPages(path=PATH, blocks=[1], count=1)]
    assert relation.pages.damaged_count == 1
    assert relation.pages.checked == 3


def test_blocks_are_counted_over_the_segments_of_a_relation(tmp_path: Path) -> None:
    """File N of a relation begins with block N times the blocks of a file, and checksums depend on it."""
    first = 2 * 131_072
    relation = Relation(tmp_path, page(first), torn(page(first + 1)), name="16384.2")

    read_all(relation.open())

    assert relation.pages.damaged() == [DamagedPages(path=PATH + ".2", blocks=[first + 1], count=1)]


def test_a_torn_page_that_is_whole_a_moment_later_is_taken_as_it_is_then(tmp_path: Path) -> None:
    """The backup holds the page as it was read last."""
    relation = Relation(tmp_path, page(0), torn(page(1)))
    attempts = iter(range(10))

    def complete_the_write() -> None:
        if next(attempts) == 2:
            relation.write(1, page(1, fill=b"w"))

    relation.on_wait = complete_the_write

    assert read_all(relation.open()) == page(0) + page(1, fill=b"w")
    assert relation.pages.damaged() == []
    assert (relation.pages.mended, relation.pages.checked) == (1, 2)
    assert len(relation.waits) == 3


def test_a_failing_page_that_is_cut_off_meanwhile_becomes_zeros(tmp_path: Path) -> None:
    """A truncation between two looks is a truncation."""
    relation = Relation(tmp_path, page(0), torn(page(1)))
    relation.on_wait = lambda: os.truncate(relation.real_path, PAGE)

    assert read_all(relation.open()) == page(0) + bytes(PAGE)
    assert relation.pages.damaged() == []


def test_a_failing_page_written_after_the_start_is_counted_and_not_failed(tmp_path: Path) -> None:
    """Replay writes it anew; no time is lost on it."""
    relation = Relation(tmp_path, torn(page(0, lsn=AFTER)))

    read_all(relation.open())
    relation.pages.settle(AFTER)

    assert (relation.pages.after_start, relation.pages.damaged()) == (1, [])
    assert relation.waits == []


def test_a_failing_page_with_an_lsn_past_the_stop_is_damaged(tmp_path: Path) -> None:
    """Garbage claims any LSN; no server wrote one past the end of the backup."""
    relation = Relation(tmp_path, torn(page(0, lsn=AFTER)))

    read_all(relation.open())
    relation.pages.settle(Lsn(AFTER - 1))

    assert relation.pages.after_start == 0
    assert relation.pages.damaged() == [DamagedPages(path=PATH, blocks=[0], count=1)]


def test_new_pages_and_an_odd_tail_are_right(tmp_path: Path) -> None:
    """A relation is extended by zeros, and an extension may be half done."""
    relation = Relation(tmp_path, page(0), bytes(PAGE), b"half a page")

    read_all(relation.open())

    assert (relation.pages.checked, relation.pages.damaged()) == (2, [])


def test_files_without_pages_are_not_checked(tmp_path: Path) -> None:
    """PG_VERSION, the relation map and the like have no page checksums."""
    relation = Relation(tmp_path, b"x" * PAGE, name="pg_filenode.map")

    read_all(relation.open())

    assert relation.pages.checked == 0


def test_a_thoroughly_damaged_file_is_counted_in_full_but_listed_in_part(tmp_path: Path) -> None:
    """Neither the list nor the time spent on further looks grows with the damage."""
    count = 3 * read.LISTED_BLOCKS
    relation = Relation(tmp_path, torn(page(0)) * count)

    read_all(relation.open())

    [damaged] = relation.pages.damaged()
    assert damaged.count == relation.pages.damaged_count
    assert damaged.count >= count - 1
    assert damaged.blocks == sorted(damaged.blocks)
    assert len(damaged.blocks) == read.LISTED_BLOCKS
    extents_waited_for = -(-read.LISTED_BLOCKS * PAGE // EXTENT_BYTES)
    assert len(relation.waits) == extents_waited_for * len(read.REREAD_PAUSES_SECONDS)


def test_a_writer_that_tears_pages_all_the_time_causes_no_report(tmp_path: Path) -> None:
    """A page that is written in two halves again and again is right at one of the looks."""
    halves = page(1, fill=b"a"), page(1, fill=b"b")
    relation = Relation(tmp_path, page(0), halves[0])
    stop = threading.Event()

    def write() -> None:
        descriptor = os.open(relation.real_path, os.O_WRONLY)
        while not stop.is_set():
            for content in halves:
                os.pwrite(descriptor, content[: PAGE // 2], PAGE)
                os.pwrite(descriptor, content[PAGE // 2 :], PAGE + PAGE // 2)
                stop.wait(0.001)
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            scanned = ScannedFile(PATH, "base/5/16384", str(relation.real_path), os.stat(relation.real_path))
            file = open_file(scanned, report=relation.report, pages=PageCheck(START, relation.pages))
            assert file is not None
            content = read_all(file)
            assert content[PAGE:] in halves
    finally:
        stop.set()
        writer.join()
    assert relation.pages.damaged() == []
    assert relation.pages.checked == 1000


def test_extents_of_one_file_may_be_read_by_several_threads(tmp_path: Path) -> None:
    """Each gets its own bytes, and every page is counted."""
    pages = [page(block) for block in range(4 * EXTENT_BYTES // PAGE)]
    relation = Relation(tmp_path, *pages)
    file = relation.open()
    found: dict[int, bytes] = {}

    def read_one(offset: int) -> None:
        found[offset] = bytes(file.read_extent(offset, EXTENT_BYTES))

    threads = [threading.Thread(target=read_one, args=(offset,)) for offset in range(0, 4 * EXTENT_BYTES, EXTENT_BYTES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    file.close()

    assert b"".join(found[offset] for offset in sorted(found)) == b"".join(pages)
    assert relation.pages.checked == len(pages)


def test_memory_of_the_callers_is_filled_as_an_extent_would_be(tmp_path: Path) -> None:
    """Reading into memory gives what reading an extent gives: mended pages, zeros for what is gone, the same counts."""
    whole = page(1)
    relation = Relation(tmp_path, page(0), torn(whole), page(2), page(3))
    relation.on_wait = lambda: relation.write(1, whole)
    file = relation.open()
    os.truncate(relation.real_path, 3 * PAGE)
    memory = bytearray(b"old" * PAGE * 4)
    file.read_into(0, memoryview(memory)[: 4 * PAGE])
    file.close()
    assert bytes(memory[: 4 * PAGE]) == page(0) + whole + page(2) + bytes(PAGE)
    assert memory[4 * PAGE :] == (b"old" * PAGE * 4)[4 * PAGE :]
    assert (relation.pages.checked, relation.pages.mended, relation.report.shrunk) == (3, 1, 1)
    assert relation.pages.damaged() == []
