"""What goes wrong while a dump is made, and what the job then says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from pgkeep.errors import PgkeepError, ServerError, SettingsError, ToolError
from pgkeep.modes.dump import DumpMode
from pgkeep.modes.dump_plan import DumpOptions
from pgkeep.server.connection import Server
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.streams.compression import Compression
from pgkeep.streams.item import Buffer, StreamedItem
from pgkeep.streams.record import Level
from tests.dump.sample import (
    MemoryBackup,
    NoHistory,
    digests,
    dump,
    dump_cluster,
    make_sample,
    plan_dump,
    request_for,
    restore_cluster,
    target_of,
)
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.ledger import fill
from tests.lab.proxy import Proxy
from tests.lab.servers import newest_installation
from tests.lab.smallfs import small_filesystem

ALL = '"app", "large", "postgres", "template0", "template1", "we/ird "näme""'
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgkeep pg_dump' AND wait_event_type = 'Lock'"


def children(name: str) -> list[int]:
    """Return the ids of this process's children that run program *name*."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            if os.path.basename(words[0]).decode() == name:
                found.append(int(pid))
    return found


def sessions(cluster: Cluster) -> list[str]:
    """Return the application names of pgkeep's sessions."""
    return [
        row[0]
        for row in cluster.sql("SELECT application_name FROM pg_stat_activity WHERE application_name ~ '^pgkeep'")
    ]


@pytest.fixture(scope="module")
def large(sampled: Cluster) -> Iterator[str]:
    """A database whose dump is larger than what pipes and buffers between us and the server hold."""
    sampled.sql("CREATE DATABASE large")
    with sampled.connect("large") as connection:
        fill(connection, "filler", size_mb=30)
    yield "large"
    sampled.sql("DROP DATABASE large")


def spoil_in_the_middle(
    server: Server, options: DumpOptions, spoil: Callable[[], None], backup: MemoryBackup | None = None
) -> None:
    """Read the first chunk of a dump, call *spoil*, and read on."""
    plan = plan_dump(server, options, backup)
    with DumpMode().open(plan, server=server) as source:
        for item in source.items():
            assert not hasattr(item, "read_extent")
            read_and_spoil(item, spoil)  # type: ignore[arg-type]  # a dump has no unchanged items


def read_and_spoil(item: StreamedItem, spoil: Callable[[], None]) -> None:
    """Read one chunk, spoil, and read the rest."""
    chunks: Iterator[Buffer] = item.chunks()
    assert len(next(chunks)) > 0
    spoil()
    for _ in chunks:
        pass


def test_pg_dump_is_killed(sampled: Cluster, large: str, bin_dir: Path) -> None:
    """A pg_dump killed in the middle ends the job, although the bytes before look fine."""
    options = DumpOptions(databases=(large,), include_globals=False, bin_dir=bin_dir)
    with Server.open(target_of(sampled)) as server, pytest.raises(ToolError) as failure:
        spoil_in_the_middle(server, options, lambda: os.kill(children("pg_dump")[0], signal.SIGKILL))
    assert str(failure.value) == 'pg_dump of database "large" was ended by signal 9 (SIGKILL)'


def test_server_session_is_ended(sampled: Cluster, large: str, bin_dir: Path) -> None:
    """A session ended by an administrator in the middle ends the job with the server's own words."""
    options = DumpOptions(
        databases=(large,),
        include_globals=False,
        format=DumpFormat.PLAIN,
        compression=Compression.ZSTD,
        bin_dir=bin_dir,
    )

    def spoil() -> None:
        sampled.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgkeep pg_dump'")

    with Server.open(target_of(sampled)) as server, pytest.raises(ToolError) as failure:
        spoil_in_the_middle(server, options, spoil)
    assert str(failure.value).startswith('pg_dump of database "large" ended with status 1: ')
    assert str(failure.value).endswith(("(server closed the connection unexpectedly)", "administrator command)"))


def test_server_dies(make_cluster: MakeCluster, bin_dir: Path, major: int) -> None:
    """A server that dies in the middle ends the job, and no child is left."""
    cluster = make_cluster()
    with cluster.connect() as connection:
        fill(connection, "filler", size_mb=30)
    options = DumpOptions(databases=("postgres",), include_globals=False, bin_dir=bin_dir)
    with Server.open(target_of(cluster)) as server, pytest.raises(ToolError, match="ended with status 1"):
        spoil_in_the_middle(server, options, cluster.kill)
    assert children("pg_dump") == []


