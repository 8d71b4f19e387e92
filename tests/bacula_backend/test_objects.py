"""What describes a backup to the Director, and what is remembered of jobs."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgkeep.bacula.file_list import FileList
from pgkeep.bacula.objects import (
    MAX_OBJECTS_BYTES,
    TRIMMED,
    parse_head_object,
    parse_heads_below,
    plugin_objects,
    render_head_object,
    restore_options_text,
)
from pgkeep.bacula.read_ahead import AHEAD_BYTES, SMALL_BYTES, Piece, ReadAhead
from pgkeep.bacula.state import ClusterState, confirm_job
from pgkeep.errors import FormatError, UsageError
from pgkeep.pg.replication_state import ReplicationState, Slot
from pgkeep.streams.item import EXTENT_BYTES, ItemHeader
from pgkeep.streams.record import Database, FileEntry, Level, RecordHead, RecordTail


def head(number: int = 1, *, level: Level = Level.FULL, **more: object) -> RecordHead:
    """Return the head of the backup of one day."""
    backup_id = f"202611{number:02}T000000Z-{level.value}"
    return RecordHead(
        backup_id=backup_id, cluster="default", mode="pitr", level=level, files_from=backup_id,
        system_identifier="7", **more,
    )  # fmt: skip


def test_restore_object_round_trip() -> None:
    """What a restore reads is the head and the tail that the backup had."""
    tail = RecordTail(files=3, bytes=5, sent_files=4, sent_bytes=6)
    assert parse_head_object(render_head_object(head(), tail)) == (head(), tail)


def test_list_of_databases_goes_first_when_there_is_no_room() -> None:
    """Ten thousand databases do not fit: their list is left out, nothing else, and the head says so."""
    big = head(databases=[Database(name=f"database_{number}", oid=number) for number in range(10_000)], warnings=["w"])
    content = render_head_object(big, RecordTail())
    assert len(content) <= MAX_OBJECTS_BYTES
    found, _ = parse_head_object(content)
    assert (found.databases, found.warnings, found.details["trimmed"]) == ([], ["w"], ["databases"])


def test_heads_below_take_the_room_that_is_left() -> None:
    """The newest backups that one builds on stand in its object, as many as fit, without lists of databases."""
    below = [
        (head(settings={"name": "x" * 1000}, databases=[Database(name="d", oid=1)]), RecordTail(files=number))
        for number in range(100)
    ]
    assert parse_heads_below(render_head_object(head(), RecordTail())) == []
    content = render_head_object(head(), RecordTail(files=7), below=iter(below))
    assert MAX_OBJECTS_BYTES - 3000 < len(content) <= MAX_OBJECTS_BYTES
    assert parse_head_object(content) == (head(), RecordTail(files=7))
    found = parse_heads_below(content)
    assert [tail.files for _, tail in found] == list(range(len(found)))
    assert {(one.settings["name"], tuple(one.databases)) for one, _ in found} == {("x" * 1000, ())}


def test_lines_share_the_room() -> None:
    """With many Plugin lines each object is trimmed to its part of the room."""
    big = head(warnings=["x" * 1000] * 30)
    assert len(render_head_object(big, RecordTail(), lines=1)) > MAX_OBJECTS_BYTES // 3
    found, _ = parse_head_object(render_head_object(big, RecordTail(), lines=3))
    assert found.details["trimmed"] == [*TRIMMED[:3]]


def test_replication_state_goes_before_what_phase_1_needs() -> None:
    """A state that does not fit is left out whole, and the timeline's history stays."""
    slots = [Slot(slot_name=f"slot_{number:05}", slot_type="physical") for number in range(2000)]
    found, _ = parse_head_object(
        render_head_object(head(replication=ReplicationState(slots=slots), history="1\t0/1\tx"), RecordTail())
    )
    assert found.replication is None
    assert found.history == "1\t0/1\tx"
    assert found.details["trimmed"] == [*TRIMMED[:5]]


def test_head_that_never_fits_is_an_error() -> None:
    """A head that is too large even when all is left out ends the backup, not the restore."""
    with pytest.raises(FormatError, match="bytes, 61440 are left for it"):
        render_head_object(head(data_directory="x" * 100_000), RecordTail())


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"format":1}', b"\xff\xfe"])
def test_damaged_restore_object_is_refused(content: bytes) -> None:
    """Bytes that are no restore object are refused."""
    with pytest.raises(FormatError, match="the restore object is damaged: "):
        parse_head_object(content)


def test_restore_object_of_a_later_format_is_refused() -> None:
    """A restore object of another format is refused with both numbers."""
    content = render_head_object(head(), RecordTail()).replace(b'"format":1', b'"format":2', 1)
    with pytest.raises(FormatError, match="the restore object has format 2, this version reads 1"):
        parse_head_object(content)


