from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pgkeep.errors import ArchiveError, FormatError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.segment_index import Ending
from pgkeep.pg.timeline import TimelineFork, TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_record import microseconds_of
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_index import WalIndex
from pgkeep.vault.wal_times import TimePlace, WalTimes
from pgkeep.vault.wal_view import WalView
from tests.archive.made_wal import made_archive, stored_path
from tests.lab.server_user import server_user
from tests.pg.made_records import MIB, Made, WalWriter, abort, commit, heap, pieces_of, restore_point, switch

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
ONLY = TimelineHistory.single(Timeline(1))


def at(minute: float) -> int:
    """Return the TimestampTz of so many minutes past noon."""
    return microseconds_of(NOON + dt.timedelta(minutes=minute))


def time(minute: float) -> dt.datetime:
    """Return the moment so many minutes past noon."""
    return NOON + dt.timedelta(minutes=minute)


def put(archive: WalArchive, writer: WalWriter, *, last: bool = True) -> list[WalSegment]:
    """Archive what *writer* wrote, *last* says whether also its last segment; return the segments."""
    segments = writer.segments()[: None if last else -1]
    for segment, content in segments:
        archive.put(segment.name, pieces_of(content))
    return [segment for segment, _ in segments]


@pytest.fixture
def archive(tmp_path: Path) -> WalArchive:
    """An empty archive."""
    return made_archive(tmp_path)


def day() -> WalWriter:
    """Write three segments; commits at minutes 1, 3, 2 and 10, an abort at 12, and a name."""
    writer = WalWriter()
    for made in (commit(11, at(1)), commit(13, at(3)), restore_point("here", at(4)), commit(12, at(2)), switch()):
        writer.write(made)
    for made in (heap(600_000), restore_point("here", at(5)), commit(14, at(10)), heap(500_000)):
        writer.write(made)
    for made in (abort(15, at(12)), restore_point("there", at(20)), switch()):
        writer.write(made)
    return writer


def test_an_index_is_made_once(archive: WalArchive) -> None:
    """What was indexed is not read again, not even by another process."""
    segments = put(archive, day())
    with WalIndex(archive) as index:
        made = [index.segment(segment) for segment in segments]
    for segment in segments:
        path = stored_path(archive, segment.name)
        stored = bytearray(path.read_bytes())
        stored[:-48] = bytes(len(stored) - 48)
        path.write_bytes(stored)
    with WalIndex(archive) as index:
        assert [index.segment(segment) for segment in segments] == made
        assert index.segment(segments[-1].next()) is None
    first = made[0]
    assert first is not None
    assert first.commits is not None
    assert (first.commits.count, first.commits.last.xid, first.commits.latest.xid) == (3, 12, 13)
    assert first.ending is Ending.SWITCHED


def index_file(archive: WalArchive) -> Path:
    """Return the one file of indexes."""
    [path] = (archive.root.parent / "wal-index").iterdir()
    return path