def test_connection_is_cut(sampled: Cluster, large: str, bin_dir: Path) -> None:
    """A cut connection ends the job."""
    options = DumpOptions(databases=(large,), include_globals=False, bin_dir=bin_dir)
    with Proxy(("127.0.0.1", sampled.port)) as proxy:
        target = target_of(sampled, host="127.0.0.1", port=proxy.port)
        with Server.open(target) as server, pytest.raises(ToolError, match='pg_dump of database "large" ended'):
            spoil_in_the_middle(server, options, proxy.cut)
    wait_for(lambda: sessions(sampled) == [], "no session of pgkeep is left")


def test_job_is_left_in_the_middle(sampled: Cluster, large: str, bin_dir: Path) -> None:
    """A sink that fails in the middle leaves no child and no session."""
    options = DumpOptions(databases=(large,), include_globals=False, bin_dir=bin_dir)

    def spoil() -> None:
        assert children("pg_dump")
        raise KeyboardInterrupt

    with Server.open(target_of(sampled)) as server, pytest.raises(KeyboardInterrupt):
        spoil_in_the_middle(server, options, spoil)
    assert children("pg_dump") == []
    wait_for(lambda: sessions(sampled) == [], "no session of pgkeep is left")


_KILLED = """
import sys
from pathlib import Path
from pgkeep.modes.dump_plan import DumpOptions
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.server.pg_dump import DumpFormat
from tests.dump.sample import dump
host, port, format, bin_dir, tmpdir = sys.argv[1:]
with Server.open(ConnectionTarget(host=host, port=int(port), user="postgres", dbname="postgres")) as server:
    dump(server, DumpOptions(databases=("large",), include_globals=False, format=DumpFormat(format),
                             bin_dir=Path(bin_dir), tmpdir=Path(tmpdir), lock_wait_timeout_seconds=60))
"""


@pytest.mark.parametrize("dump_format", ["custom", "directory"])
def test_pgkeep_is_killed(sampled: Cluster, large: str, bin_dir: Path, tmp_path: Path, dump_format: str) -> None:
    """After kill -9 no session stays, even one that waited for a lock, and the next job removes what was staged."""
    with sampled.connect(large) as blocker:
        blocker.execute("BEGIN; LOCK TABLE filler IN ACCESS EXCLUSIVE MODE")
        arguments = [str(sampled.socket_directory), str(sampled.port), dump_format, str(bin_dir), str(tmp_path)]
        job = subprocess.Popen([sys.executable, "-c", _KILLED, *arguments])
        wait_for(lambda: bool(sampled.value(WAITING)), "pg_dump waits for the lock")
        job.kill()
        job.wait()
        wait_for(lambda: sessions(sampled) == [], "no session of pgkeep is left")
    left = list(tmp_path.iterdir())
    assert len(left) == (dump_format == "directory")
    dump_cluster(sampled, bin_dir=bin_dir, databases=["app"], format=DumpFormat.DIRECTORY, tmpdir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dump_format", [DumpFormat.CUSTOM, DumpFormat.DIRECTORY], ids=lambda one: one.value)
def test_lock_is_not_given(sampled: Cluster, bin_dir: Path, tmp_path: Path, dump_format: DumpFormat) -> None:
    """A table that somebody holds locked ends the dump after the time-out, and the hint names who it is."""
    options = DumpOptions(
        databases=("app",),
        include_globals=False,
        format=dump_format,
        lock_wait_timeout_seconds=0.2,
        bin_dir=bin_dir,
        tmpdir=tmp_path,
    )
    with sampled.connect("app", application_name="the blocker") as blocker, Server.open(target_of(sampled)) as server:
        blocker.execute("BEGIN; LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ToolError) as failure:
            dump(server, options)
        pid = blocker.info.backend_pid
    assert str(failure.value) == 'pg_dump of database "app" did not get its lock on a table within 0.2 s'
    assert failure.value.hint == (
        f"session {pid} (postgres, the blocker) holds an exclusive lock on public.account; "
        "raise lock_wait_timeout or run the job at another time"
    )
    assert list(tmp_path.iterdir()) == []


def test_tmpdir_is_too_small(sampled: Cluster, large: str, bin_dir: Path) -> None:
    """A directory dump that cannot fit is refused before the first byte."""
    with small_filesystem(4) as tmpdir, Server.open(target_of(sampled)) as server:
        options = DumpOptions(databases=("app", large), format=DumpFormat.DIRECTORY, bin_dir=bin_dir, tmpdir=tmpdir)
        with pytest.raises(SettingsError) as failure:
            plan_dump(server, options)
        size = server.value("SELECT pg_database_size('large')") / 1024**2
        assert str(failure.value) == (
            f'tmpdir {tmpdir} has 4.0 MiB free, expected {size:.1f} MiB for staging database "large"'
        )
        assert failure.value.hint.startswith("point tmpdir at a larger file system")


def test_tmpdir_fills_up(sampled: Cluster, bin_dir: Path) -> None:
    """A dump that is larger than its database ends with a clear error when tmpdir is full, and leaves nothing there."""
    sampled.sql("CREATE DATABASE dense")
    try:
        with sampled.connect("dense") as connection:
            connection.execute("CREATE TABLE d AS SELECT repeat('dense', 1000000) AS text FROM generate_series(1, 12)")
        with small_filesystem(32) as tmpdir, Server.open(target_of(sampled)) as server:
            options = DumpOptions(
                databases=("dense",),
                include_globals=False,
                format=DumpFormat.DIRECTORY,
                bin_dir=bin_dir,
                tmpdir=tmpdir,
            )
            with pytest.raises(ToolError) as failure:
                dump(server, options)
            assert "No space left on device" in str(failure.value)
            assert failure.value.hint == "free space, or point tmpdir at a larger file system"
            assert [path for path in tmpdir.iterdir() if path.name != ".mounted"] == []
    finally:
        sampled.sql("DROP DATABASE dense")


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            DumpOptions(databases=("ap",)),
            f'database "ap" does not exist: the server has {ALL}',
            'did you mean "app"?',
        ),
        (
            DumpOptions(databases=("a*",), excluded=("ap?",)),
            f"no database is left to dump: the server has {ALL}",
            "look at the settings database and exclude_database",
        ),
        (
            DumpOptions(databases=("template0",)),
            'cannot dump database "template0": it does not accept connections',
            "",
        ),
        (
            DumpOptions(extra=("--format=plain",)),
            'dump_options: "--format=plain" is pg_dump\'s --format, which pgkeep sets itself',
            "use pgkeep's own setting for it",
        ),
        (
            DumpOptions(compression=Compression.LZ4, compression_level=13),
            "compression level out of range for lz4: expected 1 to 12, found 13",
            "",
        ),
    ],
    ids=["unknown name", "nothing left", "not connectable", "contradicting option", "level"],
)
@pytest.mark.usefixtures("large")
def test_refused_before_the_first_byte(
    sampled: Cluster, bin_dir: Path, options: DumpOptions, message: str, hint: str
) -> None:
    """What cannot be dumped as asked is refused by the plan, with the whole reason."""
    with Server.open(target_of(sampled)) as server, pytest.raises(PgkeepError) as failure:
        plan_dump(server, replace(options, bin_dir=bin_dir))
    assert (str(failure.value), failure.value.hint) == (message, hint)