def test_no_text_of_a_plugin_object_is_empty_or_long() -> None:
    """The catalog shifts fields at an empty text, and cuts long ones: neither is sent."""
    plain = head(databases=[], details={"root": "@postgresql/pitr"})
    [cluster] = plugin_objects(plain, RecordTail(bytes=7), source="", sizes={})
    assert all(line.partition(":")[2] for line in cluster.commands())
    assert cluster.commands()[0] == "PLUGINOBJ:/@postgresql/pitr/"
    dump = RecordHead(
        backup_id="x", cluster="default", mode="dump", level=Level.FULL, system_identifier="7",
        databases=[Database(name="ä" * 100 + "\n", path="@postgresql/dump/x.dump")], warnings=["w"],
    )  # fmt: skip
    [one] = plugin_objects(dump, RecordTail(), source="h:1", sizes={"@postgresql/dump/x.dump": 9})
    assert (one.size, one.status) == (9, "WARNING")
    assert all(len(line.encode()) < 150 and "\n" not in line for line in one.commands())


def test_options_text_is_what_bacula_parses() -> None:
    """Each item has a prompt and a default in quotes, then its name and type; nothing spans lines."""
    lines = restore_options_text().splitlines()
    assert lines[:2] == ["# Plugin configuration file", "# Version 1"]
    items = lines[2:]
    for prompt, default, name, blank in zip(*[iter(items)] * 4, strict=True):
        assert prompt.startswith('OptPrompt="')
        assert default.startswith('OptDefault="')
        assert prompt.endswith('"')
        assert default.endswith('"')
        assert default != 'OptDefault=""'
        assert name.endswith("=@STR@")
        assert len(name) <= 36
        assert blank == ""


def write_record(state: ClusterState, job: str, record: RecordHead) -> None:
    """Write the record of a job, as the backend does."""
    state.prepare()
    files = FileList(None)
    files.add(FileEntry(path="@postgresql/pitr/pgdata/x", size=1, digest="0" * 64))
    written = state.begin(job, record, files, RecordTail(files=1, bytes=1))
    written.publish()
    written.close()
    files.close()


def test_record_is_found_by_the_jobs_name(tmp_path: Path) -> None:
    """A record is read back with its file list, by the unique name of its job."""
    state = ClusterState(str(tmp_path), cluster_id="", mode="pitr")
    write_record(state, "N.2026-11-20_21.56.35_01", head())
    record = state.record("N.2026-11-20_21.56.35_01")
    assert record is not None
    assert (record.head, record.is_confirmed) == (head(), False)
    index = record.file_index()
    assert index.get("@postgresql/pitr/pgdata/x") is not None
    index.close()
    assert state.record("other") is None
    assert confirm_job(str(tmp_path), "N.2026-11-20_21.56.35_01") == [str(state.directory)]
    assert [one.is_confirmed for one in state.records()] == [True]


@pytest.mark.parametrize("name", ["", "..", "../x", "unknown"])
def test_job_without_a_record_cannot_be_confirmed(tmp_path: Path, name: str) -> None:
    """Confirming what was never recorded is an error, since somebody expects it to count."""
    with pytest.raises(UsageError):
        confirm_job(str(tmp_path), name)


def test_pruning_keeps_what_a_later_job_may_name(tmp_path: Path) -> None:
    """Records go when three newer Fulls of the same job are confirmed; other jobs' records stay."""
    state = ClusterState(str(tmp_path), cluster_id="x", mode="pitr")
    for number in range(1, 7):
        write_record(state, f"N.2026-11-{number:02}_00.00.00_01", head(number))
        write_record(state, f"Other.2026-11-{number:02}_01.00.00_01", head(number))
    newest = "N.2026-11-06_00.00.00_01"
    assert state.prune(newest) == 0
    for number in (1, 2, 3, 4):
        assert state.confirm(f"N.2026-11-{number:02}_00.00.00_01")
    assert state.prune(newest) == 1
    names = [one.job for one in state.records()]
    assert [name for name in names if name.startswith("N.")] == [f"N.2026-11-{n:02}_00.00.00_01" for n in range(2, 7)]
    assert len(names) == 11
    assert min(path.name for path in state.directory.glob("*.confirmed")) == "N.2026-11-02_00.00.00_01.confirmed"


class Counted:
    """A detached item that counts how much of it was read and not taken."""

    def __init__(self, path: str, content: bytes) -> None:
        self.header = ItemHeader(path, size=len(content))
        self.content = content
        self.is_closed = False
        self.error: Exception | None = None

    def read_extent(self, offset: int, length: int) -> bytes:
        if self.error is not None:
            raise self.error
        assert not self.is_closed
        return self.content[offset : offset + length]

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("workers", [1, 3])
def test_pieces_come_in_the_order_of_the_items(workers: int) -> None:
    """Small and large items come out whole, in order, and are closed once."""
    sizes = [0, 1, 8192, EXTENT_BYTES + 1, 300_000, 5, 3 * EXTENT_BYTES, 0, *[100] * 200, 7 * EXTENT_BYTES, 9]
    items = [Counted(str(number), os.urandom(1) * size) for number, size in enumerate(sizes)]
    ahead = ReadAhead(workers)
    got: dict[str, bytes] = {}
    pending = 0
    for item in items:
        for piece in ahead.submit(item):
            got[piece.header.path] = got.get(piece.header.path, b"") + bytes(piece.content)
        pending = max(pending, ahead._bytes)
    for piece in ahead.drain():
        got[piece.header.path] = got.get(piece.header.path, b"") + bytes(piece.content)
    ahead.close()
    assert [got[item.header.path] == item.content for item in items] == [True] * len(items)
    assert list(got) == [item.header.path for item in items]
    assert all(item.is_closed for item in items)
    assert pending <= AHEAD_BYTES


