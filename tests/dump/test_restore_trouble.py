"""What goes wrong while a dump is restored: the server stays as it was, and the message says why."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgkeep.errors import BackupUnusable, FormatError, PgkeepError, RestoreRefused, ServerError, ToolError, UsageError
from pgkeep.modes.dump_items import Select
from pgkeep.modes.dump_restore import restore
from pgkeep.modes.dump_restore_plan import DumpRestoreOptions, plan_restore
from pgkeep.server.connection import Server
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.streams.compression import Compression
from pgkeep.streams.item import BytesItem
from tests.dump.sample import MemoryBackup, digests, dump_cluster, restore_cluster, target_of
from tests.dump.test_dump_trouble import children
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation
from tests.lab.smallfs import small_filesystem

PATH = "@postgresql/dump/app"


@pytest.fixture(scope="module")
def backups(sampled: Cluster, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, MemoryBackup]:
    """A dump of `app` in each format, zstd for the plain one."""
    return {
        one.value: dump_cluster(
            sampled,
            bin_dir=bin_dir,
            databases=["app"],
            format=one,
            compression=Compression.ZSTD if one is DumpFormat.PLAIN else Compression.NONE,
            tmpdir=tmp_path_factory.mktemp("staged"),
        )
        for one in DumpFormat
    }


@pytest.fixture
def unchanged(sampled: Cluster) -> Iterator[None]:
    """Check that the cluster has the databases after the test that it had before."""
    before = sampled.sql("SELECT oid, datname FROM pg_database ORDER BY 1")
    yield
    assert sampled.sql("SELECT oid, datname FROM pg_database ORDER BY 1") == before


def damaged(backup: MemoryBackup, path: str, change: Callable[[bytes], bytes]) -> MemoryBackup:
    """Return *backup* with the content of one item changed."""
    return MemoryBackup(
        headers=backup.headers, content=backup.content | {path: change(backup.content[path])}, head=backup.head
    )


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("dump_format", "path", "change", "kind", "message"),
    [
        ("custom", f"{PATH}.dump", lambda data: data[: len(data) // 2], ToolError, "pg_restore of database "),
        ("custom", f"{PATH}.dump", lambda _: b"", ToolError, 'pg_restore of database "new" ended with status 1: '),
        (
            "tar",
            f"{PATH}.tar",
            lambda data: data[: len(data) // 2],
            FormatError,
            "dump in tar format ends before its end",
        ),
        ("plain", f"{PATH}.sql.zst", lambda data: data[:-9], FormatError, "zstd stream ends before its end"),
        ("directory", f"{PATH}.dir/toc.dat", lambda data: data[:99], ToolError, 'pg_restore of database "new" ended'),
    ],
    ids=["half a custom dump", "empty custom dump", "half a tar", "zstd without end", "half a table of contents"],
)
def test_damaged_dump_leaves_nothing(
    *,
    sampled: Cluster,
    backups: dict[str, MemoryBackup],
    bin_dir: Path,
    tmp_path: Path,
    dump_format: str,
    path: str,
    change: Callable[[bytes], bytes],
    kind: type[PgkeepError],
    message: str,
) -> None:
    """A damaged dump ends the restore, and no database is left of it."""
    backup = damaged(backups[dump_format], path, change)
    with pytest.raises(kind) as failure:
        restore_cluster(sampled, backup, bin_dir=bin_dir, databases=("app",), new_database="new", tmpdir=tmp_path)
    assert str(failure.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchanged")
def test_backup_lacks_a_dump(sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path, tmp_path: Path) -> None:
    """A dump that the backup does not deliver is missed, whatever the format."""
    for name, suffix in (("custom", ".dump"), ("directory", ".dir")):
        empty = MemoryBackup(head=backups[name].head)
        with pytest.raises(BackupUnusable) as failure:
            restore_cluster(sampled, empty, bin_dir=bin_dir, databases=("app",), new_database="new", tmpdir=tmp_path)
        assert str(failure.value) == f"backup 20261120T204800Z-F lacks {PATH}{suffix}"


@pytest.mark.usefixtures("unchanged")
def test_pg_restore_is_killed(sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path) -> None:
    """A pg_restore killed in the middle ends the restore, and the half-filled database goes."""
    backup = backups["custom"]
    assert backup.head is not None

    def supply(select: Select) -> Iterator[BytesItem]:
        for item in backup.supply(select):
            yield BytesItem(item.header, item.content[:50000])
            os.kill(children("pg_restore")[0], signal.SIGKILL)
            yield BytesItem(item.header, item.content[50000:] * 50)

    options = DumpRestoreOptions(databases=("app",), new_database="new", bin_dir=bin_dir)
    with Server.open(target_of(sampled)) as server:
        plan = plan_restore(backup.head, options, server=server, warn=pytest.fail)
        with pytest.raises(ToolError) as failure:
            restore(plan, supply, server=server, say=lambda _: None, warn=pytest.fail)
    assert str(failure.value) == 'pg_restore of database "new" was ended by signal 9 (SIGKILL)'


@pytest.mark.usefixtures("unchanged")
def test_what_cannot_be_taken_back_is_named(
    sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path, tmp_path: Path
) -> None:
    """Where the half-filled database cannot be dropped, its name is a warning; why the restore failed stays."""
    backup, kept = backups["custom"], ""
    assert backup.head is not None

    def supply(select: Select) -> Iterator[BytesItem]:
        nonlocal kept
        [(kept,)] = sampled.sql("SELECT datname FROM pg_database WHERE datname LIKE 'pgkeep%%'")
        sampled.sql(f'ALTER DATABASE "{kept}" IS_TEMPLATE true')
        for item in backup.supply(select):
            yield BytesItem(item.header, item.content[:50])

    options = DumpRestoreOptions(databases=("app",), new_database="new", bin_dir=bin_dir, tmpdir=tmp_path)
    warnings: list[str] = []
    with Server.open(target_of(sampled)) as server:
        plan = plan_restore(backup.head, options, server=server, warn=pytest.fail)
        with pytest.raises(ToolError, match="pg_restore of database"):
            restore(plan, supply, server=server, say=lambda _: None, warn=warnings.append)
    sampled.sql(f'ALTER DATABASE "{kept}" IS_TEMPLATE false')
    sampled.sql(f'DROP DATABASE "{kept}"')
    assert warnings == [
        f'cannot drop database "{kept}": cannot drop a template database; it holds part of what was restored: drop it'
    ]


@pytest.mark.usefixtures("unchanged")
def test_existing_database_is_refused(sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path) -> None:
    """A database that exists and holds something is not touched unless that is asked for."""
    with pytest.raises(RestoreRefused) as failure:
        restore_cluster(sampled, backups["custom"], bin_dir=bin_dir)
    assert str(failure.value) == 'database "app" exists and is not empty'
    assert failure.value.hint == "overwrite_existing=yes renames it first; new_database restores beside it"


@pytest.mark.usefixtures("unchanged")
def test_database_in_use_is_refused(sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path) -> None:
    """A database that somebody is connected to cannot be renamed, which the plan says before the first byte."""
    with sampled.connect("app", application_name="stays") as session:
        pid = session.info.backend_pid
        with pytest.raises(RestoreRefused) as failure:
            restore_cluster(sampled, backups["custom"], bin_dir=bin_dir, overwrite_existing=True)
    assert str(failure.value) == f'database "app" is in use by session {pid} (postgres, stays)'


def test_who_leaves_or_can_be_ended_keeps_no_database(make_cluster: MakeCluster, bin_dir: Path) -> None:
    """A session on its way out is waited for, autovacuum's worker ends by itself; a prepared transaction stays."""
    cluster = make_cluster(
        start=False,
        settings={
            "max_prepared_transactions": "2",
            "autovacuum_naptime": "1s",
            "autovacuum_vacuum_cost_delay": "100ms",
            "autovacuum_vacuum_cost_limit": "1",
        },
    ).start()
    cluster.sql("CREATE DATABASE app")
    cluster.sql(
        "CREATE TABLE item AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 20000) AS n", dbname="app"
    )
    backup = dump_cluster(cluster, bin_dir=bin_dir, databases=["app"])
    with cluster.connect("app") as session:
        session.execute("BEGIN")
        session.execute("DELETE FROM item WHERE n = 1")
        session.execute("PREPARE TRANSACTION 'for ever'")
    with pytest.raises(RestoreRefused) as failure:
        restore_cluster(cluster, backup, bin_dir=bin_dir, overwrite_existing=True)
    assert str(failure.value) == 'database "app" is in use by prepared transaction "for ever"'
    cluster.sql("ROLLBACK PREPARED 'for ever'", dbname="app")

    cluster.sql("DELETE FROM item WHERE n % 2 = 0", dbname="app")
    workers = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'app' AND backend_type = 'autovacuum worker'"
    wait_for(lambda: bool(cluster.value(workers)), "autovacuum is at work")
    leaving = cluster.connect("app")
    last = threading.Timer(1, leaving.close)
    last.start()
    restore_cluster(cluster, backup, bin_dir=bin_dir, overwrite_existing=True)
    last.join()
    assert cluster.value("SELECT count(*) FROM item", dbname="app") == 20000


