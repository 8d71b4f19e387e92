"""What the archive says that it holds."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import VaultError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import WalSegment
from pgkeep.vault import wal_holdings
from pgkeep.vault.wal_archive import WalArchive
from tests.archive.made_wal import MIB, made_archive, segment_at, stored_path


def _hold(archive: WalArchive, name: str) -> None:
    path = stored_path(archive, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _hold_numbers(archive: WalArchive, numbers: set[int], *, timeline: int = 1) -> None:
    for number in numbers:
        _hold(archive, segment_at(number, timeline=timeline, size=archive.segment_size).name)


def test_empty_archive_holds_nothing(tmp_path: Path) -> None:
    """An empty archive has no timelines and no ranges."""
    archive = made_archive(tmp_path)
    assert wal_holdings.timelines(archive) == []
    assert list(wal_holdings.ranges(archive)) == []
    assert wal_holdings.held_through(archive, Timeline(1), Lsn(5)) == Lsn(5)


def test_ranges_show_holes_and_timelines(tmp_path: Path) -> None:
    """A hole splits a range, and each timeline has its own; what is not a segment does not count."""
    archive = made_archive(tmp_path)
    _hold_numbers(archive, {1, 2, 3, 5, 4094, 4095, 4096})
    _hold_numbers(archive, {5, 6}, timeline=2)
    for name in ("00000002.history", f"{segment_at(4).name}.partial", f"{segment_at(5).name}.00000028.backup"):
        _hold(archive, name)
    (archive.root / "00000001" / "0000000100000000" / ".pgkeep-1-1-1.tmp").touch()
    (archive.root / "lost+found").mkdir()
    found = [(r.timeline, r.first.number, r.last.number, r.segments) for r in wal_holdings.ranges(archive)]
    assert found == [(1, 1, 3, 3), (1, 5, 5, 1), (1, 4094, 4096, 3), (2, 5, 6, 2)]
    assert wal_holdings.partial_segments(archive, Timeline(1)) == [segment_at(4)]
    assert next(file.name for file in wal_holdings.files(archive, Timeline(2))) == "00000002.history"


def test_held_through_ends_at_the_first_hole(tmp_path: Path) -> None:
    """WAL is held from an LSN up to the first missing segment, and nowhere when its own segment is missing."""
    archive = made_archive(tmp_path)
    _hold_numbers(archive, {1, 2, 3, 5})
    assert wal_holdings.held_through(archive, Timeline(1), Lsn(MIB + 17)) == Lsn(4 * MIB)
    assert wal_holdings.held_through(archive, Timeline(1), Lsn(4 * MIB)) == Lsn(4 * MIB)
    assert wal_holdings.held_through(archive, Timeline(1), Lsn(5 * MIB + 1)) == Lsn(6 * MIB)
    assert wal_holdings.held_through(archive, Timeline(2), Lsn(MIB)) == Lsn(MIB)


@settings(max_examples=30)
@given(
    held=st.sets(st.integers(0, 40)),
    start=st.integers(0, 42),
    size=st.sampled_from([MIB, 16 * MIB, 64 * MIB, 1024 * MIB]),
)
def test_every_answer_agrees_with_the_set_of_segments(
    tmp_path_factory: pytest.TempPathFactory, held: set[int], start: int, size: int
) -> None:
    """Ranges, missing and held_through say the same of any set of segments, whatever their size."""
    archive = made_archive(tmp_path_factory.mktemp("archive"), size=size)
    _hold_numbers(archive, held)
    found = {n for r in wal_holdings.ranges(archive) for n in range(r.first.number, r.last.number + 1)}
    assert found == held
    wanted = [segment_at(number, size=size) for number in range(42)]
    assert [s.number for s in wal_holdings.missing(archive, wanted)] == [n for n in range(42) if n not in held]
    end = next(number for number in range(start, 50) if number not in held)
    assert wal_holdings.held_through(archive, Timeline(1), Lsn(start * size)) == Lsn(end * size)


def test_memory_does_not_grow_with_the_number_of_segments(tmp_path: Path) -> None:
    """Twenty thousand segments are listed within 2 MiB."""
    archive = made_archive(tmp_path, size=16 * MIB)
    for number in range(20_000):
        name = segment_at(number, size=16 * MIB).name
        if not number % 256:
            stored_path(archive, name).parent.mkdir(parents=True)
        stored_path(archive, name).touch()
    tracemalloc.start()
    try:
        assert [r.segments for r in wal_holdings.ranges(archive)] == [20_000]
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_vault_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """A vault that is not mounted does not look like an empty archive."""
    archive = made_archive(tmp_path)
    (archive.root.parent / "cluster.json").unlink()
    with pytest.raises(VaultError, match=r"^no WAL archive at .*/main/wal: No such file or directory$"):
        list(wal_holdings.ranges(archive))
    with pytest.raises(VaultError):
        list(wal_holdings.missing(archive, [WalSegment(Timeline(1), 1, MIB)]))