def truncate(path: Path) -> None:
    """Cut the file's second half off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_directory(path: Path) -> None:
    """Leave no file that could be read or written."""
    path.unlink()
    path.mkdir()


def remove_all(path: Path) -> None:
    """Remove the cache, and make it impossible to write it again."""
    shutil.rmtree(path.parent)
    path.parent.touch()


@pytest.mark.parametrize(
    "damage", [truncate, flip, Path.unlink, replace_by_directory, remove_all, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_index_is_made_again(archive: WalArchive, damage: Callable[[Path], None]) -> None:
    """Nothing is believed of an index file that was hurt, and nothing fails for want of one."""
    segments = put(archive, day())
    with WalIndex(archive) as index:
        made = [index.segment(segment) for segment in segments]
    damage(index_file(archive))
    with WalIndex(archive) as index:
        assert [index.segment(segment) for segment in segments] == made


def test_another_segment_under_the_same_name(archive: WalArchive) -> None:
    """An index is of the bytes that it was made from: others are read anew."""
    [segment, *_] = put(archive, day())
    with WalIndex(archive) as index:
        index.segment(segment)
    archive.remove(segment.name)
    other = WalWriter()
    other.write(commit(99, at(0)))
    put(archive, other)
    with WalIndex(archive) as index:
        found = index.segment(segment)
    assert found is not None
    assert found.commits is not None
    assert found.commits.first.xid == 99


def test_a_damaged_segment_has_no_index(archive: WalArchive) -> None:
    """A stored segment that is damaged is named, not passed over."""
    [segment, *_] = put(archive, day())
    path = stored_path(archive, segment.name)
    flip(path)
    with WalIndex(archive) as index, pytest.raises(ArchiveError) as caught:
        index.segment(segment)
    assert caught.value.message.startswith(
        f"the archive's copy of {segment.name} cannot be used: {segment.name} is damaged"
    )


def test_a_commit_across_segments(archive: WalArchive) -> None:
    """A commit that ends in the next segment is known when that is archived, and kept from then on."""
    writer = WalWriter()
    while writer.position % MIB < MIB - 4096:
        writer.write(heap(2000))
    writer.write(heap(MIB - 32 - writer.position % MIB - 24 - 5))
    assert writer.position % MIB == MIB - 32
    place = writer.write(commit(21, at(1)))
    writer.write(commit(22, at(2)))
    writer.write(switch())
    [first, second] = writer.segments()
    archive.put(first[0].name, pieces_of(first[1]))
    with WalIndex(archive) as index:
        found = index.segment(first[0])
        assert found is not None
        assert (found.needs_next, found.commits, found.ending) == (True, None, Ending.OPEN)
    archive.put(second[0].name, pieces_of(second[1]))
    for _ in range(2):
        with WalIndex(archive) as index:
            found = index.segment(first[0])
            assert found is not None
            assert found.commits is not None
            assert (found.needs_next, found.commits.last.lsn, found.last) == (False, place, place)
            assert [end.xid for end in index.transaction_ends(first[0])] == [21]
            assert [end.xid for end in index.transaction_ends(second[0])] == [22]


def test_indexes_go_with_their_segments(archive: WalArchive) -> None:
    """When all segments of a directory have expired, their indexes go with the next that are written."""
    old = WalWriter(number=3)
    old.write(commit(1, at(1)))
    new = WalWriter(number=3 + (1 << 12))
    new.write(commit(2, at(2)))
    with WalIndex(archive) as index:
        [old_segment] = put(archive, old)
        index.segment(old_segment)
    archive.remove(old_segment.name)
    with WalIndex(archive) as index:
        [new_segment] = put(archive, new)
        index.segment(new_segment)
    assert index_file(archive).name == "0000000100000001.jsonl.zst"


@pytest.mark.parametrize(
    ("minute", "inclusive", "place", "stop", "before"),
    [
        (0, True, TimePlace.BEFORE_FIRST, 11, None),
        (1, True, TimePlace.BETWEEN, 13, 11),
        (1, False, TimePlace.BEFORE_FIRST, 11, None),
        # Commit 12 is earlier than 13 and comes later: recovery to its time never gets there.
        (2, True, TimePlace.BETWEEN, 13, 11),
        (3, True, TimePlace.BETWEEN, 14, 12),
        (9, True, TimePlace.BETWEEN, 14, 12),
        (11, True, TimePlace.BETWEEN, 15, 14),
        # An abort stops recovery as a commit does; after it only a restore point shows that time went on.
        (12, True, TimePlace.AFTER_LAST, None, 14),
        (20, True, TimePlace.AFTER_LAST, None, 14),
        (21, True, TimePlace.BEYOND, None, 14),
    ],
)
def test_where_a_time_lies(
    archive: WalArchive, minute: int, *, inclusive: bool, place: TimePlace, stop: int | None, before: int | None
) -> None:
    """Recovery to a time stops before the first commit or abort, in the order of the WAL, that is later."""
    put(archive, day())
    with WalIndex(archive) as index:
        times = WalTimes(index, ONLY, start=Lsn(3 * MIB))
        found = times.find_time(time(minute), inclusive=inclusive)
        assert (found.place, found.stop and found.stop.xid, found.before and found.before.xid) == (place, stop, before)
        assert times.lsn_after_time(time(minute), inclusive=inclusive) == (found.stop.lsn if found.stop else None)
        if place is TimePlace.BEYOND:
            assert times.find_time(time(minute), proved_until=time(30)).place is TimePlace.AFTER_LAST


def test_names_transactions_and_limits(archive: WalArchive) -> None:
    """Names and transactions are found between the limits asked for, and nowhere else."""
    writer = day()
    put(archive, writer)
    with WalIndex(archive) as index:
        times = WalTimes(index, ONLY, start=Lsn(3 * MIB))
        commits = times.commits()
        assert commits is not None
        assert (commits.count, commits.first.xid, commits.last.xid, commits.latest.time) == (4, 11, 14, time(10))
        assert [point.name for point in times.restore_points()] == ["here", "here", "there"]
        found = times.restore_point("here")
        assert found is not None
        assert found.lsn == writer.starts[2]
        assert times.restore_point("nowhere") is None
        aborted = times.find_transaction(15)
        assert aborted is not None
        assert (aborted[0].time, aborted[1]) == (time(12), False)
        assert times.find_transaction(16) is None
        assert times.end() == (Lsn(writer.starts[-1] + 24), "")
        # From the second commit up to the third: only the second.
        some = WalTimes(index, ONLY, start=writer.starts[1], end=writer.starts[3])
        commits = some.commits()
        assert commits is not None
        assert (commits.count, commits.first.xid) == (1, 13)
        assert some.find_transaction(11) is None
    assert WalView(archive).restore_point("here", ONLY) == writer.starts[6]
    assert WalView(archive).restore_point("nowhere", ONLY) is None
    with pytest.raises(FormatError) as caught:
        WalView(archive).restore_point("ä" * 32, ONLY)
    assert caught.value.message == "a restore point's name has 1 to 63 bytes, found 64"


def test_a_history_with_a_fork(archive: WalArchive) -> None:
    """What the old timeline went on to write after the fork is no part of the new one's history."""
    old = WalWriter()
    old.write(commit(1, at(1)))
    fork = old.position
    old.write(commit(2, at(2)))
    old.write(restore_point("on the old one"))
    old.write(Made(5, 0x00, (4711).to_bytes(4, "little") + b"/old\0"))
    old.write(switch())
    put(archive, old)
    new = WalWriter(timeline=2)
    # The server copies what is before the fork; its pages keep their timeline.
    new.write(commit(1, at(1)))
    new.write(commit(3, at(3)))
    new.write(Made(5, 0x00, (4712).to_bytes(4, "little") + "/ä".encode() + b"\0"))
    new.write(switch())
    put(archive, new)
    history = TimelineHistory(Timeline(2), (TimelineFork(Timeline(1), Lsn(fork)),))
    with WalIndex(archive) as index:
        times = WalTimes(index, history, start=Lsn(3 * MIB))
        commits = times.commits()
        assert commits is not None
        assert (commits.count, commits.last.xid) == (2, 3)
        assert [(event.oid, event.path) for event in times.tablespaces_created()] == [(4712, "/ä")]
        assert times.restore_point("on the old one") is None
    assert WalView(archive).restore_point("on the old one", history) is None
    assert WalView(archive).restore_point("on the old one", ONLY) == old.starts[2]
    # Without the new file, the old one serves up to the fork.
    archive.remove("000000020000000000000003")
    with WalIndex(archive) as index:
        commits = WalTimes(index, history, start=Lsn(3 * MIB)).commits()
        assert commits is not None
        assert (commits.count, commits.last.xid) == (1, 1)