def test_database_taken_meanwhile(sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path) -> None:
    """When the name is taken while the restore runs, the restored content is kept under its temporary name."""
    backup = backups["custom"]
    assert backup.head is not None
    options = DumpRestoreOptions(databases=("app",), new_database="new", bin_dir=bin_dir)
    with Server.open(target_of(sampled)) as server:
        plan = plan_restore(backup.head, options, server=server, warn=pytest.fail)
        sampled.sql("CREATE DATABASE new")
        with pytest.raises(ServerError) as failure:
            restore(plan, backup.supply, server=server, say=lambda _: None, warn=pytest.fail)
    [(kept,)] = sampled.sql("SELECT datname FROM pg_database WHERE datname LIKE 'pgkeep%%'")
    try:
        assert str(failure.value) == f'cannot rename database "{kept}" to "new": database "new" already exists'
        assert failure.value.hint == f'database "{kept}" holds the restored content: rename or drop it'
        assert digests(sampled, kept) == digests(sampled, "app")
    finally:
        sampled.sql("DROP DATABASE new")
        sampled.sql(f'DROP DATABASE "{kept}"')


@pytest.mark.usefixtures("unchanged")
def test_a_format_of_another_version_is_refused(sampled: Cluster, bin_dir: Path) -> None:
    """Dumps in a format that this version does not know are refused before anything is made."""
    backup = dump_cluster(sampled, bin_dir=bin_dir, databases=["postgres"], include_globals=False)
    assert backup.head is not None
    backup.head.details["format"] = "parallel-3"
    with pytest.raises(BackupUnusable) as failure:
        restore_cluster(sampled, backup, bin_dir=bin_dir, new_database="new")
    assert str(failure.value) == (
        "backup 20261120T204800Z-F has dumps in format parallel-3, expected custom, directory, parallel, parallel-2, "
        "plain, tar"
    )


