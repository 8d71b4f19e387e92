"""What goes into the vault comes out of it: with pgkeep, and with stock tar and zstd."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest

from pgkeep.errors import BackupUnusable, VaultError
from pgkeep.streams.item import EXTENT_BYTES, ItemKind, ItemRole, UnchangedItem
from pgkeep.vault.cluster_vault import ClusterVault
from tests.archive.made_wal import segment_at, wal_of
from tests.vault.made_items import (
    DIFFERENTIAL,
    FULL,
    ROOT,
    MadeDetached,
    MadeStreamed,
    content_of,
    detached,
    directory,
    head_of,
    header_of,
    streamed,
    symlink,
)
from tests.vault.stories import SYSTEM_IDENTIFIER, Made, fetch, store

SIZES = [0, 1, 511, 512, 513, EXTENT_BYTES - 1, EXTENT_BYTES, EXTENT_BYTES + 1, 9 << 20]
LONG = "/".join(["component" * 9] * 3)


def a_bit_of_everything() -> list[Made]:
    """Return items of every kind and of every size where something changes."""
    items: list[Made] = [directory(f"{ROOT}/base"), directory(f"{ROOT}/{LONG}")]
    items += [detached(f"{ROOT}/base/detached{size}", size) for size in SIZES]
    items += [streamed(f"{ROOT}/base/streamed{size}", size) for size in SIZES]
    items += [streamed(f"{ROOT}/base/unknown{size}", size, announced=False) for size in SIZES]
    items += [detached(f"{ROOT}/{LONG}/{'n' * 200}", 700), streamed(f"{ROOT}/{LONG}/{'u' * 200}", 700, announced=False)]
    items += [symlink(f"{ROOT}/base/link", "detached1"), symlink(f"{ROOT}/base/far", "x" * 150)]
    items += [detached("@postgresql/pitr/tblspc/16385/PG_18_202506291/5/16386", 8192)]
    items += [streamed("@postgresql/pitr/backup_label", 60), detached(f'{ROOT}/we ird "näme"', 10)]
    return items


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_what_is_stored_is_read(cluster: ClusterVault, workers: int) -> None:
    """Every item comes back with its header and its content, whatever its size and kind."""
    items = a_bit_of_everything()
    store(cluster, items, workers=workers)
    assert fetch(cluster) == {item.header.path: item.content for item in items}
    with cluster.open_backup(FULL) as backup:
        found = {item.header.path: item.header for item in backup.items()}
        for item in items:
            header, expected = found[item.header.path], item.header
            assert header.size == len(item.content)
            for name in ("kind", "mtime_ns", "file_mode", "owner", "group", "link"):
                assert getattr(header, name) == getattr(expected, name)
        assert backup.tail.files == len(items)
        assert backup.tail.bytes == sum(len(item.content) for item in items)
        assert len(backup.tail.volumes) == workers
    assert [head.backup_id for head in cluster.backups()] == [FULL]
    assert all(item.closed == 1 for item in items if isinstance(item, MadeDetached))


def unpack(place: Path, *volume_directories: Path) -> None:
    """Unpack volumes with stock zstdcat and tar."""
    place.mkdir(exist_ok=True)
    for volumes in volume_directories:
        command = 'zstdcat "$1"/volume-*.tar.zst | tar -xi --no-same-owner -C "$2"'
        subprocess.run(["bash", "-o", "pipefail", "-c", command, "-", volumes, place], check=True, timeout=60)


def test_stock_programs_read_the_volumes(cluster: ClusterVault, tmp_path: Path) -> None:
    """Stock zstdcat and tar unpack exactly the items, under the names of a data directory."""
    items = a_bit_of_everything()
    store(cluster, items)
    place = tmp_path / "unpacked"
    unpack(place, cluster.backup_directory(FULL))
    expected = {}
    for item in items:
        name = item.header.path.removeprefix("@postgresql/pitr/").removeprefix("pgdata/").replace("tblspc", "pg_tblspc")
        expected[name] = item
        path = place / name
        assert path.is_symlink() == (item.header.kind is ItemKind.SYMLINK)
        if item.header.kind is ItemKind.FILE:
            assert path.read_bytes() == item.content
            assert path.stat().st_mtime == item.header.mtime_ns // 10**9
            assert path.stat().st_mode & 0o777 == item.header.file_mode
        elif item.header.kind is ItemKind.SYMLINK:
            assert os.readlink(path) == item.header.link
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_symlink() or path.is_file()}
    assert found == {name for name, item in expected.items() if item.header.kind is not ItemKind.DIRECTORY}


def test_the_manifest_is_json_that_stock_zstd_reads(cluster: ClusterVault) -> None:
    """The record is one JSON document with one line for each file."""
    store(cluster, [detached(f"{ROOT}/a", 10), detached(f"{ROOT}/b", 20)])
    manifest = cluster.backup_directory(FULL) / "manifest.json.zst"
    printed = subprocess.run(["zstdcat", manifest], check=True, capture_output=True, timeout=60).stdout
    document = json.loads(printed)
    assert sorted(entry["path"] for entry in document["files"]) == [f"{ROOT}/a", f"{ROOT}/b"]
    assert document["head"]["backup_id"] == FULL
    assert document["tail"]["files"] == 2


def test_unchanged_files_are_references(cluster: ClusterVault, tmp_path: Path) -> None:
    """A Differential stores only what changed, reads the rest from its Full, and says whose volumes it needs."""
    store(cluster, [detached(f"{ROOT}/same", 5 << 20), detached(f"{ROOT}/changed", 100), detached(f"{ROOT}/gone", 7)])
    unchanged = UnchangedItem(header_of(f"{ROOT}/same", 5 << 20), FULL)
    changed = MadeDetached(header_of(f"{ROOT}/changed", 120), content_of("other", 120))
    store(cluster, [unchanged, changed], DIFFERENTIAL)
    assert fetch(cluster, DIFFERENTIAL) == {
        f"{ROOT}/same": content_of(f"{ROOT}/same", 5 << 20),
        f"{ROOT}/changed": content_of("other", 120),
    }
    with cluster.open_backup(DIFFERENTIAL) as backup:
        assert backup.head.references == [FULL]
        assert (backup.tail.files, backup.tail.sent_files, backup.tail.sent_bytes) == (2, 1, 120)
    newest = cluster.newest(mode="pitr", levels=frozenset([head_of(FULL).level]))
    assert newest is not None
    entry = newest.file(f"{ROOT}/gone")
    assert entry is not None
    assert entry.size == 7
    assert newest.file(f"{ROOT}/never") is None


@pytest.mark.parametrize(
    ("path", "size", "message"),
    [
        (f"{ROOT}/other", 5, f"backup {FULL} does not hold {ROOT}/other"),
        (f"{ROOT}/same", 5, f"backup {FULL} holds {ROOT}/same with 3 bytes, expected 5"),
    ],
)
def test_a_reference_must_be_held(cluster: ClusterVault, path: str, size: int, message: str) -> None:
    """A file that the base does not hold as said ends the backup."""
    store(cluster, [detached(f"{ROOT}/same", 3)])
    with pytest.raises(BackupUnusable) as caught:
        store(cluster, [UnchangedItem(header_of(path, size), FULL)], DIFFERENTIAL)
    assert str(caught.value) == message
    assert [head.backup_id for head in cluster.backups()] == [FULL]


def test_leaving_without_commit_leaves_nothing(cluster: ClusterVault) -> None:
    """An aborted backup has no directory, no lock and no listing."""
    with cluster.begin_backup(FULL) as sink:
        sink.accept(detached(f"{ROOT}/a", 9 << 20))
    assert not cluster.backup_directory(FULL).exists()
    assert cluster.backups() == []
    store(cluster, [detached(f"{ROOT}/a", 1)])


def test_an_id_is_used_once(cluster: ClusterVault) -> None:
    """A second backup of the same second is refused, and the first one stays."""
    store(cluster, [detached(f"{ROOT}/a", 1)])
    with pytest.raises(VaultError) as caught:
        cluster.begin_backup(FULL)
    assert str(caught.value) == f"cluster main has a backup {FULL} already"
    assert fetch(cluster) == {f"{ROOT}/a": content_of(f"{ROOT}/a", 1)}


def test_wal_goes_to_the_archive_and_what_the_backup_needs_to_both(cluster: ClusterVault, tmp_path: Path) -> None:
    """WAL carried for the archive is no member; WAL that the backup needs is one, below pg_wal, and is archived too."""
    carried, needed = segment_at(7), segment_at(8)
    contents = {segment.name: wal_of(segment, system=SYSTEM_IDENTIFIER) for segment in (carried, needed)}
    with cluster.begin_backup(FULL) as sink:
        for segment, role in ((carried, ItemRole.WAL), (needed, ItemRole.BACKUP_WAL)):
            item = streamed(f"@postgresql/pitr/wal/{segment.name}", 1 << 20, role=role)
            sink.accept(MadeStreamed(item.header, contents[segment.name]))
        sink.commit(head_of(FULL))
    assert fetch(cluster) == {f"@postgresql/pitr/wal/{needed.name}": contents[needed.name]}
    for name, content in contents.items():
        assert b"".join(bytes(piece) for piece in cluster.archive.read(name)) == content
    unpack(tmp_path / "unpacked", cluster.backup_directory(FULL))
    assert (tmp_path / "unpacked/pg_wal" / needed.name).read_bytes() == contents[needed.name]


def test_a_barrier_is_read_when_accept_returns(cluster: ClusterVault) -> None:
    """Items before a barrier, and the barrier itself, have been read to their end when accept comes back."""
    before = [detached(f"{ROOT}/base/{number}", 5 << 20) for number in range(8)]
    control = detached(f"{ROOT}/global/pg_control", 8192)
    barrier = MadeDetached(dataclasses.replace(control.header, barrier=True), control.content)
    with cluster.begin_backup(FULL) as sink:
        for item in before:
            sink.accept(item)
        sink.accept(barrier)
        assert [item.closed for item in [*before, barrier]] == [1] * 9
        sink.commit(head_of(FULL))