def test_filters_that_match_nothing_are_told(sampled: Cluster, bin_dir: Path) -> None:
    """Patterns choose databases, and those that match nothing are warned of."""
    backup = MemoryBackup()
    options = DumpOptions(databases=("a*", "x?"), excluded=("gone", "we/*"), bin_dir=bin_dir, include_globals=False)
    with Server.open(target_of(sampled)) as server:
        plan = plan_dump(server, options, backup)
    assert [database.name for database in plan.databases] == ["app"]
    assert backup.warned == ['no database matches "x?"', 'exclude_database: no database matches "gone"']


def test_database_that_accepts_no_connections(sampled: Cluster, bin_dir: Path) -> None:
    """A database that accepts no connections is left out with a warning."""
    sampled.sql("CREATE DATABASE closed ALLOW_CONNECTIONS false")
    backup = MemoryBackup()
    try:
        with Server.open(target_of(sampled)) as server:
            plan = plan_dump(server, DumpOptions(bin_dir=bin_dir), backup)
    finally:
        sampled.sql("DROP DATABASE closed")
    assert "closed" not in [database.name for database in plan.databases]
    assert backup.warned == ['database "closed" is not in this backup: it does not accept connections']


def test_database_is_dropped_meanwhile(sampled: Cluster, bin_dir: Path) -> None:
    """A database dropped between the plan and its turn is warned of and not in the record."""
    sampled.sql("CREATE DATABASE doomed")
    backup = MemoryBackup()
    options = DumpOptions(databases=("app", "doomed"), include_globals=False, bin_dir=bin_dir)
    with Server.open(target_of(sampled)) as server:
        plan = plan_dump(server, options, backup)
        sampled.sql("DROP DATABASE doomed")
        with DumpMode().open(plan, server=server) as source:
            for item in source.items():
                backup.accept(item)
            head = source.finish()
    assert [database.name for database in head.databases] == ["app"]
    assert backup.warned == ['database "doomed" was dropped before it was dumped']