@pytest.mark.usefixtures("unchanged")
def test_contradicting_options(sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path) -> None:
    """What cannot be meant is refused by the plan."""
    two = dump_cluster(sampled, bin_dir=bin_dir, databases=["app", "postgres"], include_globals=False)
    with pytest.raises(UsageError) as failure:
        restore_cluster(sampled, two, bin_dir=bin_dir, new_database="new")
    assert str(failure.value) == 'new_database "new" needs one database, found 2: app, postgres'
    with pytest.raises(UsageError) as failure:
        restore_cluster(sampled, two, bin_dir=bin_dir, databases=("app",), new_database="new", include_globals=True)
    assert str(failure.value) == "backup 20261120T204800Z-F has no globals"


@pytest.mark.usefixtures("unchanged")
def test_missing_role(sampled: Cluster, bin_dir: Path) -> None:
    """An owner that does not exist on the server ends the restore with the server's own words."""
    sampled.sql("CREATE ROLE gone")
    sampled.sql("CREATE DATABASE theirs")
    sampled.sql("CREATE TABLE t (a int); ALTER TABLE t OWNER TO gone", dbname="theirs")
    backup = dump_cluster(sampled, bin_dir=bin_dir, databases=["theirs"], include_globals=False)
    sampled.sql("DROP DATABASE theirs")
    sampled.sql("DROP ROLE gone")
    with pytest.raises(ToolError) as failure:
        restore_cluster(sampled, backup, bin_dir=bin_dir)
    assert str(failure.value) == (
        'pg_restore of database "theirs" ended with status 1: could not execute query: '
        'ERROR:  role "gone" does not exist'
    )
    assert failure.value.hint == "restore the globals first, or create the role"


