"""A parallel dump comes back row for row."""

from __future__ import annotations

import collections
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pgkeep.errors import BackupUnusable, RestoreRefused
from pgkeep.modes.dump_plan import DumpDetails
from pgkeep.streams.compression import Compression
from tests.dump.parallel import ROOT, make_large, parallel_dump_of, parts
from tests.dump.sample import WEIRD, MemoryBackup, digests, dump_cluster, hashed_sql, restore_cluster
from tests.lab.cluster import Cluster, MakeCluster

TABLES = int(os.environ.get("PGKEEP_TEST_TABLES", "2000"))
"""Ten thousand, on each major, are for a night: PGKEEP_TEST_TABLES=10000 ./dev test-majors -k many_small_tables."""


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.ZSTD], ids=lambda one: one.value)
def test_parallel_dump_comes_back(
    *, large: Cluster, large_digests: dict[str, str], bin_dir: Path, tmp_path: Path, compression: Compression
) -> None:
    """Tables in ranges, whole, and by pg_dump restore to equal rows, sequences and large objects."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir, compression=compression)
    new = f"back {compression.value}"
    try:
        _, said, warned = restore_cluster(
            large, backup, bin_dir=bin_dir, databases=("large",), new_database=new, tmpdir=tmp_path, jobs=3
        )
        assert digests(large, new) == large_digests
        assert (said, warned) == ([f'database "{new}": restored'], [])
        assert large.sql(_SHAPE, dbname=new) == large.sql(_SHAPE, dbname="large")
    finally:
        large.sql(f'DROP DATABASE IF EXISTS "{new}"')
    assert list(tmp_path.iterdir()) == []


def test_equal_to_pg_dump(large: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """What comes back has the digests of what pg_dump and pg_restore bring back."""
    parallel = parallel_dump_of(large, "large", bin_dir=bin_dir)
    plain = dump_cluster(large, bin_dir=bin_dir, databases=["large"])
    try:
        for new, backup in (("by workers", parallel), ("by pg_dump", plain)):
            restore_cluster(large, backup, bin_dir=bin_dir, databases=("large",), new_database=new, tmpdir=tmp_path)
        assert digests(large, "by workers") == digests(large, "by pg_dump")
        assert large.sql(_SHAPE, dbname="by workers") == large.sql(_SHAPE, dbname="by pg_dump")
    finally:
        large.sql('DROP DATABASE IF EXISTS "by workers"')
        large.sql('DROP DATABASE IF EXISTS "by pg_dump"')


@pytest.mark.timeout(3600 if TABLES > 2000 else 300)
@pytest.mark.pg(">=12" if TABLES > 2000 else ">=18")
def test_many_small_tables(make_cluster: MakeCluster, major: int, bin_dir: Path, tmp_path: Path) -> None:
    """Thousands of tables, no two alike, beside the odd ones, come back as they were and as by pg_dump."""
    # As for pg_dump itself: each table is a lock.
    cluster = make_cluster("many", major=major, settings={"max_locks_per_transaction": "512"})
    make_large(cluster, "many")
    for first in range(0, TABLES, 1000):
        cluster.sql(_MANY.format(first, min(first + 1000, TABLES) - 1), dbname="many")
    before, shape = _all_digests(cluster, "many"), cluster.sql(_SHAPE, dbname="many")
    small = [value for name, value in before.items() if name.startswith("t_")]
    assert len(set(small)) == len(small) == TABLES
    parallel = parallel_dump_of(cluster, "many", bin_dir=bin_dir, include_globals=False)
    plain = dump_cluster(cluster, bin_dir=bin_dir, databases=["many"])
    for new, backup in (("by workers", parallel), ("by pg_dump", plain)):
        restore_cluster(
            cluster, backup, bin_dir=bin_dir, databases=("many",), new_database=new, tmpdir=tmp_path, jobs=2
        )
        assert _all_digests(cluster, new) == before
        assert cluster.sql(_SHAPE, dbname=new) == shape


def _all_digests(cluster: Cluster, dbname: str) -> dict[str, str]:
    """Return a digest of each table, large object and sequence; one query asks many small tables."""
    tables = [
        name for (name,) in cluster.sql("SELECT relname FROM pg_class WHERE relname ~ '^t_[0-9]+$'", dbname=dbname)
    ]
    found = digests(cluster, dbname, without="t\\_%")
    for start in range(0, len(tables), 250):
        query = " UNION ALL ".join(
            f"SELECT '{name}', count(*) || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {name} AS t"
            for name in tables[start : start + 250]
        )
        found |= dict(cluster.sql(query, dbname=dbname))
    return found


def test_tables_are_copied_in_ranges(large: Cluster, bin_dir: Path) -> None:
    """The larger tables come in many chunks, under names that no other table can have, counted in the end."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir, compression=Compression.ZSTD)
    counts = collections.Counter(path.rpartition("/")[0] for path in parts(backup, "large", "tables/"))
    assert counts["tables/public.ledger"] > 8
    assert "tables/Odd%2ESch%20ema.we%2Fird%20%22tä%22%20ble" in counts
    complete = json.loads(backup.content[f"{ROOT}/large.parts/complete.json"])
    assert {f"tables/{table['directory']}": table["chunks"] for table in complete["tables"]} == counts
    rows = {table["directory"]: table["rows"] for table in complete["tables"]}
    assert rows["public.ledger"] == large.value("SELECT count(*) FROM ledger", dbname="large")
    files = [path for path in backup.files if "/large.parts/" in path]
    assert files[0].endswith("/schema.dump")
    assert files[1].endswith("/tables.json")
    assert files[-2:] == [f"{ROOT}/large.parts/complete.json", f"{ROOT}/large.parts/restore.sh"]


