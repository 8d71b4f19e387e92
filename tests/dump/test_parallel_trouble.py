"""What must not spoil a parallel dump, or its restore; and what must end it, with which words."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pgkeep.errors import BackupUnusable, PgkeepError, ServerError
from pgkeep.modes.parallel_dump import ParallelDumpMode
from pgkeep.pg.grants import grants
from pgkeep.server.connection import Server
from pgkeep.server.dump_snapshot import DumpSnapshot, check_no_pooler
from pgkeep.server.table_facts import list_tables
from tests.dump.fake_pooler import FakePooler
from tests.dump.parallel import ROOT, make_large, options_for, parallel_dump, parallel_dump_of, plan_parallel
from tests.dump.sample import MemoryBackup, digests, restore_cluster, target_of
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.ledger import Ledger, check_ledger

LEDGER = f"{ROOT}/large.parts/tables/public.ledger"
NEWEST = pytest.mark.pg(">=18")


def test_writers_never_unbalance_it(cluster: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """While money moves, what is dumped is one moment: rows move between ranges, and the ledger balances."""
    cluster.sql("CREATE DATABASE bank")
    ledger = Ledger(cluster, dbname="bank", accounts=2000)
    ledger.transfer(2000)
    with ledger.load() as load:
        load.wait_for(20)
        backup = parallel_dump_of(cluster, "bank", bin_dir=bin_dir)
        load.wait_for(20)
    chunks = [path for path in backup.files if "/tables/public.ledger_account/" in path]
    assert len(chunks) > 3
    restore_cluster(cluster, backup, bin_dir=bin_dir, new_database="then", databases=("bank",), tmpdir=tmp_path)
    with cluster.connect("then") as connection:
        assert check_ledger(connection) > 2000


def test_stale_statistics_lose_no_row(cluster: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """Keys far beyond the histogram, negative, repeated and NaN ones are all in one range or another."""
    cluster.sql("CREATE DATABASE stale")
    with cluster.connect("stale") as connection:
        connection.execute("CREATE TABLE a (id numeric, n int, v text, PRIMARY KEY (id, n))")
        insert = "INSERT INTO a SELECT {}, g, repeat('v', 90) FROM generate_series({}, {}) g"
        connection.execute(insert.format("g / 7.0", 1, 2000).encode())
        connection.execute("ANALYZE a")
        connection.execute("ALTER TABLE a SET (autovacuum_enabled = off)")
        connection.execute(insert.format("g * -1e15", 3000, 5000).encode())
        connection.execute(insert.format("g * 1e15", 5001, 7000).encode())
        connection.execute(insert.format("'NaN'", 8000, 8100).encode())
        connection.execute(insert.format("42", 9000, 12000).encode())
        connection.execute("CREATE TABLE b (id bigint PRIMARY KEY, v text)")
        connection.execute("ALTER TABLE b SET (autovacuum_enabled = off)")
        rows = "SELECT g * 1000003 - 3000000000, repeat('v', 90) FROM generate_series(1::bigint, 5000) g"
        connection.execute(f"INSERT INTO b {rows}".encode())
    backup = parallel_dump_of(cluster, "stale", bin_dir=bin_dir)
    divided = [line for line in backup.said if "ranges" in line]
    assert len(divided) == 2, backup.said
    by = "by ctid" if cluster.major >= 14 else "by key id, bounds from its statistics"
    assert by in divided[0]
    restore_cluster(cluster, backup, bin_dir=bin_dir, databases=("stale",), new_database="now", tmpdir=tmp_path)
    assert digests(cluster, "now") == digests(cluster, "stale")


@NEWEST
def test_a_waiting_alter_never_hangs_it(large: Cluster) -> None:
    """Once an ALTER waits for the coordinator, a worker does not queue behind it, and the hint names who waits."""
    with Server.open(target_of(large)) as server, large.connect("large", application_name="the alterer") as other:
        tables = lambda session: list_tables(session, least_bytes=1 << 16, at_most=99, with_keys=False)  # noqa: E731
        snapshot = DumpSnapshot(server, "large", list_tables=tables, lock_wait_timeout_seconds=600)
        with contextlib.closing(snapshot):
            snapshot.importer().close()
            pid = other.info.backend_pid

            def alter() -> None:
                with contextlib.suppress(Exception):
                    other.execute("ALTER TABLE ledger ADD COLUMN late int")

            thread = threading.Thread(target=alter)
            thread.start()
            wait_for(lambda: large.value("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1, "the ALTER waits")
            begin = time.monotonic()
            with pytest.raises(ServerError) as failure:
                snapshot.importer()
            assert time.monotonic() - begin < 300
            large.sql("SELECT pg_cancel_backend(%s)", [pid])
            thread.join()
    assert failure.value.message == 'a table of database "large" is to be locked exclusively by another session'
    assert failure.value.hint == (
        f"session {pid} (postgres, the alterer) waits for an exclusive lock on public.ledger; "
        "run the job at another time"
    )


@NEWEST
def test_a_lock_that_is_not_given(large: Cluster, bin_dir: Path) -> None:
    """A table that somebody holds locked ends the job after the time-out, and the hint names who it is."""
    with large.connect("large", application_name="the blocker") as blocker, Server.open(target_of(large)) as server:
        blocker.execute("BEGIN; LOCK TABLE kinds IN ACCESS EXCLUSIVE MODE")
        options = options_for(bin_dir, databases=("large",), lock_wait_timeout_seconds=0.3)
        with pytest.raises(ServerError) as failure:
            parallel_dump(server, options)
        pid = blocker.info.backend_pid
    assert failure.value.message == 'no lock on a table of database "large" within 0.3 s'
    assert failure.value.hint == (
        f"session {pid} (postgres, the blocker) holds an exclusive lock on public.kinds; "
        "raise lock_wait_timeout or run the job at another time"
    )


@NEWEST
def test_hidden_rows_are_refused(sampled: Cluster, bin_dir: Path) -> None:
    """A role from which row level security hides rows is refused before the first byte."""
    sampled.sql("CREATE ROLE reader LOGIN; GRANT pg_read_all_data TO reader")
    try:
        with Server.open(target_of(sampled, user="reader")) as server, pytest.raises(ServerError) as failure:
            plan_parallel(server, options_for(bin_dir, databases=("app",), include_globals=False), MemoryBackup())
    finally:
        sampled.sql("DROP ROLE reader")
    assert failure.value.message == (
        'row level security hides rows of public.secret in database "app" from role "reader"'
    )
    assert failure.value.hint == 'give the role BYPASSRLS: run "pgkeep grants --mode parallel_dump"'


@NEWEST
def test_a_pooler_is_refused(large: Cluster) -> None:
    """A connection whose server process is not the one that was promised is refused."""
    with (
        FakePooler(large.port) as pooler,
        Server.open(target_of(large, host="127.0.0.1", port=pooler.port)) as server,
        pytest.raises(ServerError, match="goes through a pooler: the server process is"),
    ):
        check_no_pooler(server.sql, where=server.where)
    with Server.open(target_of(large)) as server:
        check_no_pooler(server.sql, where=server.where)


@NEWEST
def test_dump_from_a_standby(make_cluster: MakeCluster, bin_dir: Path, tmp_path: Path, lab_directory: Path) -> None:
    """A standby is dumped like a primary, but for unlogged tables, of which it has nothing."""
    primary = make_cluster("primary")
    make_large(primary, "large")
    with primary.create_standby(lab_directory / "standby") as standby:
        standby.start()
        standby.wait_for_replay(str(primary.value("SELECT pg_current_wal_flush_lsn()")))
        with Server.open(target_of(standby)) as server:
            backup = parallel_dump(server, options_for(bin_dir, databases=("large",)))
    assert backup.warned == ["the server is a standby: rows of unlogged tables are not in this backup"]
    restore_cluster(primary, backup, bin_dir=bin_dir, new_database="copy", tmpdir=tmp_path)
    expected = digests(primary, "large") | {"public.volatile": "(0, None)"}
    assert digests(primary, "copy") == expected


@NEWEST
def test_databases_and_ranges_at_once(large: Cluster, bin_dir: Path) -> None:
    """Two databases are held at once, several sessions copy, and a sink that waits keeps chunks few."""
    large.sql("CREATE DATABASE second TEMPLATE large")
    options = options_for(bin_dir, databases=("large", "second"), workers=4, include_globals=False)
    try:
        with Server.open(target_of(large)) as server:
            backup = MemoryBackup()
            plan = plan_parallel(server, options, backup)
            with ParallelDumpMode().open(plan, server=server) as source:
                items = source.items()
                for item in items:
                    backup.accept(item)
                    if "/tables/" in item.header.path:
                        break
                outbox = source._outbox
                wait_for(lambda: not outbox._permits, "every chunk that may be is there")
                at_once = large.sql(
                    "SELECT count(DISTINCT datname), count(*) FROM pg_stat_activity "
                    "WHERE datname IN ('large', 'second') AND application_name LIKE 'pgkeep%%'"
                )
                assert at_once[0][0] == 2
                assert at_once[0][1] >= 4
                held = sum(len(parts) for parts in outbox._held.values())
                assert len(outbox._ready) + held <= plan.workers + 1 + 4
                for item in items:
                    backup.accept(item)
                backup.head = source.finish()
        assert {database.name for database in backup.head.databases} == {"large", "second"}
    finally:
        wait_for(lambda: _sessions(large, "second") == 0, "the sessions are gone")
        large.sql("DROP DATABASE second")


def _sessions(cluster: Cluster, dbname: str) -> int:
    return int(cluster.value("SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [dbname]))


@NEWEST
def test_a_job_that_ends_early_leaves_nothing(large: Cluster, bin_dir: Path) -> None:
    """A sink that fails in the middle leaves no session and no child."""
    with Server.open(target_of(large)) as server:
        plan = plan_parallel(server, options_for(bin_dir, databases=("large",)), MemoryBackup())
        with ParallelDumpMode().open(plan, server=server) as source:
            for number, item in enumerate(source.items()):
                MemoryBackup().accept(item)
                if number == 8:
                    break
        wait_for(lambda: _sessions(large, "large") == 0, "no session is left")


@NEWEST
def test_a_worker_whose_session_is_ended_ends_the_job(large: Cluster, bin_dir: Path) -> None:
    """When the server ends the session that holds the snapshot, the job fails instead of going on without it."""
    with Server.open(target_of(large)) as server:
        plan = plan_parallel(server, options_for(bin_dir, databases=("large",), workers=2), MemoryBackup())

        def run() -> None:
            with ParallelDumpMode().open(plan, server=server) as source:
                for item in source.items():
                    MemoryBackup().accept(item)
                    large.sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = 'large' AND query ~ 'row_security_active|convert_to'"
                    )

        with pytest.raises(ServerError):
            run()


def _lose(backup: MemoryBackup, path: str) -> None:
    del backup.headers[path]


def _lose_last_chunk(backup: MemoryBackup) -> None:
    _lose(backup, max(path for path in backup.files if path.startswith(LEDGER)))


def _lose_piece(backup: MemoryBackup) -> None:
    _lose(backup, max(path for path in backup.files if "/data/" in path))


def _lose_count(backup: MemoryBackup) -> None:
    _lose(backup, f"{ROOT}/large.parts/complete.json")


def _lose_tables(backup: MemoryBackup) -> None:
    _lose(backup, f"{ROOT}/large.parts/tables.json")


def _add(backup: MemoryBackup, path: str, like: str) -> None:
    backup.headers[path] = dataclasses.replace(backup.headers[like], path=path)
    backup.content[path] = backup.content[like]


def _add_chunk(backup: MemoryBackup) -> None:
    _add(backup, f"{LEDGER}/000999.copy", f"{LEDGER}/000001.copy")


def _add_table(backup: MemoryBackup) -> None:
    _add(backup, f"{ROOT}/large.parts/tables/public.other/000001.copy", f"{LEDGER}/000001.copy")


def _shorten(backup: MemoryBackup) -> None:
    path = f"{LEDGER}/000001.copy"
    backup.content[path] = backup.content[path].partition(b"\n")[2]


def _break_a_row(backup: MemoryBackup) -> None:
    path = f"{LEDGER}/000001.copy"
    backup.content[path] = b"x" + backup.content[path]


def _garble_tables(backup: MemoryBackup) -> None:
    backup.content[f"{ROOT}/large.parts/tables.json"] = b"{"


def _other_column(backup: MemoryBackup) -> None:
    path = f"{ROOT}/large.parts/tables.json"
    described = json.loads(backup.content[path])
    described["tables"][0]["columns"][0] = "nobody"
    backup.content[path] = json.dumps(described).encode()


DAMAGE: list[tuple[Callable[[MemoryBackup], None], type[PgkeepError], str]] = [
    (_lose_last_chunk, BackupUnusable, r"tables/public\.ledger: chunk \d+ of \d+ is missing$"),
    (_lose_piece, BackupUnusable, r"data has \d pieces, expected \d$"),
    (_lose_count, BackupUnusable, r"large\.parts/complete\.json is missing$"),
    (_lose_tables, BackupUnusable, r"came before the schema, or twice$"),
    (_add_chunk, BackupUnusable, r"public\.ledger: chunk 999 of \d+ is one too many$"),
    (_add_table, BackupUnusable, r"public\.other/000001\.copy is a chunk that nobody announced$"),
    (_shorten, BackupUnusable, r"public\.ledger has \d+ rows, expected 8000$"),
    (_break_a_row, ServerError, r"invalid input syntax for type bigint"),
    (_garble_tables, BackupUnusable, r"tables\.json is damaged: "),
    (_other_column, ServerError, r'column "nobody" of relation "ledger" does not exist'),
]


@pytest.fixture(scope="session")
def dumped(large: Cluster, bin_dir: Path) -> MemoryBackup:
    """A parallel dump of `large`; tests change copies of it."""
    return parallel_dump_of(large, "large", bin_dir=bin_dir, include_globals=False)


@NEWEST
@pytest.mark.parametrize(("hurt", "kind", "message"), DAMAGE, ids=[row[0].__name__.strip("_") for row in DAMAGE])
def test_damage_gets_no_name(
    *,
    large: Cluster,
    dumped: MemoryBackup,
    bin_dir: Path,
    tmp_path: Path,
    hurt: Callable[[MemoryBackup], None],
    kind: type[PgkeepError],
    message: str,
) -> None:
    """A part that is missing, double, foreign or changed ends the restore, and no database is left."""
    before = large.sql("SELECT datname FROM pg_database ORDER BY 1")
    backup = MemoryBackup(dict(dumped.headers), dict(dumped.content), dumped.head)
    hurt(backup)
    with pytest.raises(kind, match=message):
        restore_cluster(large, backup, bin_dir=bin_dir, new_database="new", tmpdir=tmp_path, jobs=2)
    assert large.sql("SELECT datname FROM pg_database ORDER BY 1") == before
    assert list(tmp_path.iterdir()) == []


@NEWEST
def test_it_passes_undamaged(large: Cluster, dumped: MemoryBackup, bin_dir: Path, tmp_path: Path) -> None:
    """The dump that the damage is done to restores as it is."""
    try:
        restore_cluster(large, dumped, bin_dir=bin_dir, new_database="new", tmpdir=tmp_path, jobs=2)
        assert digests(large, "new") == digests(large, "large")
    finally:
        large.sql("DROP DATABASE IF EXISTS new")


@NEWEST
def test_options_that_choose_leave_all_to_pg_dump(large: Cluster, bin_dir: Path) -> None:
    """With an option that may choose among tables pg_dump copies all, and the plan says why."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir, extra=("--schema=public",))
    assert 'all tables by pg_dump: dump_options has "--schema=public", which may choose among tables' in backup.said
    assert not [path for path in backup.files if "/tables/" in path]