@pytest.mark.usefixtures("unchanged")
def test_tmpdir_is_too_small(sampled: Cluster, backups: dict[str, MemoryBackup], bin_dir: Path) -> None:
    """A directory dump that does not fit into tmpdir is refused, and nothing stays there."""
    with small_filesystem(1) as tmpdir:
        (tmpdir / "other").write_bytes(bytes(900 << 10))
        with pytest.raises(
            PgkeepError, match=r"^tmpdir .* has [\d.]+ KiB free, expected [\d.]+ KiB for staging the dump of"
        ):
            restore_cluster(
                sampled, backups["directory"], bin_dir=bin_dir, databases=("app",), new_database="new", tmpdir=tmpdir
            )
        assert [path.name for path in tmpdir.iterdir() if path.name != ".mounted"] == ["other"]


@pytest.mark.pg("<17")
@pytest.mark.parametrize("dump_format", DumpFormat, ids=lambda one: one.value)
def test_newer_tools_on_an_older_server(
    sampled: Cluster,
    backups: dict[str, MemoryBackup],
    sample_digests: dict[str, str],
    tmp_path: Path,
    dump_format: DumpFormat,
) -> None:
    """The one statement of newer tools that an older server does not know is no failure; a real one still is."""
    backup = backups[dump_format.value]
    bin_dir = newest_installation().bin_dir
    _, _, warned = restore_cluster(
        sampled, backup, bin_dir=bin_dir, databases=("app",), new_database="new", tmpdir=tmp_path, jobs=2
    )
    try:
        assert warned == []
        assert digests(sampled, "new") == sample_digests
    finally:
        sampled.sql("DROP DATABASE new")


@pytest.mark.pg("<17")
@pytest.mark.usefixtures("unchanged")
def test_newer_tools_still_report_real_errors(sampled: Cluster, backups: dict[str, MemoryBackup]) -> None:
    """With newer tools on an older server a real error beside the harmless one fails the restore."""
    bin_dir = newest_installation().bin_dir
    backup = damaged(
        backups["custom"],
        f"{PATH}.dump",
        lambda data: data.replace(b"CREATE VIEW public.rich", b"CREATE VIEW public.ri/h"),
    )
    with pytest.raises(ToolError) as failure:
        restore_cluster(sampled, backup, bin_dir=bin_dir, databases=("app",), new_database="new")
    assert str(failure.value) == (
        'pg_restore of database "new" ended with status 1: could not execute query: ERROR:  syntax error at or near "/"'
    )


def test_tablespace_that_cannot_be_made(
    sampled: Cluster, bin_dir: Path, make_cluster: MakeCluster, lab_directory: Path
) -> None:
    """Globals that the new server refuses are an error that names the first, and what exists is only counted."""
    (lab_directory / "space").mkdir()
    server_user().own(lab_directory / "space")
    source = make_cluster("source", major=sampled.major)
    source.sql(f"CREATE TABLESPACE space LOCATION '{lab_directory}/space'")
    backup = dump_cluster(source, bin_dir=bin_dir, databases=["postgres"])
    target = make_cluster("target", major=sampled.major)
    (lab_directory / "space").rename(lab_directory / "gone")
    with pytest.raises(ToolError) as failure:
        restore_cluster(target, backup, bin_dir=bin_dir, include_globals=True)
    assert str(failure.value) == f'psql with the globals failed: directory "{lab_directory}/space" does not exist'