def test_a_segment_that_is_not_complete(archive: WalArchive) -> None:
    """What is held of the newest segment counts, and grows."""
    writer = WalWriter()
    for number in (1, 2):
        writer.write(commit(number, at(number)))
        [(segment, content)] = writer.segments()
        archive.put(f"{segment.name}.partial", pieces_of(content))
        with WalIndex(archive) as index:
            times = WalTimes(index, ONLY, start=segment.start_lsn)
            commits = times.commits()
            assert commits is not None
            assert commits.count == number
            end = Lsn(writer.position)
            assert times.end() == (end, f"WAL ends at {end}: zeros follow from {end} on")


def test_a_long_look_is_told(archive: WalArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads many segments says where it is, and who finds their indexes says nothing."""
    put(archive, day())
    monkeypatch.setattr("pgkeep.vault.wal_index._TELL_SECONDS", 0.0)
    said: list[str] = []
    names = [f"00000001000000000000000{number}" for number in (3, 4, 5)]
    for expected in ([f"looking into the WAL, which is done once: at {name}" for name in names], []):
        said.clear()
        with WalIndex(archive, tell=said.append) as index:
            assert WalTimes(index, ONLY, start=Lsn(3 * MIB)).commits() is not None
        assert said == expected


def test_what_root_adds_belongs_to_the_owner_of_the_archive(archive: WalArchive) -> None:
    """WAL and indexes that root has brought in can be read and added to by the account that the archive belongs to."""
    server_user().own(archive.root.parent)
    put(archive, day())
    with WalIndex(archive) as index:
        assert WalTimes(index, ONLY, start=Lsn(3 * MIB)).commits() is not None
    made = [path for path in archive.root.parent.rglob("*") if path.name != "cluster.json"]
    assert len(made) > 5
    assert {path.stat().st_uid for path in made} == {server_user().uid}
