"""Expiring: what goes, in which order, what stays readable, and who may be in the way."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from pgkeep.errors import VaultBusy, VaultError
from pgkeep.streams.item import UnchangedItem
from pgkeep.streams.record import WalRange
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.expire import expire
from pgkeep.vault.lock import Lock
from pgkeep.vault.retention import RetentionPolicy
from tests.vault.made_items import DIFFERENTIAL, FULL, ROOT, detached, head_of, header_of
from tests.vault.stories import archive_wal, fetch, store

NEW_FULL = "20261127T204800Z-F"
NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
ONE = RetentionPolicy(count=1)


def two_cycles(cluster: ClusterVault) -> None:
    """Store a Full with its Differential, and a Full of the next week, with WAL from 1 to 29."""
    archive_wal(cluster, *range(1, 30))
    early = WalRange(timeline=1, start="0/00500000", stop="0/00600000", segment_size=1 << 20)
    store(
        cluster,
        [detached(f"{ROOT}/base/a", 5000), detached(f"{ROOT}/base/b", 5000)],
        head=head_of(FULL, start_lsn=early.start, stop_lsn=early.stop, wal=early),
    )
    store(
        cluster,
        [UnchangedItem(header_of(f"{ROOT}/base/a", 5000), FULL), detached(f"{ROOT}/base/c", 10)],
        DIFFERENTIAL,
        head=head_of(DIFFERENTIAL, base=FULL, start_lsn="0/00A00000", stop_lsn="0/00B00000"),
    )
    late = WalRange(timeline=1, start="0/01400000", stop="0/01500000", segment_size=1 << 20)
    store(
        cluster,
        [detached(f"{ROOT}/base/a", 6000)],
        NEW_FULL,
        head=head_of(NEW_FULL, start_lsn=late.start, stop_lsn=late.stop, wal=late),
    )


def contents_of(directory: Path) -> dict[str, int]:
    """Return the files beneath *directory* with their sizes, without locks."""
    return {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file() and "lock" not in path.name
    }


def test_a_dry_run_touches_nothing_and_says_what_would_go(cluster: ClusterVault) -> None:
    """The report of a dry run is that of the real run after it."""
    two_cycles(cluster)
    before = contents_of(cluster.directory)
    planned = expire(cluster, ONE, now=NOW, dry_run=True)
    assert contents_of(cluster.directory) == before
    done = expire(cluster, ONE, now=NOW)
    assert (planned.backups, planned.leftovers, planned.wal_files, planned.wal_bytes) == (
        done.backups,
        done.leftovers,
        done.wal_files,
        done.wal_bytes,
    )
    assert [removed.backup_id for removed in done.backups] == [DIFFERENTIAL, FULL]
    assert {removed.reason for removed in done.backups} == {"older than the newest clean Full"}
    freed = sum(before.values()) - sum(contents_of(cluster.directory).values())
    assert sum(removed.stored_bytes for removed in done.backups) + done.wal_bytes == freed
    # Segments 1 to 19 lie before the kept Full's start, segment 20.
    assert done.wal_files == 19
    assert cluster.archive.has("000000010000000000000014")
    assert not cluster.archive.has("000000010000000000000013")


def test_what_stays_is_whole(cluster: ClusterVault) -> None:
    """After expiring, what is listed can be read; again, there is nothing to do."""
    two_cycles(cluster)
    expire(cluster, ONE, now=NOW)
    assert [head.backup_id for head in cluster.backups()] == [NEW_FULL]
    assert len(fetch(cluster, NEW_FULL)) == 1
    again = expire(cluster, ONE, now=NOW)
    assert (again.backups, again.leftovers, again.wal_files) == ([], [], 0)


def test_a_pinned_differential_keeps_its_full(cluster: ClusterVault) -> None:
    """A pin keeps what the backup needs too, and goes away again."""
    two_cycles(cluster)
    cluster.pin(DIFFERENTIAL, reason="before the migration")
    report = expire(cluster, ONE, now=NOW)
    assert report.backups == []
    assert [verdict.reason for verdict in report.plan.verdicts[:2]] == [f"needed by {DIFFERENTIAL}", "pinned"]
    assert len(fetch(cluster, DIFFERENTIAL)) == 2
    cluster.unpin(DIFFERENTIAL)
    assert [removed.backup_id for removed in expire(cluster, ONE, now=NOW).backups] == [DIFFERENTIAL, FULL]


def test_pinning_what_is_not_there_is_an_error(cluster: ClusterVault) -> None:
    """Nobody should believe in a pin on nothing."""
    with pytest.raises(VaultError) as caught:
        cluster.pin(FULL)
    assert str(caught.value) == f'cluster main has no backup "{FULL}"'


def test_expire_waits_for_nobody_unless_told(cluster: ClusterVault) -> None:
    """While a backup is written or read, a delete is refused with the name of who is there; a dry run is not."""
    two_cycles(cluster)
    with cluster.begin_backup("20261128T000000Z-F"):
        with pytest.raises(VaultBusy) as caught:
            expire(cluster, ONE, now=NOW)
        assert f"cluster main of the vault is in use by backup (process {os.getpid()} on " in str(caught.value)
        report = expire(cluster, ONE, now=NOW, dry_run=True)
        assert report.leftovers == []
    assert len(expire(cluster, ONE, now=NOW).backups) == 2


def test_an_interrupted_delete_is_completed(cluster: ClusterVault) -> None:
    """A directory whose record is gone already is a leftover of the next run, and not a backup."""
    two_cycles(cluster)
    directory = cluster.backup_directory(DIFFERENTIAL)
    (directory / "manifest.json.zst").rename(directory / "manifest.json.zst.deleting")
    assert [head.backup_id for head in cluster.backups()] == [FULL, NEW_FULL]
    assert cluster.leftovers() == [DIFFERENTIAL]
    report = expire(cluster, RetentionPolicy(), now=NOW)
    assert [removed.backup_id for removed in report.leftovers] == [DIFFERENTIAL]
    assert not directory.exists()


def test_histories_stay(cluster: ClusterVault) -> None:
    """A timeline's history file outlives the WAL of its timeline."""
    two_cycles(cluster)
    cluster.archive.put("00000002.history", [b"1\t0/00300000\tno recovery target specified\n"])
    archive_wal(cluster, 3, 4, timeline=2)
    expire(cluster, ONE, now=NOW)
    assert cluster.archive.has("00000002.history")
    assert not cluster.archive.has("000000020000000000000003")


def test_one_backup_at_a_time(cluster: ClusterVault) -> None:
    """A second writer is refused and told who writes; after the first is done it may."""
    with cluster.begin_backup(FULL):
        with pytest.raises(VaultBusy) as caught:
            cluster.begin_backup(NEW_FULL)
        assert str(caught.value).startswith(
            f"cluster main of the vault is being backed up by backup (process {os.getpid()}"
        )
    store(cluster, [], NEW_FULL)


def test_readers_share_and_keep_deletes_out(cluster: ClusterVault) -> None:
    """Two readers are no trouble for each other; a delete waits until both are gone."""
    with cluster.lock(shared=True, verb="restore"):
        with cluster.lock(shared=True, verb="verify"), pytest.raises(VaultBusy) as caught:
            cluster.lock(shared=False, verb="expire")
        assert "restore (process" in str(caught.value)
        assert "verify (process" in str(caught.value)
    with cluster.lock(shared=False, verb="expire"), pytest.raises(VaultBusy):
        Lock(cluster.directory, "lock", shared=True, verb="restore")
    assert list((cluster.directory / "holders").iterdir()) == []
