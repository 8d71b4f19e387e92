"""Statistics of a whole database, collected by several sessions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg
import pytest

from pgkeep.pg.capabilities import Capabilities
from pgkeep.server import statistics
from pgkeep.server.statistics import analyze_database
from tests.lab.cluster import Cluster

_TABLES = """
CREATE TABLE part (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (0);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (0) TO (MAXVALUE) PARTITION BY RANGE (id);
CREATE TABLE "part ""hi" PARTITION OF part_high FOR VALUES FROM (0) TO (MAXVALUE);
INSERT INTO part SELECT g, g FROM generate_series(-50, 50) g;
CREATE TABLE parent (id int);
CREATE TABLE child (extra text) INHERITS (parent);
INSERT INTO parent SELECT generate_series(1, 50);
INSERT INTO child SELECT g, g FROM generate_series(1, 50) g;
CREATE MATERIALIZED VIEW seen AS SELECT * FROM parent;
CREATE TABLE two (a int, b int);
INSERT INTO two SELECT g, g FROM generate_series(1, 100) g;
CREATE STATISTICS of_two (dependencies) ON a, b FROM two;
DO $$ BEGIN FOR i IN 1..120 LOOP EXECUTE format('CREATE TABLE small%s AS SELECT %s AS n', i, i); END LOOP; END $$;
"""
_DEAD_PARTITION = """
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE TABLE mixed (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE mixed_low PARTITION OF mixed FOR VALUES FROM (MINVALUE) TO (0);
CREATE FOREIGN TABLE mixed_dead PARTITION OF mixed FOR VALUES FROM (0) TO (1000) SERVER files
    OPTIONS (filename '/nowhere');
CREATE TABLE mixed_high PARTITION OF mixed FOR VALUES FROM (1000) TO (MAXVALUE) PARTITION BY RANGE (id);
CREATE TABLE mixed_deep PARTITION OF mixed_high FOR VALUES FROM (1000) TO (MAXVALUE);
INSERT INTO mixed_low SELECT g, g FROM generate_series(-50, -1) g;
INSERT INTO mixed_high SELECT g, g FROM generate_series(1000, 1050) g;
"""
_FOUND = """
    SELECT schemaname::text, tablename::text, attname::text, inherited FROM pg_stats
    -- What they are kept in has rows, or has not, when its own turn comes.
    WHERE tablename !~ '^pg_statistic'
    UNION ALL SELECT '', stxname::text, '', false FROM pg_statistic_ext JOIN pg_statistic_ext_data ON stxoid = oid
    ORDER BY 1, 2, 3, 4
"""


@pytest.fixture
def databases(shared_cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Two databases of equal tables, without statistics."""
    names = ("analyzed here", "analyzed there")
    try:
        for name in names:
            shared_cluster.sql(f'CREATE DATABASE "{name}"')
            shared_cluster.sql(_TABLES, dbname=name)
        yield names
    finally:
        for name in names:
            shared_cluster.sql(f'DROP DATABASE IF EXISTS "{name}"')


def test_all_that_one_analyze_would_do(shared_cluster: Cluster, databases: tuple[str, str]) -> None:
    """Three sessions leave the statistics that one ANALYZE leaves: partitions, children, views, system catalogs."""
    ours, peers = databases
    shared_cluster.sql("ANALYZE", dbname=peers)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(shared_cluster.connect(ours, autocommit=True)) for _ in range(3)]
        analyze_database(sessions)
    expected = shared_cluster.sql(_FOUND, dbname=peers)
    assert {"part_low", 'part "hi', "child", "seen", "small120", "pg_class", "of_two"} <= {row[1] for row in expected}
    assert shared_cluster.sql(_FOUND, dbname=ours) == expected


@pytest.mark.pg(">=18")
def test_a_table_that_cannot_be_analyzed(shared_cluster: Cluster, databases: tuple[str, str]) -> None:
    """Among many tables one whose function fails is named, with the reason, and all others are analyzed."""
    name = databases[0]
    make_fail(shared_cluster, name, "RAISE 'no'")
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(shared_cluster.connect(name, autocommit=True)) for _ in range(3)]
        [refused] = analyze_database(sessions)
    assert refused.startswith("public.small120: no")
    analyzed = "SELECT count(DISTINCT tablename) FROM pg_stats WHERE tablename ~ '^small'"
    assert shared_cluster.value(analyzed, dbname=name) == 119