@NEWEST
def test_few_connections_mean_few_workers(large: Cluster, bin_dir: Path) -> None:
    """More workers than the server has connections for are not started, with a warning."""
    backup = MemoryBackup()
    with Server.open(target_of(large)) as server:
        plan = plan_parallel(server, options_for(bin_dir, databases=("large",), workers=64), backup)
    assert plan.workers < 40
    assert backup.warned == [
        f"{plan.workers} workers instead of parallel_tables=64: the server has {plan.workers + 1} connections free"
    ]


@NEWEST
def test_workers_tell_through_the_reading_thread(large: Cluster, bin_dir: Path) -> None:
    """The job log is written by the thread that takes the items only: it may be a part of their stream."""
    backup = MemoryBackup()
    speakers: set[int] = set()
    with Server.open(target_of(large)) as server:
        plan = plan_parallel(server, options_for(bin_dir, databases=("large",)), backup)
        said = dataclasses.replace(plan.request, say=lambda _: speakers.add(threading.get_ident()))
        plan = dataclasses.replace(plan, request=said)
        with ParallelDumpMode().open(plan, server=server) as source:
            for item in source.items():
                backup.accept(item)
    assert speakers == {threading.get_ident()}


@NEWEST
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_bytes_of_another_encoding_stay(large: Cluster, bin_dir: Path, tmp_path: Path, encoding: str) -> None:
    """Chunks are in the database's own encoding, also where that is none at all."""
    create = f"TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    large.sql(f"CREATE DATABASE bytes {create}")
    make = r"CREATE TABLE t AS SELECT g, convert_from('\xe4f6', 'LATIN1') || repeat('x', 90) AS v"
    if encoding == "SQL_ASCII":
        make = make.replace("convert_from('\\xe4f6', 'LATIN1')", "convert_from('\\xe4f6ff', 'SQL_ASCII')")
    digest = "SELECT md5(string_agg(convert_to(v, getdatabaseencoding()), '' ORDER BY g)) FROM t"
    try:
        large.sql(f"{make} FROM generate_series(1, 3000) g", dbname="bytes")
        backup = parallel_dump_of(large, "bytes", bin_dir=bin_dir)
        assert [path for path in backup.files if "/tables/public.t/" in path]
        restore_cluster(large, backup, bin_dir=bin_dir, databases=("bytes",), new_database="back", tmpdir=tmp_path)
        assert large.value(digest, dbname="back") == large.value(digest, dbname="bytes")
    finally:
        large.sql("DROP DATABASE IF EXISTS bytes")
        large.sql("DROP DATABASE IF EXISTS back")


