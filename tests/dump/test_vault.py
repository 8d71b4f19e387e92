"""Dumps through the vault: each format comes back, and a flipped bit never reaches a database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.errors import PgkeepError
from pgkeep.modes.dump import DumpMode
from pgkeep.modes.dump_items import Select
from pgkeep.modes.dump_plan import DumpOptions
from pgkeep.modes.dump_restore import restore
from pgkeep.modes.dump_restore_plan import DumpRestoreOptions, plan_restore
from pgkeep.server.connection import Server
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterIdentity, ClusterVault
from pgkeep.vault.stored_backup import StoredItem
from pgkeep.vault.vault import Vault
from tests.dump.sample import digests, plan_dump, target_of
from tests.lab.cluster import Cluster

pytestmark = pytest.mark.pg(">=18")


@pytest.fixture
def stored(sampled: Cluster, tmp_path: Path) -> Iterator[ClusterVault]:
    """A cluster's part of a new vault."""
    identity = ClusterIdentity(system_identifier="1", major=sampled.major)
    with Vault.create(tmp_path / "vault").create_cluster("main", identity) as cluster:
        yield cluster


def dump_into(stored: ClusterVault, server: Server, options: DumpOptions) -> RecordHead:
    """Make a dump in the vault, as the backup job does."""
    mode = DumpMode()
    plan = plan_dump(server, options)
    with stored.begin_backup(plan.backup_id) as sink, mode.open(plan, server=server) as source:
        for item in source.items():
            sink.accept(item)
        head, _ = sink.commit(source.finish())
        source.confirm()
    return head


def restore_from(stored: ClusterVault, server: Server, head: RecordHead, options: DumpRestoreOptions) -> None:
    """Restore a dump from the vault."""
    with stored.open_backup(head.backup_id) as backup:

        def supply(select: Select) -> Iterator[StoredItem]:
            return backup.items(lambda entry: select(entry.path))

        plan = plan_restore(backup.head, options, server=server, warn=pytest.fail)
        restore(plan, supply, server=server, say=lambda _: None, warn=pytest.fail)


@pytest.mark.parametrize("dump_format", DumpFormat, ids=lambda one: one.value)
def test_comes_back_from_the_vault(
    *,
    sampled: Cluster,
    sample_digests: dict[str, str],
    stored: ClusterVault,
    bin_dir: Path,
    tmp_path: Path,
    dump_format: DumpFormat,
) -> None:
    """A dump in the vault restores to equal rows."""
    options = DumpOptions(databases=("app",), format=dump_format, bin_dir=bin_dir, tmpdir=tmp_path / "tmp")
    with Server.open(target_of(sampled)) as server:
        head = dump_into(stored, server, options)
        back = DumpRestoreOptions(databases=("app",), new_database="new", bin_dir=bin_dir, tmpdir=tmp_path / "tmp")
        restore_from(stored, server, head, back)
    try:
        assert digests(sampled, "new") == sample_digests
    finally:
        sampled.sql("DROP DATABASE new")


def test_flipped_bit_is_refused(sampled: Cluster, stored: ClusterVault, bin_dir: Path) -> None:
    """A flipped bit in the vault ends the restore, even where pg_restore would not mind, and leaves no database."""
    before = sampled.sql("SELECT datname FROM pg_database ORDER BY 1")
    options = DumpOptions(databases=("app",), include_globals=False, format=DumpFormat.PLAIN, bin_dir=bin_dir)
    with Server.open(target_of(sampled)) as server:
        head = dump_into(stored, server, options)
        [volume] = [
            path for path in stored.backup_directory(head.backup_id).glob("volume-*") if path.stat().st_size > 5000
        ]
        content = bytearray(volume.read_bytes())
        content[len(content) // 2] ^= 1
        volume.write_bytes(content)
        back = DumpRestoreOptions(databases=("app",), new_database="new", bin_dir=bin_dir)
        with pytest.raises(PgkeepError, match=r"app\.sql"):
            restore_from(stored, server, head, back)
    assert sampled.sql("SELECT datname FROM pg_database ORDER BY 1") == before