@pytest.mark.pg(">=18")
def test_one_worker_copies_whole_tables(
    large: Cluster, large_digests: dict[str, str], bin_dir: Path, tmp_path: Path
) -> None:
    """A worker alone shares no ranges; its chunks are as small as ever, and come back by several sessions."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir, include_globals=False, workers=1)
    [plan] = [line for line in backup.said if "public.ledger" in line]
    assert plan.endswith(": whole, there is one worker")
    assert len(parts(backup, "large", "tables/public.ledger/")) > 8
    try:
        restore_cluster(
            large, backup, bin_dir=bin_dir, databases=("large",), new_database="alone", tmpdir=tmp_path, jobs=3
        )
        assert digests(large, "alone") == large_digests
    finally:
        large.sql("DROP DATABASE IF EXISTS alone")


@pytest.mark.pg(">=18")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("letter", "{}"),
        ("letter[]", "ARRAY[{0}, {0}]"),
        ("pair", "ROW({}, 1)::pair"),
        ("letters", "letters({0}, {0}, '[]')"),
    ],
)
def test_partitions_by_hash_of_oids(cluster: Cluster, bin_dir: Path, tmp_path: Path, key: str, value: str) -> None:
    """Rows that belong to another partition in another database, since an enum's hash is of OIDs, find it there."""
    cluster.sql("DROP DATABASE IF EXISTS elsewhere")
    cluster.sql("DROP DATABASE IF EXISTS hashed")
    cluster.sql("CREATE DATABASE hashed")
    cluster.sql(hashed_sql(key, value), dbname="hashed")
    backup = parallel_dump_of(cluster, "hashed", bin_dir=bin_dir, include_globals=False)
    assert {path.split("/")[1] for path in parts(backup, "hashed", "tables/")} == {"public.beside"}
    restore_cluster(cluster, backup, bin_dir=bin_dir, databases=("hashed",), new_database="elsewhere", tmpdir=tmp_path)
    query = "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM hashed AS t"
    assert cluster.sql(query, dbname="elsewhere") == cluster.sql(query, dbname="hashed")
    # The whole again, in a database where the same labels have OIDs of their own.
    cluster.sql("DROP TABLE hashed", dbname="elsewhere")
    arguments: dict[str, Any] = {"databases": ("hashed",), "new_database": "elsewhere", "tmpdir": tmp_path}
    restore_cluster(cluster, backup, bin_dir=bin_dir, tables="public.hashed", **arguments)
    assert cluster.sql(query, dbname="elsewhere") == cluster.sql(query, dbname="hashed")
    # A partition alone would come back with the rows of others, or with none.
    cluster.sql("DROP TABLE hashed", dbname="elsewhere")
    with pytest.raises(RestoreRefused, match=r'partition "public"."hashed_0_low" cannot come back without .*"hashed"'):
        restore_cluster(cluster, backup, bin_dir=bin_dir, tables="public.hashed_0_low", **arguments)
    # A table beside it comes back, of which no OID has a say; one partition of it only where pg_dump kept them apart.
    query = "SELECT tableoid::regclass, count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM ranged t GROUP BY 1"
    cluster.sql("DROP TABLE ranged", dbname="elsewhere")
    restore_cluster(cluster, backup, bin_dir=bin_dir, tables="public.ranged", **arguments)
    assert sorted(cluster.sql(query, dbname="elsewhere")) == sorted(cluster.sql(query, dbname="hashed"))
    cluster.sql("DROP TABLE ranged", dbname="elsewhere")
    refused = pytest.raises(RestoreRefused, match=r'"ranged_low" cannot come back without "public"."ranged": where')
    with contextlib.nullcontext() if key == "letter" else refused:
        restore_cluster(cluster, backup, bin_dir=bin_dir, tables="public.ranged_low", **arguments)