def test_other_levels_are_fulls(sampled: Cluster, bin_dir: Path) -> None:
    """An Incremental is made as a Full, and the plan says so."""
    request = request_for(DumpOptions(databases=("app",), bin_dir=bin_dir), MemoryBackup(), level=Level.INCREMENTAL)
    with Server.open(target_of(sampled)) as server:
        plan = DumpMode().plan(request, server=server, history=NoHistory())
    assert (plan.level, plan.reason) == (Level.FULL, "mode dump has no Incremental: this is a Full")
    assert plan.backup_id == "20261120T204800Z-F"


@pytest.mark.pg("==15")
def test_foreign_pg_dump_would_write_internal_options(sampled: Cluster) -> None:
    """A newer major's pg_dump is refused where the catalog holds column options that it would put into the DDL."""
    newest = newest_installation()
    column = "WHERE attrelid = 'public.account'::regclass AND attname = 'id'"
    # A minor release before 15.20 has no such options of its own, and would copy this one into a dump.
    [(before,)] = sampled.sql(f"SELECT attoptions::text FROM pg_attribute {column}", dbname="app")
    sampled.sql(f"UPDATE pg_attribute SET attoptions = coalesce(attoptions, '{{pg_attver=1}}') {column}", dbname="app")
    try:
        with Server.open(target_of(sampled)) as server, pytest.raises(ToolError) as failure:
            plan_dump(server, DumpOptions(databases=("app",), bin_dir=newest.bin_dir))
    finally:
        sampled.sql(f"UPDATE pg_attribute SET attoptions = %s::text[] {column}", [before], dbname="app")
    assert str(failure.value) == (
        f"pg_dump {newest.version} does not fit server {sampled.installation.version}: it would write the internal "
        'option "pg_attver" of public.account.id in database "app" into the dump, which no restore accepts'
    )
    assert failure.value.hint == (
        f"install the client programs of PostgreSQL 15, {sampled.installation.version} or newer"
    )


def test_dump_from_a_standby(
    make_cluster: MakeCluster, bin_dir: Path, tmp_path: Path, lab_directory: Path, major: int
) -> None:
    """A standby is dumped like a primary, in parallel too."""
    primary = make_cluster("primary")
    make_sample(primary, "app")
    with primary.create_standby(lab_directory / "standby") as standby:
        standby.start()
        standby.wait_for_replay(str(primary.value("SELECT pg_current_wal_flush_lsn()")))
        backup = dump_cluster(
            standby, bin_dir=bin_dir, databases=["app"], format=DumpFormat.DIRECTORY, jobs=2, tmpdir=tmp_path
        )
    restore_cluster(primary, backup, bin_dir=bin_dir, new_database="copy", tmpdir=tmp_path, jobs=2)
    assert digests(primary, "copy") == digests(primary, "app")


def test_password_stays_out_of_sight(make_cluster: MakeCluster, bin_dir: Path, major: int) -> None:
    """Neither arguments nor environment of a child hold the password, and its password file is in memory."""
    cluster = make_cluster()
    secret = r"ge:heim \ words "
    with cluster.connect() as connection:
        connection.execute(psycopg.sql.SQL("CREATE ROLE bob SUPERUSER LOGIN PASSWORD {}").format(secret))
        fill(connection, "filler", size_mb=30)
    cluster.set_hba("host all all 127.0.0.1/32 scram-sha-256\n" if major >= 14 else "host all all 127.0.0.1/32 md5\n")
    seen: list[str] = []

    def look() -> None:
        [pid] = children("pg_dump")
        environment = Path("/proc", str(pid), "environ").read_bytes()
        arguments = Path("/proc", str(pid), "cmdline").read_bytes()
        assert b"heim" not in environment + arguments
        [passfile] = [word[11:] for word in environment.split(b"\0") if word.startswith(b"PGPASSFILE=")]
        inherited = Path("/proc", str(pid), "fd", Path(passfile.decode()).name)
        assert inherited.stat().st_mode & 0o777 == 0o600
        seen.append(os.readlink(inherited))

    def can_log_in() -> bool:
        try:
            with Server.open(target) as server:
                return bool(server.value("SELECT true"))
        except ServerError:
            return False

    target = target_of(cluster, host="127.0.0.1", user="bob", password=secret)
    wait_for(can_log_in, "pg_hba.conf is read")
    options = DumpOptions(databases=("postgres",), include_globals=False, bin_dir=bin_dir)
    with Server.open(target) as server:
        spoil_in_the_middle(server, options, look)
    assert seen == ["/memfd:pgpass (deleted)"]
