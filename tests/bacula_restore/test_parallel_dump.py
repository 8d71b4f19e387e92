"""Parallel dumps that come back out of Bacula's stream, chunk by chunk."""

from __future__ import annotations

import pytest

from tests.bacula_restore.conftest import Daemon, MakeDaemon
from tests.bacula_restore.test_dump import databases, fill, rows

BASE = "/@postgresql/parallel_dump"


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    """Two databases, one with a table that workers copy in ranges, dumped."""
    made = make_daemon("parallel_dump", "large_table_threshold=20M", "parallel_tables=3")
    fill(made.cluster, "sales", "we ird")
    made.cluster.sql(
        "CREATE TABLE big AS SELECT n, repeat('x', 90) AS t FROM generate_series(1, 350000) n", dbname="sales"
    )
    made.words += f" tmpdir={made.directory}/tmp"
    made.backup()
    return made


def chunks(daemon: Daemon) -> list[str]:
    """Return the names of the large table's chunks."""
    return [name for name in daemon.jobs[0].files if "/sales.parts/tables/public.big/" in name]


def drop_all(daemon: Daemon) -> None:
    """Lose both databases."""
    daemon.cluster.sql('DROP DATABASE "we ird"')
    daemon.cluster.sql("DROP DATABASE sales")


@pytest.mark.parametrize("plain", [False, True])
def test_databases_come_back(daemon: Daemon, plain: bool) -> None:
    """where=/ loads the databases anew, also the one that pgkeep is connected to, where that is empty."""
    cluster = daemon.cluster
    digest = "SELECT count(*)::text || md5(string_agg(t.*::text, '' ORDER BY n)) FROM big t"
    before = cluster.value(digest, dbname="sales")
    assert len(chunks(daemon)) >= 2
    refused = daemon.restore(plain=plain)
    assert "exists and is not empty" in refused.error
    drop_all(daemon)
    answer = daemon.restore(plain=plain)
    assert answer.error == ""
    assert (rows(cluster, "sales"), rows(cluster, "we ird")) == (5000, 5000)
    assert cluster.value(digest, dbname="sales") == before
    assert not [name for name in databases(cluster) if name.startswith("pgkeep_restore_")]
    assert not list((daemon.directory / "tmp").iterdir())


def test_tables_come_back(daemon: Daemon) -> None:
    """A table in chunks and one that pg_dump copied come back into their database, but not without each chunk."""
    cluster = daemon.cluster
    digest = "SELECT count(*)::text || md5(string_agg(t.*::text, '' ORDER BY n)) FROM big t"
    before = cluster.value(digest, dbname="sales")
    options = {"target_database": "sales", "target_table": "big,public.it*"}
    cluster.sql("DROP TABLE big, item", dbname="sales")
    lost = chunks(daemon)[0]
    assert lost.removeprefix("/") in daemon.restore(daemon.restoring().without(lost), options=options).error
    assert cluster.value("SELECT to_regclass('big') IS NULL AND to_regclass('item') IS NULL", dbname="sales")
    answer = daemon.restore(options=options)
    assert answer.error == ""
    assert (rows(cluster, "sales"), cluster.value(digest, dbname="sales")) == (5000, before)
    assert not list((daemon.directory / "tmp").iterdir())


def test_a_lost_chunk_gets_no_name(daemon: Daemon) -> None:
    """A chunk that does not come, or not as it was, ends that database's restore before it has its name."""
    cluster, names = daemon.cluster, chunks(daemon)
    drop_all(daemon)
    answer = daemon.restore(daemon.restoring().without(names[0]))
    assert names[0].removeprefix("/") in answer.error
    assert "did not arrive" in answer.error
    assert "sales" not in databases(cluster)
    assert rows(cluster, "we ird") == 5000
    cluster.sql('DROP DATABASE "we ird"')
    broken = daemon.restoring()
    broken.failed[names[1]] = 2000
    answer = daemon.restore(broken)
    assert "sales" in answer.error
    assert not {"sales"} & databases(cluster)
    assert not [name for name in databases(cluster) if name.startswith("pgkeep_restore_")]
    assert rows(cluster, "we ird") == 5000


def test_a_chunk_that_comes_twice_gets_no_name(daemon: Daemon) -> None:
    """A chunk that comes twice would double its rows: that database is dropped, the other is restored."""
    cluster, names = daemon.cluster, chunks(daemon)
    drop_all(daemon)
    twice = daemon.restoring()
    twice.files.insert(twice.files.index(twice.file(names[-1])) + 1, twice.file(names[0]))
    answer = daemon.restore(twice)
    assert f"{names[0].removeprefix('/')} came twice" in answer.error
    assert "sales" not in databases(cluster)
    assert rows(cluster, "we ird") == 5000


@pytest.mark.parametrize("cut", [0, 9], ids=["whole", "cut"])
def test_a_dump_that_comes_twice(daemon: Daemon, cut: int) -> None:
    """Of a job that Bacula went on with both runs come where no names are known: databases and tables of the second."""
    cluster = daemon.cluster
    digest = "SELECT count(*)::text || md5(string_agg(t.*::text, '' ORDER BY n)) FROM big t"
    cluster.sql("CREATE TABLE extra AS SELECT 1 AS n", dbname="sales")
    cluster.sql("DELETE FROM big WHERE n > 200000", dbname="sales")
    cluster.sql("VACUUM FULL big", dbname="sales")
    before = cluster.value(digest, dbname="sales")
    daemon.backup()
    both, first = daemon.restoring(1), daemon.restoring(0).files
    both.files[:0] = first[: len(first) - cut]
    cluster.sql("DROP TABLE big, extra", dbname="sales")
    options = {"target_database": "sales", "target_table": "big"}
    assert daemon.restore(both, expects=False, options=options).error == ""
    assert cluster.value(digest, dbname="sales") == before
    drop_all(daemon)
    assert daemon.restore(both, expects=False).error == ""
    assert (rows(cluster, "sales"), rows(cluster, "we ird")) == (5000, 5000)
    assert cluster.value(digest, dbname="sales") == before
    assert cluster.value("SELECT n FROM extra", dbname="sales") == 1
    assert not [name for name in databases(cluster) if name.startswith("pgkeep_restore_")]
