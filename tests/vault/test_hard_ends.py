"""Killed jobs and full disks: no half backup, no lock that stays, and a message that helps."""

from __future__ import annotations

import datetime as dt
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgkeep.errors import VaultBusy, VaultError
from pgkeep.vault.cluster_vault import ClusterIdentity, ClusterVault
from pgkeep.vault.expire import expire
from pgkeep.vault.retention import RetentionPolicy
from pgkeep.vault.vault import Vault
from pgkeep.vault.verify import verify
from tests.lab.smallfs import small_filesystem
from tests.vault.made_items import FULL, ROOT, MadeDetached, detached, head_of, header_of, streamed
from tests.vault.stories import SYSTEM_IDENTIFIER, fetch, store

PROJECT = Path(__file__).parents[2]
NEXT_FULL = "20261121T000000Z-F"
NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)


def test_a_killed_writer_leaves_no_backup_and_no_lock(vault: Vault, cluster: ClusterVault) -> None:
    """After kill -9 in the middle: nothing is listed, the next backup works, expire cleans."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "src")])}
    program = [sys.executable, "-m", "tests.vault.backup_forever", str(vault.path), FULL]
    with subprocess.Popen(program, cwd=PROJECT, env=environment, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"writing\n"
            with pytest.raises(VaultBusy, match=f"backup \\(process {writer.pid} on "):
                cluster.begin_backup(NEXT_FULL)
            assert cluster.leftovers() == []
        finally:
            writer.kill()
    assert cluster.backups() == []
    assert cluster.leftovers() == [FULL]
    store(cluster, [detached(f"{ROOT}/base/a", 10)], NEXT_FULL)
    report = expire(cluster, RetentionPolicy(), now=NOW)
    assert [removed.backup_id for removed in report.leftovers] == [FULL]
    assert report.leftovers[0].stored_bytes > 0
    assert not cluster.backup_directory(FULL).exists()
    assert [head.backup_id for head in cluster.backups()] == [NEXT_FULL]
    assert verify(cluster).is_clean


def test_a_backup_may_take_the_id_of_a_killed_one(vault: Vault, cluster: ClusterVault) -> None:
    """A leftover of the same second is no obstacle."""
    directory = cluster.backup_directory(FULL)
    directory.mkdir()
    (directory / "volume-00.tar.zst").write_bytes(b"half")
    (directory / "writing").touch()
    store(cluster, [detached(f"{ROOT}/base/a", 10)])
    assert len(fetch(cluster)) == 1


@pytest.mark.parametrize("kind", ["detached", "streamed"])
def test_a_full_disk_ends_the_backup_and_frees_the_room(kind: str) -> None:
    """The message says where and how much is free; the half backup is gone, so that other jobs have room again."""
    with small_filesystem(24) as place:
        cluster = Vault.create(place / "vault").create_cluster(
            "main", ClusterIdentity(system_identifier=str(SYSTEM_IDENTIFIER), major=18)
        )
        store(cluster, [detached(f"{ROOT}/base/a", 1_000_000)])
        free = os.statvfs(place).f_bavail
        made = [
            MadeDetached(header_of(f"{ROOT}/base/{n}", 6 << 20), os.urandom(6 << 20))
            if kind == "detached"
            else streamed(f"{ROOT}/base/{n}", 6 << 20)
            for n in range(10)
        ]
        for item in made:
            item.content = os.urandom(6 << 20)
        with pytest.raises(VaultError) as caught:
            store(cluster, made, NEXT_FULL)
        expected = r"cannot write .*/volume-0\d.tar.zst: No space left on device, \d+ bytes are free"
        assert re.fullmatch(expected, str(caught.value))
        assert caught.value.hint == (
            "free space in the vault's file system, or expire old backups; nothing of this backup is kept"
        )
        assert not cluster.backup_directory(NEXT_FULL).exists()
        assert os.statvfs(place).f_bavail == free
        assert [head.backup_id for head in cluster.backups()] == [FULL]
        assert verify(cluster).is_clean
        store(cluster, [detached(f"{ROOT}/base/a", 10)], NEXT_FULL)


def test_a_disk_that_fills_up_at_the_record_leaves_no_backup() -> None:
    """Content that fits is not enough: without room for the record there is no backup."""
    with small_filesystem(4) as place:
        cluster = Vault.create(place / "vault").create_cluster(
            "main", ClusterIdentity(system_identifier=str(SYSTEM_IDENTIFIER), major=18)
        )
        head = head_of(FULL, backup_label=os.urandom(4 << 20).hex())
        with pytest.raises(VaultError, match=r"manifest\.json\.zst: No space left on device"):
            store(cluster, [detached(f"{ROOT}/base/a", 1_000)], head=head)
        assert not cluster.backup_directory(FULL).exists()
        assert cluster.backups() == []


def test_an_error_of_the_source_leaves_nothing(cluster: ClusterVault) -> None:
    """When an item cannot be read, its error comes out and the backup is gone."""

    class Broken(MadeDetached):
        def read_extent(self, offset: int, length: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        store(cluster, [detached(f"{ROOT}/base/a", 10), Broken(header_of(f"{ROOT}/base/b", 9 << 20), b"")])
    assert not cluster.backup_directory(FULL).exists()


_KILLED_WHILE_GIVING_UP = """
import os, sys
from pathlib import Path
from pgkeep.vault.layout import MANIFEST_FILE
from pgkeep.vault.vault import Vault
def kill(event, arguments):
    if event == "shutil.rmtree":
        os._exit(9)
sys.addaudithook(kill)
cluster = Vault.open(Path(sys.argv[1])).cluster("main")
with cluster.begin_backup(sys.argv[2]) as sink:
    # The record has its name, and the sync that makes it durable fails.
    (sink.directory / MANIFEST_FILE).write_bytes((cluster.backup_directory(sys.argv[3]) / MANIFEST_FILE).read_bytes())
    raise OSError(5, "Input/output error")
"""


def test_giving_up_takes_the_record_away_first(vault: Vault, cluster: ClusterVault) -> None:
    """Killed before the volumes are gone, it leaves a leftover and no backup that is half there."""
    store(cluster, [detached(f"{ROOT}/base/a", 10)])
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    program = [sys.executable, "-c", _KILLED_WHILE_GIVING_UP, str(vault.path), NEXT_FULL, FULL]
    assert subprocess.run(program, env=environment, check=False).returncode == 9
    assert [head.backup_id for head in cluster.backups()] == [FULL]
    assert cluster.leftovers() == [NEXT_FULL]
    assert (cluster.backup_directory(NEXT_FULL) / "volume-00.tar.zst").exists()
    assert verify(cluster).is_clean


def test_memory_does_not_grow_with_files(cluster: ClusterVault, vault: Vault) -> None:
    """200,000 files stored, indexed, referred to and read back within 150 MiB."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "src")])}
    program = [sys.executable, "-m", "tests.vault.many_files", str(vault.path), "200000"]
    ended = subprocess.run(
        program, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert ended.returncode == 0, ended.stderr
    files, peak_mebibytes = map(float, ended.stdout.split())
    assert files == 200_000
    assert peak_mebibytes < 150