@pytest.mark.pg(">=18")
@pytest.mark.parametrize("state", ["disk_full", "crash_shutdown", "io_error", "data_corrupted"])
def test_a_server_in_trouble_is_not_passed_over(
    shared_cluster: Cluster, databases: tuple[str, str], state: str
) -> None:
    """A disk that is full, or damage, is raised: a database whose tables cannot be read is not one that is restored."""
    name = databases[0]
    make_fail(shared_cluster, name, f"RAISE 'no' USING ERRCODE = '{state}'")
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(shared_cluster.connect(name, autocommit=True)) for _ in range(3)]
        with pytest.raises(psycopg.Error, match="no"):
            analyze_database(sessions)
        idle = psycopg.pq.TransactionStatus.IDLE
        assert [one.info.transaction_status for one in sessions] == [idle] * 3


@pytest.mark.pg("<18")
def test_partitions_beside_a_dead_foreign_one(shared_cluster: Cluster, databases: tuple[str, str]) -> None:
    """A partition whose file is not on this host is named; those beside it, and beneath them, are analyzed."""
    name = databases[0]
    shared_cluster.sql(_DEAD_PARTITION, dbname=name)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(shared_cluster.connect(name, autocommit=True)) for _ in range(3)]
        refused = analyze_database(sessions)
    assert [line.partition(":")[0] for line in refused] == ["public.mixed", "public.mixed_dead"]
    assert all('file "/nowhere": No such file or directory' in line for line in refused)
    analyzed = "SELECT DISTINCT tablename::text FROM pg_stats WHERE tablename ~ '^mixed' ORDER BY 1"
    assert shared_cluster.sql(analyzed, dbname=name) == [("mixed_deep",), ("mixed_high",), ("mixed_low",)]


@pytest.mark.pg(">=18")
def test_an_interruption_ends_all(
    shared_cluster: Cluster, databases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that meets the caller while it waits for the others is what it gets, when they have been cancelled."""
    has_begun = threading.Event()
    join, cancel = threading.Thread.join, psycopg.Connection.cancel
    interrupted: list[object] = []
    cancelled: list[object] = []

    def analyze(session: psycopg.Connection[object], _: object) -> list[str]:
        if session is sessions[0]:
            has_begun.wait()
            return []
        has_begun.set()
        session.execute("SELECT pg_sleep(3600)")
        return []

    def join_interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "analyze" and not interrupted:
            interrupted.append(thread)
            raise KeyboardInterrupt
        join(thread, timeout)

    def cancel_failing_once(session: psycopg.Connection[object]) -> None:
        cancelled.append(session)
        if len(cancelled) == 1:
            raise psycopg.OperationalError("the connection is bad")
        cancel(session)

    monkeypatch.setattr(statistics, "_analyze", analyze)
    monkeypatch.setattr(threading.Thread, "join", join_interrupted)
    monkeypatch.setattr(psycopg.Connection, "cancel", cancel_failing_once)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(shared_cluster.connect(databases[0], autocommit=True)) for _ in range(3)]
        with pytest.raises(KeyboardInterrupt):
            analyze_database(sessions)
        assert not any(thread.name == "analyze" for thread in threading.enumerate())
        idle = psycopg.pq.TransactionStatus.IDLE
        assert [one.info.transaction_status for one in sessions] == [idle] * 3


@pytest.mark.pg(">=18")
def test_a_lost_session_ends_all(shared_cluster: Cluster, databases: tuple[str, str]) -> None:
    """When the server ends one session, that is raised when all have ended, and no session goes on."""
    name = databases[0]
    make_fail(shared_cluster, name, "PERFORM pg_terminate_backend(pg_backend_pid())")
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(shared_cluster.connect(name, autocommit=True)) for _ in range(3)]
        with pytest.raises(psycopg.errors.AdminShutdown):
            analyze_database(sessions)
        assert [one.closed for one in sessions].count(True) == 1
        idle = psycopg.pq.TransactionStatus.IDLE
        assert [one.info.transaction_status for one in sessions if not one.closed] == [idle, idle]


def make_fail(cluster: Cluster, dbname: str, statement: str) -> None:
    """Give table ``small120`` an index whose function runs *statement* when it is analyzed."""
    with cluster.connect(dbname) as connection:
        connection.execute("SET now.made = 1")
        connection.execute(
            "CREATE FUNCTION fails(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN "
            f"IF current_setting('now.made', true) IS NULL THEN {statement}; END IF; RETURN n; END $$".encode()
        )
        connection.execute("CREATE INDEX ON small120 (fails(n))")


def test_only_is_asked_for_where_it_is_known(shared_cluster: Cluster) -> None:
    """ANALYZE ONLY is a statement from the version on that is said to have it."""
    shared_cluster.sql("CREATE TABLE IF NOT EXISTS analyzed_only (i int)")
    try:
        shared_cluster.sql("ANALYZE ONLY analyzed_only")
        is_known = True
    except psycopg.errors.SyntaxError:
        is_known = False
    assert Capabilities(shared_cluster.major * 10000).has_analyze_only == is_known