@NEWEST
def test_a_role_with_the_granted_rights_is_enough(large: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """What ``pgkeep grants --mode parallel_dump`` prints is all that a role needs."""
    large.sql("CREATE ROLE keeper LOGIN")
    try:
        with large.connect("large") as connection:
            connection.execute(grants("parallel_dump", large.major, "keeper").encode())
        with Server.open(target_of(large, user="keeper")) as server:
            backup = parallel_dump(server, options_for(bin_dir, databases=("large",), include_blobs=False))
        restore_cluster(large, backup, bin_dir=bin_dir, new_database="back", databases=("large",), tmpdir=tmp_path)
        expected = {name: one for name, one in digests(large, "large").items() if not name.startswith("large object")}
        assert digests(large, "back") == expected
    finally:
        large.sql("DROP DATABASE IF EXISTS back")
        large.sql("DROP OWNED BY keeper", dbname="large")
        large.sql("DROP OWNED BY keeper; DROP ROLE keeper")


@NEWEST
def test_foreign_partition_that_nobody_answers_for(large: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """A foreign table comes back as a definition; that its parent cannot be analyzed is told, and ends nothing."""
    large.sql("CREATE DATABASE far")
    try:
        with large.connect("far") as connection:
            connection.execute(_FOREIGN.encode())
        backup = parallel_dump_of(large, "far", bin_dir=bin_dir, include_globals=False)
        _, _, warned = restore_cluster(
            large, backup, bin_dir=bin_dir, databases=("far",), new_database="near", tmpdir=tmp_path
        )
        [warning] = warned
        assert warning.startswith("not analyzed: public.p: ")
        assert 'foreign-data wrapper "nobody" has no handler' in warning
        assert large.value("SELECT count(*) FROM here", dbname="near") == 3
        assert large.value("SELECT relkind::text FROM pg_class WHERE relname = 'there'", dbname="near") == "f"
    finally:
        large.sql("DROP DATABASE IF EXISTS near")
        large.sql("DROP DATABASE far")


_FOREIGN = """
CREATE FOREIGN DATA WRAPPER nobody;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER nobody;
CREATE TABLE p (id int) PARTITION BY RANGE (id);
CREATE TABLE here PARTITION OF p FOR VALUES FROM (0) TO (10);
CREATE FOREIGN TABLE there PARTITION OF p FOR VALUES FROM (10) TO (20) SERVER elsewhere;
INSERT INTO here VALUES (1), (2), (3);
"""
