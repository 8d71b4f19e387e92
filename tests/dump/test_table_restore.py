"""Restores of some tables into a database that is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgkeep.errors import BackupUnusable, FormatError, PgkeepError, RestoreRefused, UsageError
from pgkeep.modes.table_names import parse_filters, select_tables
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.table_catalog import TableName
from pgkeep.server.table_ddl import rows_listed, statements_of
from pgkeep.streams.compression import Compression
from tests.dump.parallel import parallel_dump_of
from tests.dump.sample import MemoryBackup, digests, dump_cluster, restore_cluster
from tests.lab.cluster import Cluster

NEWEST = pytest.mark.pg(">=18")
ODD = '"Odd.Sch ema"."we/ird ""tä"" ble"'
_ASIDE = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgkeep\\_before\\_%'"
_WORKSHOPS = "SELECT count(*) FROM pg_database WHERE datname LIKE 'pgkeep\\_restore\\_%'"
_EXTRAS = """
ALTER TABLE ledger ADD CHECK (id > 0);
CREATE INDEX ledger_body ON ledger (left(body, 8));
COMMENT ON TABLE ledger IS 'of money';
CREATE SEQUENCE shared START 40;
CREATE TABLE numbered (id serial PRIMARY KEY, other int DEFAULT nextval('shared'), ledger bigint REFERENCES ledger);
INSERT INTO numbered (ledger) SELECT 1 + 3 * g FROM generate_series(1, 50) g;
CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'never'; END$$;
CREATE TRIGGER never BEFORE INSERT ON numbered FOR EACH ROW EXECUTE FUNCTION never();
ALTER TABLE numbered ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON numbered USING (false);
CREATE VIEW big_ones AS SELECT * FROM ledger WHERE id > 11000;
CREATE STATISTICS refers_both (ndistinct) ON id, ledger FROM refers;
"""
_DEFINITIONS = """
SELECT array_agg(d ORDER BY d) FROM (
  SELECT pg_get_indexdef(indexrelid) AS d FROM pg_index WHERE indrelid = %(table)s::regclass
  UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %(table)s::regclass
  UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = %(table)s::regclass AND NOT tgisinternal
  UNION ALL SELECT concat_ws(',', attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated)
            FROM pg_attribute WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped
  UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = %(table)s::regclass
  UNION ALL SELECT polname FROM pg_policy WHERE polrelid = %(table)s::regclass
  UNION ALL SELECT concat_ws(',', relrowsecurity, relforcerowsecurity, relkind, relacl)
            FROM pg_class WHERE oid = %(table)s::regclass
  UNION ALL SELECT obj_description(%(table)s::regclass, 'pg_class')) AS all_of_it(d)