class CountedInto(Counted):
    """The same, for memory that is there; it knows who read."""

    def __init__(self, path: str, content: bytes) -> None:
        super().__init__(path, content)
        self.readers: list[str] = []
        self.before_read: Callable[[], object] = lambda: None

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.readers.append(threading.current_thread().name)
        self.before_read()
        buffer[:] = self.read_extent(offset, len(buffer))


class SlotsOfDaemon:
    """Six slots; the daemon gives back so many of those that were lent whenever it is waited for."""

    slots = 6
    slot_bytes = 64 << 10

    def __init__(self, gives_back: int) -> None:
        self.gives_back = gives_back
        self.memory = [bytearray(self.slot_bytes) for _ in range(self.slots)]
        self.free = deque(range(self.slots))
        self.with_daemon: deque[int] = deque()

    @property
    def lent(self) -> int:
        return len(self.with_daemon)

    def reserve(self) -> int | None:
        return self.free.popleft() if self.free else None

    def view(self, slot: int, length: int) -> memoryview:
        return memoryview(self.memory[slot])[:length]

    def wait(self) -> None:
        for _ in range(self.gives_back):
            self.free.append(self.with_daemon.popleft())


@pytest.mark.parametrize(("gives_back", "own"), [(1, 30), (4, 30), (5, 0), (6, 0)])
def test_threads_are_asked_only_where_the_daemon_would_wait(gives_back: int, own: int) -> None:
    """The caller reads while the daemon has a quarter of the slots, otherwise threads may; all comes in order."""
    items = [CountedInto(str(number), os.urandom(9) * (2 * 65536)) for number in range(2)]
    slots = SlotsOfDaemon(gives_back)
    ahead = ReadAhead(2, slots=slots, wait=slots.wait)
    asked: list[object] = []
    enqueue = ahead._enqueue
    ahead._enqueue = lambda task: (asked.append(task), enqueue(task))[1]  # type: ignore[method-assign]
    got: dict[str, bytes] = {}

    def take(pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            got[piece.header.path] = got.get(piece.header.path, b"") + bytes(piece.content)
            slots.with_daemon.append(piece.slot)

    for item in items:
        take(ahead.submit(item))
    take(ahead.drain())
    ahead.close()
    assert [got[item.header.path] == item.content for item in items] == [True, True]
    assert all(item.is_closed for item in items)
    assert sum(len(item.readers) for item in items) == 36
    assert len(asked) == 36 - own


def test_a_thread_reads_beside_the_caller() -> None:
    """Two extents are read at the same time where the daemon has nothing to go on with."""
    item = CountedInto("0", bytes(2 * SlotsOfDaemon.slot_bytes) + bytes(SMALL_BYTES))
    both, turns = threading.Barrier(2), itertools.count()
    item.before_read = lambda: both.wait(60) if next(turns) < 2 else None
    slots = SlotsOfDaemon(1)
    ahead = ReadAhead(2, slots=slots, wait=slots.wait)
    pieces = [*ahead.submit(item), *ahead.drain()]
    ahead.close()
    assert len(pieces) == 6
    assert len(set(item.readers[:2])) == 2


def test_error_of_a_read_of_the_callers_own_comes_out() -> None:
    """What goes wrong where the caller reads itself is raised at once, and every item is closed in the end."""
    items = [CountedInto(str(number), bytes(20 * SlotsOfDaemon.slot_bytes)) for number in range(2)]
    items[1].error = OSError("gone")
    slots = SlotsOfDaemon(1)
    ahead = ReadAhead(2, slots=slots, wait=slots.wait)
    for piece in ahead.submit(items[0]):
        slots.with_daemon.append(piece.slot)
    with pytest.raises(OSError, match="gone"):
        list(ahead.submit(items[1]))
    ahead.close()
    assert items[1].readers == [threading.current_thread().name]
    assert all(item.is_closed for item in items)


def test_error_of_a_reader_comes_out_where_its_piece_would() -> None:
    """What goes wrong in a thread is raised to whoever takes, and every item is closed in the end."""
    items = [Counted(str(number), b"x" * 500_000) for number in range(5)]
    items[3].error = OSError("gone")
    ahead = ReadAhead(2)
    taken: list[str] = []

    def take_all() -> None:
        for item in items:
            taken.extend(piece.header.path for piece in ahead.submit(item))
        taken.extend(piece.header.path for piece in ahead.drain())

    with pytest.raises(OSError, match="gone"):
        take_all()
    ahead.close()
    assert taken == ["0", "1", "2"]
    assert all(item.is_closed for item in items)
