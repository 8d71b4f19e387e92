"""The damage table of the vault: any flipped bit is found by verify, and no damaged content is restored."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pgkeep.errors import BackupUnusable, VaultError
from pgkeep.streams.item import EXTENT_BYTES, UnchangedItem
from pgkeep.streams.record import DamagedPages, WalRange
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.layout import is_volume_name
from pgkeep.vault.stored_backup import StoredItem
from pgkeep.vault.vault import Vault
from pgkeep.vault.verify import verify
from tests.vault.made_items import DIFFERENTIAL, FULL, ROOT, detached, directory, head_of, header_of, streamed, symlink
from tests.vault.stories import archive_wal, fetch, store


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of the file at *path*."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def test_a_flipped_bit_anywhere_is_found_and_refused(cluster: ClusterVault) -> None:
    """At every byte of every file of a small backup: verify finds it; what a restore reads is refused."""
    items = [
        directory(f"{ROOT}/base"),
        symlink(f"{ROOT}/base/link", "a"),
        detached(f"{ROOT}/base/empty", 0),
        detached(f"{ROOT}/base/a", 900),
        streamed(f"{ROOT}/base/unknown", 300, announced=False),
        streamed(f"{ROOT}/base/whole", 512),
    ]
    store(cluster, items)
    expected = fetch(cluster)
    assert verify(cluster).is_clean
    files = sorted(cluster.backup_directory(FULL).iterdir())
    assert [file.name for file in files] == [
        "RESTORE.md",
        "manifest.json.zst",
        "volume-00.tar.zst",
        "volume-01.tar.zst",
    ]
    for file in files:
        for position in range(file.stat().st_size):
            bit = position % 8
            flip(file, position, bit)
            assert not verify(cluster).is_clean, f"{file.name} at {position}"
            if file.name != "RESTORE.md":
                with pytest.raises(BackupUnusable):
                    fetch(cluster)
            flip(file, position, bit)
    assert verify(cluster).is_clean
    assert fetch(cluster) == expected


@pytest.mark.parametrize("extent", [0, 1, 2])
def test_damage_in_any_extent_of_a_large_file_is_found(cluster: ClusterVault, extent: int) -> None:
    """Reading in parallel ends with the error, and nobody waits for ever."""
    store(cluster, [detached(f"{ROOT}/base/large", 2 * EXTENT_BYTES + 100), detached(f"{ROOT}/base/small", 10)])
    with cluster.open_backup(FULL) as backup:
        (entry,) = backup.files(lambda entry: entry.path.endswith("large"))
    at = entry.at
    assert at is not None
    volume = cluster.backup_directory(FULL) / f"volume-{at.volume:02}.tar.zst"
    flip(volume, at.offset + at.header_length + sum(at.frames[:extent]) + at.frames[extent] // 2)
    with pytest.raises(BackupUnusable, match=f"backup {FULL} is damaged: {ROOT}/base/large in {volume.name} at offset"):
        fetch(cluster)
    report = verify(cluster)
    assert report.findings_count == 1
    assert report.findings[0].path == f"{ROOT}/base/large"
    assert report.findings[0].file == volume.name


def test_what_met_one_extent_is_told_of_the_others(cluster: ClusterVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file one part of which could not be read for want of memory is not damaged, whoever is heard first."""
    store(cluster, [detached(f"{ROOT}/base/large", 2 * EXTENT_BYTES)])
    with cluster.open_backup(FULL) as backup:
        [item] = list(backup.items())
        with monkeypatch.context() as patch:
            patch.setattr(StoredItem, "_pread", _without_memory)
            with pytest.raises(MemoryError):
                item.read_extent(0, EXTENT_BYTES)
        with pytest.raises(MemoryError, match="no room"):
            item.read_extent(EXTENT_BYTES, EXTENT_BYTES)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_disk_that_is_away_is_no_damage(cluster: ClusterVault, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Only what the disk itself calls an error of reading is a finding; otherwise verify fails, and finds nothing."""
    store(cluster, [detached(f"{ROOT}/base/a", 900)])

    pread = os.pread

    def fail_for_volumes(descriptor: int, length: int, offset: int) -> bytes:
        if "/volume-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", fail_for_volumes)
    volume = f"volume-01.tar.zst of backup {FULL}"
    if number == errno.EIO:
        first, *_, last = verify(cluster).findings
        assert first.what.endswith(f"cannot read volume-00.tar.zst of backup {FULL}: Input/output error")
        assert last.what.endswith(f"cannot read {volume}: Input/output error")
        return
    with pytest.raises(VaultError) as caught:
        verify(cluster)
    assert str(caught.value) == f"cannot read volume-00.tar.zst of backup {FULL}: Stale file handle"
    assert caught.value.hint.endswith("this is no damage")
    monkeypatch.undo()
    with cluster.open_backup(FULL) as backup:
        [item] = list(backup.items())
        monkeypatch.setattr(os, "pread", fail_for_volumes)
        with pytest.raises(VaultError, match=f"cannot read {volume}: Stale file handle"):
            item.read_extent(0, 900)


def _without_memory(*_: object) -> memoryview:
    raise MemoryError("no room")


def test_the_identity_of_vault_and_cluster_is_guarded(vault: Vault, cluster: ClusterVault) -> None:
    """A flipped bit in vault.toml or cluster.json is an error, and so is another vault's id."""
    file = cluster.directory / "cluster.json"
    for damaged in (vault.path / "vault.toml", file):
        for position in range(damaged.stat().st_size):
            flip(damaged, position)
            with pytest.raises(VaultError):
                Vault.open(vault.path).cluster("main")
            flip(damaged, position)
    assert Vault.open(vault.path).cluster("main").identity == cluster.identity
    other = Vault.create(vault.path.parent / "other")
    shutil.copy(other.path / "vault.toml", vault.path / "vault.toml")
    with pytest.raises(VaultError) as caught:
        Vault.open(vault.path).cluster("main")
    assert str(caught.value) == f"{file} belongs to vault {vault.id}, but vault.toml says {other.id}"


def truncate(path: Path) -> None:
    """Cut the last byte off."""
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    """Append a byte."""
    with path.open("ab") as file:
        file.write(b"\0")


DAMAGE: list[tuple[str, str, Callable[[Path], None], str]] = [
    (
        "volume cut",
        "volume-00.tar.zst",
        truncate,
        "backup {id} cannot be used: volume-00.tar.zst has {less} bytes, expected {size}",
    ),
    (
        "volume longer",
        "volume-00.tar.zst",
        lengthen,
        "backup {id} cannot be used: volume-00.tar.zst has {more} bytes, expected {size}",
    ),
    (
        "volume lost",
        "volume-00.tar.zst",
        Path.unlink,
        "backup {id} cannot be used: cannot open volume-00.tar.zst of backup {id}: No such file or directory",
    ),
    (
        "record cut",
        "manifest.json.zst",
        truncate,
        "backup {id} cannot be used: manifest.json.zst does not end in a seal: it is truncated or damaged",
    ),
    (
        "record longer",
        "manifest.json.zst",
        lengthen,
        "backup {id} cannot be used: manifest.json.zst does not end in a seal: it is truncated or damaged",
    ),
]


@pytest.mark.parametrize(("name", "file", "damage", "message"), DAMAGE, ids=[row[0] for row in DAMAGE])
def test_each_damage_has_its_message(
    cluster: ClusterVault, name: str, file: str, damage: Callable[[Path], None], message: str
) -> None:
    """A restore is refused with the reason; undamaged it passes."""
    store(cluster, [detached(f"{ROOT}/base/a", 700)], workers=1)
    assert len(fetch(cluster)) == 1
    size = (cluster.backup_directory(FULL) / file).stat().st_size
    damage(cluster.backup_directory(FULL) / file)
    with pytest.raises(BackupUnusable) as caught:
        fetch(cluster)
    assert str(caught.value) == message.format(id=FULL, size=size, less=size - 1, more=size + 1)
    report = verify(cluster)
    assert not report.is_clean
    assert report.findings[0].backup_id == FULL


def test_a_record_under_another_name_is_refused(cluster: ClusterVault) -> None:
    """A backup's directory that was renamed by hand is not that backup."""
    store(cluster, [detached(f"{ROOT}/base/a", 700)])
    other = "20261124T000000Z-F"
    cluster.backup_directory(FULL).rename(cluster.backup_directory(other))
    with pytest.raises(BackupUnusable) as caught:
        cluster.backups()
    assert str(caught.value) == f"backup {other} cannot be used: its record is that of backup {FULL}"


def test_a_reference_to_a_lost_backup_is_found(cluster: ClusterVault) -> None:
    """Restoring a Differential whose Full is gone is refused; verifying it says so."""
    store(cluster, [detached(f"{ROOT}/base/same", 700)])
    store(cluster, [UnchangedItem(header_of(f"{ROOT}/base/same", 700), FULL)], DIFFERENTIAL)
    shutil.rmtree(cluster.backup_directory(FULL))
    with pytest.raises(BackupUnusable) as caught:
        fetch(cluster, DIFFERENTIAL)
    volume = next(name for name in ("volume-00.tar.zst", "volume-01.tar.zst") if name in str(caught.value))
    message = f"backup {DIFFERENTIAL} cannot be used: cannot open {volume} of backup {FULL}: No such file or directory"
    assert str(caught.value) == message
    assert [finding.what for finding in verify(cluster).findings] == [f"it needs backup {FULL}, which is not there"]
    assert [finding.what for finding in verify(cluster, backup_ids=[DIFFERENTIAL]).findings] == [
        f"it needs backup {FULL}, which is not there",
        message,
    ]


def test_bad_pages_are_found_unless_the_record_names_them(cluster: ClusterVault) -> None:
    """Pages that were bad on the server already are known; others are damage, named by block."""
    path = f"{ROOT}/base/5/16384.1"
    pages = detached(path, 4 * 8192)  # No page of it has a right checksum.
    head = head_of(FULL, data_checksums=True, start_lsn="0/02000000", stop_lsn="0/03000000")
    head.damaged.append(DamagedPages(path=path, blocks=[131072, 131075], count=2))
    store(cluster, [pages], head=head)
    report = verify(cluster)
    assert (report.pages_checked, report.pages_known, report.findings_count) == (4, 2, 1)
    finding = report.findings[0]
    assert (finding.path, finding.blocks) == (path, (131073, 131074))
    assert finding.what == "2 pages have a wrong checksum, the first is block 131073"


def test_missing_and_damaged_wal_is_found(cluster: ClusterVault) -> None:
    """A hole, a segment that a record says it carries, and a flipped bit each have their finding."""
    names = archive_wal(cluster, 5, 6, 7, 9)
    wal = WalRange(timeline=1, start="0/00500000", stop="0/00800000", segment_size=1 << 20)
    store(cluster, [], head=head_of(FULL, start_lsn="0/00500000", stop_lsn="0/00800000", wal=wal))
    report = verify(cluster)
    assert [str(finding) for finding in report.findings] == [
        "wal/00000001: WAL is missing between 000000010000000000000007 and 000000010000000000000009"
    ]
    assert verify(cluster, backup_ids=[FULL]).is_clean
    cluster.archive.remove(names[1])
    (stored,) = cluster.directory.glob(f"wal/*/*/{names[2]}.zst")
    flip(stored, 100)
    report = verify(cluster, backup_ids=[FULL])
    assert report.wal_files == 2
    found = sorted(str(finding) for finding in report.findings)
    assert found[0] == f"{FULL}/: it carries {names[1]}, which is missing"
    assert found[1].startswith(f"wal/{names[2]}: the archive's copy of {names[2]} cannot be used: ")
    assert len(found) == 2


# Name, numbers of the segments held of timelines 1, 2 and 3, known gap, what is found. The backup starts in segment 4;
# timeline 2 begins in the middle of segment 7, timeline 3 at the very start of segment 9.
FORKS: list[tuple[str, tuple[list[int], list[int], list[int]], tuple[str, str] | None, list[str]]] = [
    ("whole", ([4, 5, 6, 7], [7, 8, 9], [9, 10]), None, []),
    ("the last segment of timeline 1 was never complete", ([4, 5, 6], [7, 8], [9]), None, []),
    ("nothing of timeline 3 yet", ([4, 5, 6], [7, 8], []), None, []),
    (
        "the start of timeline 2",
        ([4, 5, 6, 7], [8], [9]),
        None,
        ["wal/00000002: WAL is missing between 000000010000000000000006 and 000000020000000000000008"],
    ),
    (
        "the end of timeline 1",
        ([4, 5], [7, 8], [9]),
        None,
        ["wal/00000002: WAL is missing between 000000010000000000000005 and 000000020000000000000007"],
    ),
    (
        "all of timeline 2",
        ([4, 5, 6], [], [9]),
        None,
        ["wal/00000003: WAL is missing between 000000010000000000000006 and 000000030000000000000009"],
    ),
    (
        "all of timeline 1",
        ([], [7, 8], [9]),
        None,
        [f"wal/00000002: WAL is missing between the start of backup {FULL} and 000000020000000000000007"],
    ),
    ("it is known", ([4, 5, 6, 7], [8], [9]), ("0/00700000", "0/00800000"), []),
]


@pytest.mark.parametrize(("held", "gap", "expected"), [row[1:] for row in FORKS], ids=[row[0] for row in FORKS])
def test_a_hole_where_timelines_fork_is_found(
    cluster: ClusterVault,
    held: tuple[list[int], list[int], list[int]],
    gap: tuple[str, str] | None,
    expected: list[str],
) -> None:
    """Replay of a kept backup passes from timeline to timeline, and each must begin where the one before was left."""
    for timeline, numbers in enumerate(held, 1):
        archive_wal(cluster, *numbers, timeline=timeline)
    cluster.archive.put("00000002.history", [b"1\t0/00780000\tpromoted\n"])
    cluster.archive.put("00000003.history", [b"1\t0/00780000\tpromoted\n2\t0/00900000\tpromoted\n"])
    head = head_of(FULL, timeline=1, start_lsn="0/00400028", stop_lsn="0/00400100")
    if gap is not None:
        head.wal_gaps.append(WalRange(timeline=2, start=gap[0], stop=gap[1], segment_size=1 << 20))
    store(cluster, [], head=head)
    assert [str(finding) for finding in verify(cluster).findings] == expected


def test_a_fork_that_no_backup_leads_to_needs_no_wal(cluster: ClusterVault) -> None:
    """A backup that was made after the fork, or that ended on the branch that was left, does not pass it."""
    archive_wal(cluster, 4, 5, 6, 7, 8)
    archive_wal(cluster, 8, 9, timeline=2)
    cluster.archive.put("00000002.history", [b"1\t0/00680000\tpromoted\n"])
    store(cluster, [], head=head_of(FULL, timeline=1, start_lsn="0/00600028", stop_lsn="0/00700000"))
    later = head_of(DIFFERENTIAL, timeline=2, start_lsn="0/00800028", stop_lsn="0/00900000")
    store(cluster, [], DIFFERENTIAL, head=later)
    assert verify(cluster).is_clean


def test_verifying_what_is_not_there_is_an_error(cluster: ClusterVault) -> None:
    """A backup that the vault does not have is not called clean."""
    with pytest.raises(VaultError) as caught:
        verify(cluster, backup_ids=[FULL])
    assert str(caught.value) == f'cluster main has no backup "{FULL}"'


def test_a_backup_without_damage_says_what_was_read(cluster: ClusterVault) -> None:
    """The report counts members, bytes and backups, and only volumes hold content."""
    store(cluster, [detached(f"{ROOT}/base/{number}", number * 1000) for number in range(5)])
    report = verify(cluster)
    assert (report.backups, report.files, report.bytes, report.is_clean) == ([FULL], 5, 10_000, True)
    assert sum(is_volume_name(name) for name in os.listdir(cluster.backup_directory(FULL))) == 2