@pytest.mark.pg(">=18")
def test_names_in_other_encodings(cluster: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """Rows of a table whose name is not ASCII come once, whatever encoding the database or its sessions have."""
    for dbname, encoding in (("latin", "LATIN1"), ("bytes", "SQL_ASCII"), ("usual", "UTF8")):
        cluster.sql(f"CREATE DATABASE {dbname} TEMPLATE template0 ENCODING '{encoding}'")
        with cluster.connect(dbname, client_encoding="UTF8") as connection:
            connection.execute(
                """CREATE TABLE "tä" AS SELECT g AS id, repeat('ü', 100) AS v FROM generate_series(1, 900) g"""
            )
            connection.execute("""CREATE TABLE "mü" AS SELECT 'mä' AS v""")
    cluster.sql("ALTER DATABASE usual SET client_encoding TO 'LATIN1'")
    names = ("latin", "bytes", "usual")
    backup = parallel_dump_of(cluster, *names, bin_dir=bin_dir, include_globals=False)
    query = """SELECT count(*), md5(string_agg(v, '' ORDER BY id)) FROM "tä" """
    for dbname in names:
        assert parts(backup, dbname, "tables/")
        new = f"{dbname}_again"
        restore_cluster(cluster, backup, bin_dir=bin_dir, databases=(dbname,), new_database=new, tmpdir=tmp_path)
        with (
            cluster.connect(dbname, client_encoding="UTF8") as old,
            cluster.connect(new, client_encoding="UTF8") as now,
        ):
            assert now.execute(query).fetchone() == old.execute(query).fetchone()
            # What workers copied of a table, and what pg_dump copied.
            now.execute("""DROP TABLE "tä", "mü" """)
            restore_cluster(
                cluster, backup, bin_dir=bin_dir, databases=(dbname,), new_database=new, tables="tä,mü", tmpdir=tmp_path
            )
            for one in (query, """SELECT v FROM "mü" """):
                assert now.execute(one).fetchone() == old.execute(one).fetchone()


@pytest.mark.pg(">=18")
def test_two_archives_as_once_made(
    large: Cluster, large_digests: dict[str, str], bin_dir: Path, tmp_path: Path
) -> None:
    """A backup whose pieces are an archive by themselves, as it was made before, comes back; a table of it, too."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir, include_globals=False)
    schema, tables, piece = (
        f"{ROOT}/large.parts/{name}" for name in ("schema.dump", "tables.json", "data/000001.dump")
    )
    backup.content[piece] = backup.content[schema] + backup.content[piece]
    described = json.loads(backup.content[tables])
    assert described.pop("is_one_archive")
    backup.content[tables] = json.dumps(described).encode()
    assert backup.head is not None
    backup.head.details["format"] = "parallel"
    arguments: dict[str, Any] = {"databases": ("large",), "new_database": "once", "tmpdir": tmp_path}
    try:
        restore_cluster(large, backup, bin_dir=bin_dir, **arguments)
        assert digests(large, "once") == large_digests
        large.sql("DROP TABLE kinds", dbname="once")
        restore_cluster(large, backup, bin_dir=bin_dir, tables="kinds", **arguments)
        assert digests(large, "once") == large_digests
    finally:
        large.sql("DROP DATABASE IF EXISTS once")


def test_all_databases_and_globals(sampled: Cluster, bin_dir: Path, make_cluster: MakeCluster, tmp_path: Path) -> None:
    """All databases of a cluster come back in a new cluster, the globals first, strange names and row security."""
    backup = parallel_dump_of(sampled, bin_dir=bin_dir)
    assert backup.files[0] == f"{ROOT}/globals.sql"
    assert f"{ROOT}/we%2Fird%20%22näme%22.parts/schema.dump" in backup.files
    assert backup.head is not None
    assert [database.name for database in backup.head.databases] == ["app", "postgres", "template1", WEIRD]
    assert DumpDetails(**backup.head.details).format == "parallel-2"
    new = make_cluster("new", major=sampled.major)
    restore_cluster(new, backup, bin_dir=bin_dir, include_globals=True, tmpdir=tmp_path, jobs=2)
    for dbname in ("app", WEIRD):
        assert digests(new, dbname) == digests(sampled, dbname)
    assert new.sql("SELECT datname FROM pg_database WHERE datname LIKE 'pgkeep%%'") == []


_MANY = """
DO $$ BEGIN FOR i IN {}..{} LOOP
  EXECUTE format('CREATE TABLE t_%s AS SELECT g AS id, md5(g::text || %s) AS v FROM generate_series(1, 3) g', i, i);
END LOOP; END $$
"""

_SHAPE = """
    SELECT format('%I.%I', n.nspname, c.relname), c.relkind, c.relpersistence,
           (SELECT array_agg(format('%s %s %s %s', attname, atttypid::regtype, attnotnull, attidentity) ORDER BY attnum)
            FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
           (SELECT array_agg(pg_get_constraintdef(oid) ORDER BY pg_get_constraintdef(oid))
            FROM pg_constraint WHERE conrelid = c.oid),
           (SELECT array_agg(indexrelid::regclass::text ORDER BY indexrelid::regclass::text)
            FROM pg_index WHERE indrelid = c.oid),
           (SELECT array_agg(inhparent::regclass::text) FROM pg_inherits WHERE inhrelid = c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1
"""


@pytest.mark.pg(">=18")
def test_the_database_of_the_connection_is_filled_where_it_stands(
    large: Cluster, large_digests: dict[str, str], bin_dir: Path, make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """A database that cannot be exchanged is filled when it is empty, and not touched when a part is missing."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir)
    other = make_cluster("other", major=large.major)
    lacking = MemoryBackup(dict(backup.headers), backup.content, backup.head)
    del lacking.headers[max(path for path in backup.files if "/tables/public.kinds/" in path)]
    arguments: dict[str, Any] = {"databases": ("large",), "new_database": "postgres", "tmpdir": tmp_path}
    with pytest.raises(BackupUnusable, match=r"kinds: chunk \d+ of \d+ is missing"):
        restore_cluster(other, lacking, bin_dir=bin_dir, **arguments)
    assert digests(other, "postgres") == {}
    restore_cluster(other, backup, bin_dir=bin_dir, **arguments)
    assert digests(other, "postgres") == large_digests


@pytest.mark.pg(">=18")
def test_only_the_last_commit_waits_for_the_disk(cluster: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """The many small commits of pg_restore do not each wait for the disk: a view that it fills tells."""
    cluster.sql("CREATE DATABASE views")
    with cluster.connect("views") as connection:
        connection.execute("CREATE MATERIALIZED VIEW waits AS SELECT current_setting('synchronous_commit') AS how")
    backup = parallel_dump_of(cluster, "views", bin_dir=bin_dir)
    restore_cluster(cluster, backup, bin_dir=bin_dir, databases=("views",), new_database="again", tmpdir=tmp_path)
    with cluster.connect("again") as connection:
        assert connection.execute("SELECT how FROM waits").fetchone() == ("off",)