"""


@pytest.fixture(params=["parallel_dump", "custom", "directory"])
def scene(request: pytest.FixtureRequest, large: Cluster, bin_dir: Path) -> Any:
    """A database `bank` that may be changed, its digests, and a dump of it."""
    large.sql("CREATE DATABASE bank TEMPLATE large")
    try:
        with large.connect("bank") as connection:
            connection.execute(_EXTRAS)
        if request.param == "parallel_dump":
            backup = parallel_dump_of(large, "bank", bin_dir=bin_dir, compression=Compression.ZSTD)
        else:
            backup = dump_cluster(large, bin_dir=bin_dir, databases=["bank"], format=DumpFormat(request.param))
        yield large, backup, digests(large, "bank")
    finally:
        large.sql("DROP DATABASE IF EXISTS bank")
        large.sql("DROP DATABASE IF EXISTS other")


def definitions(cluster: Cluster, dbname: str, table: str) -> Any:
    """Return all that belongs to a table but its rows."""
    with cluster.connect(dbname) as connection:
        return connection.execute(_DEFINITIONS, {"table": table}).fetchone()


def bring(
    cluster: Cluster, backup: MemoryBackup, tables: str, *, bin_dir: Path, tmp_path: Path, **more: Any
) -> tuple[list[str], list[str]]:
    """Restore *tables* of database `bank`; return what was said and what was warned of."""
    _, said, warned = restore_cluster(
        cluster, backup, bin_dir=bin_dir, databases=("bank",), tables=tables, tmpdir=tmp_path, **more
    )
    return said, warned


@NEWEST
def test_dropped_tables_come_back(
    scene: tuple[Cluster, MemoryBackup, dict[str, str]], bin_dir: Path, tmp_path: Path
) -> None:
    """Tables, all partitions of one, come back with all that is theirs; the rest of the database stays as it is."""
    cluster, backup, before = scene
    tables = {name: definitions(cluster, "bank", name) for name in ("ledger", "numbered", "part_high_2", ODD)}
    with cluster.connect("bank") as connection:
        connection.execute(f"DROP TABLE ledger, numbered, part, {ODD} CASCADE")
        connection.execute("DROP SEQUENCE shared; UPDATE kinds SET f = 1; INSERT INTO refers VALUES (-1, NULL)")
    changed = digests(cluster, "bank")
    said, warned = bring(cluster, backup, f"ledger,public.number*, part , {ODD}", bin_dir=bin_dir, tmp_path=tmp_path)
    assert said[-1] == 'database "bank": 8 tables restored'
    statement = 'ALTER TABLE "public"."refers" ADD CONSTRAINT "refers_ledger_fkey" FOREIGN KEY (ledger) REFERENCES '
    assert warned == [f"foreign key of another table is not restored: {statement}public.ledger(id)"]
    del before["public.totals"]  # It went with its table, and is none.
    assert digests(cluster, "bank") == before | {name: changed[name] for name in ("public.kinds", "public.refers")}
    for name, defined in tables.items():
        assert definitions(cluster, "bank", name) == defined
    assert cluster.sql(_WORKSHOPS) == [(0,)]


@NEWEST
@pytest.mark.parametrize("scene", ["parallel_dump"], indirect=True)
def test_existing_table_is_in_the_way(
    scene: tuple[Cluster, MemoryBackup, dict[str, str]], bin_dir: Path, tmp_path: Path
) -> None:
    """What has the name stays unless it may be moved aside; then it is whole there, and who still uses it is named."""
    cluster, backup, before = scene
    cluster.sql("DELETE FROM refers; DELETE FROM numbered; DELETE FROM ledger WHERE id > 100", dbname="bank")
    damaged = digests(cluster, "bank")
    with pytest.raises(RestoreRefused) as refused:
        bring(cluster, backup, "ledger", bin_dir=bin_dir, tmp_path=tmp_path)
    assert refused.value.message == 'database "bank" has "public"."ledger" already'
    assert "overwrite_existing=yes" in refused.value.hint
    assert digests(cluster, "bank") == damaged
    cluster.sql("CREATE PUBLICATION told FOR TABLE ledger", dbname="bank")
    said, warned = bring(cluster, backup, "ledger", bin_dir=bin_dir, tmp_path=tmp_path, overwrite_existing=True)
    [(aside,)] = cluster.sql(_ASIDE, dbname="bank")
    assert said[-1].endswith(f'what was there is now in schema "{aside}": drop it when it is not needed')
    assert f'publication "told" goes on publishing "public"."ledger", which is moved to schema "{aside}"' in warned
    assert f'view "public"."big_ones" goes on reading what is moved to schema "{aside}"' in warned
    assert any(line.startswith("foreign key refers_ledger_fkey of ") for line in warned)
    after = digests(cluster, "bank")
    assert after.pop(f"{aside}.ledger") == damaged["public.ledger"]
    assert after == damaged | {"public.ledger": before["public.ledger"]}


@NEWEST
@pytest.mark.parametrize("scene", ["parallel_dump"], indirect=True)
def test_into_another_database(
    scene: tuple[Cluster, MemoryBackup, dict[str, str]], bin_dir: Path, tmp_path: Path
) -> None:
    """A schema that lacks is made, a foreign key without its other end is told, a partition alone is a table."""
    cluster, backup, before = scene
    arguments: dict[str, Any] = {"bin_dir": bin_dir, "tmp_path": tmp_path, "new_database": "other"}
    with pytest.raises(RestoreRefused, match='database "other" does not exist'):
        bring(cluster, backup, "refers", **arguments)
    cluster.sql("CREATE DATABASE other")
    _, warned = bring(cluster, backup, f'refers,{ODD},"part_high_2"', **arguments)
    odd = 'schema "Odd.Sch ema" did not exist and was made, without the privileges that it had'
    assert odd in warned
    assert any(line.startswith('foreign key is not restored (relation "public.ledger" does not ex') for line in warned)
    assert any("ATTACH PARTITION" in line for line in warned)
    statistics = "CREATE STATISTICS public.refers_both (ndistinct) ON id, ledger FROM public.refers"
    assert f"extended statistics are not restored: {statistics}" in warned
    names = ("Odd.Sch ema", "public.refers", "public.part_high_2")
    mine = {name: value for name, value in before.items() if name.strip('"').startswith(names)}
    assert len(mine) == 4
    assert digests(cluster, "other") == mine
    # A type that the other database lacks: nothing of it is there afterwards.
    with pytest.raises(PgkeepError, match="positive"):
        bring(cluster, backup, "kinds", **arguments)
    assert digests(cluster, "other") == mine
    assert cluster.sql(_WORKSHOPS) == [(0,)]


@NEWEST
@pytest.mark.parametrize("scene", ["parallel_dump"], indirect=True)
def test_lost_chunk_or_unknown_table(
    scene: tuple[Cluster, MemoryBackup, dict[str, str]], bin_dir: Path, tmp_path: Path
) -> None:
    """Without one of its chunks a table does not come back at all, and a name that nobody knows is answered by some."""
    cluster, backup, _ = scene
    cluster.sql("DROP TABLE ledger CASCADE", dbname="bank")
    before = digests(cluster, "bank")
    with pytest.raises(UsageError) as unknown:
        bring(cluster, backup, "publik.ledgr", bin_dir=bin_dir, tmp_path=tmp_path)
    assert unknown.value.message == "no table publik.ledgr is in the backup of this database"
    assert 'near it are "public"."ledger"' in unknown.value.hint
    lost = next(path for path in backup.headers if "public.ledger/000002" in path)
    whole = backup.content[lost]
    backup.content[lost] = whole[:-10]
    with pytest.raises(FormatError, match="zstd stream ends before its end"):
        bring(cluster, backup, "ledger", bin_dir=bin_dir, tmp_path=tmp_path)
    assert digests(cluster, "bank") == before
    del backup.headers[lost]
    with pytest.raises(BackupUnusable, match=r"public\.ledger has .* chunks with .* rows, expected"):
        bring(cluster, backup, "ledger", bin_dir=bin_dir, tmp_path=tmp_path)
    assert digests(cluster, "bank") == before


def test_filters() -> None:
    """Names are taken as they stand; quotes keep dots, commas and wildcards; what is no list of names is refused."""
    tables = [TableName("a", "x"), TableName("a", "Y*"), TableName("a.b", "x, y"), TableName("b", 'q"')]

    def chosen(text: str) -> list[TableName]:
        return select_tables(tables, parse_filters(text))

    assert chosen("x") == tables[:1]
    assert chosen("a.*") == tables[:2]
    assert chosen('"a.b"."x, y" , b."q"""') == tables[2:]
    assert chosen('a."Y*"') == tables[1:2]
    assert chosen("*") == tables
    for text in ("", ",", "a,", "a.b.c", '"a', "a..b", "a b.c,,d", '""'):
        with pytest.raises(UsageError, match=r"^target_table: expected names"):
            parse_filters(text)


def test_scripts_and_listings() -> None:
    """What only psql knows goes from a script, but not from within it; rows are found by their names."""
    script = b"--\n\\restrict abc\nSET transaction_timeout = 0;\nSELECT '\n\\restrict no\n';\n\\unrestrict abc\n"
    assert statements_of(script, knows_transaction_timeout=True) == (
        b"--\nSET transaction_timeout = 0;\nSELECT '\n\\restrict no\n';\n"
    )
    assert b"transaction" not in statements_of(script, knows_transaction_timeout=False)
    wanted = b"1; 0 16 TABLE DATA a x y o\n3; 0 0 SEQUENCE SET a s o\n"
    listing = b"; head\n" + wanted + b"2; 0 17 TABLE DATA a xx o\n4; 1 2 TABLE a x o\n"
    assert rows_listed(listing, [TableName("a", "x")]) == wanted
