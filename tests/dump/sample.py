"""A database with what dumps get wrong, a digest of its rows, and a backup held in memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgkeep.modes.contract import BackupRequest, Base
from pgkeep.modes.dump import DumpMode
from pgkeep.modes.dump_items import Select
from pgkeep.modes.dump_plan import DumpOptions, DumpPlan
from pgkeep.modes.dump_restore import restore
from pgkeep.modes.dump_restore_plan import DumpRestoreOptions, DumpRestorePlan, plan_restore
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.streams.item import BytesItem, Item, ItemHeader, ItemKind, content_of
from pgkeep.streams.record import Level, RecordHead, new_backup_id
from tests.lab.cluster import Cluster

WEIRD = 'we/ird "näme"'

SAMPLE = """
CREATE SCHEMA "Odd Schema";
CREATE TABLE account (id int PRIMARY KEY, owner text NOT NULL, balance numeric(12,2) NOT NULL, note text);
INSERT INTO account SELECT g, 'owner ' || g, g * 1.25, CASE WHEN g % 7 = 0 THEN E'tab\\t, line\\nend \\\\ "q"' END
  FROM generate_series(1, 4000) g;
ALTER TABLE account ALTER COLUMN owner SET (n_distinct = -0.5);
CREATE TABLE "Odd Schema"."Täble ""x"" y" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  account int REFERENCES account, doc jsonb, raw bytea, at timestamptz,
  twice int GENERATED ALWAYS AS (account * 2) STORED);
INSERT INTO "Odd Schema"."Täble ""x"" y" (account, doc, raw, at)
  SELECT g, jsonb_build_object('k', g, 'ä', repeat('ü', g % 50)), decode(md5(g::text), 'hex'),
         timestamptz '2024-03-31 01:30+01' + g * interval '1 hour'
  FROM generate_series(1, 1500) g;
CREATE TABLE event (id int, day date, what text) PARTITION BY RANGE (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2024-07-01');
CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2024-07-01') TO ('2025-01-01');
INSERT INTO event SELECT g, date '2024-01-01' + g % 366, 'event ' || g FROM generate_series(1, 1000) g;
CREATE INDEX ON event (day);
CREATE TABLE secret (id int PRIMARY KEY, belongs_to text, content text);
INSERT INTO secret SELECT g, 'nobody', md5(g::text) FROM generate_series(1, 100) g;
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE secret FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON secret USING (belongs_to = current_user);
CREATE TABLE nothing (id int);
CREATE VIEW rich AS SELECT * FROM account WHERE balance > 1000;
CREATE MATERIALIZED VIEW total AS SELECT sum(balance) AS total FROM account;
SELECT lo_from_bytea(4711, decode(repeat('00ff10', 100000), 'hex'));
SELECT lo_from_bytea(4712, 'second'::bytea);
COMMENT ON TABLE account IS 'it''s an account';
"""


def make_sample(cluster: Cluster, dbname: str) -> None:
    """Create database *dbname* with the sample in it."""
    quoted = '"' + dbname.replace('"', '""') + '"'
    cluster.sql(f"CREATE DATABASE {quoted}")
    cluster.sql(f'ALTER DATABASE {quoted} SET search_path TO "$user", public, "Odd Schema"')
    cluster.sql(f"COMMENT ON DATABASE {quoted} IS 'the sample'")
    with cluster.connect(dbname) as connection:
        connection.execute(SAMPLE.encode())


def digests(cluster: Cluster, dbname: str, *, without: str = "") -> dict[str, str]:
    """
    Return a digest of every table's rows, of every large object and of every sequence's state.

    *without* is a pattern for LIKE: tables of such a name are left out.
    """
    found: dict[str, str] = {}
    with cluster.connect(dbname) as connection:
        connection.execute("SET timezone TO 'UTC'; SET extra_float_digits TO 1")
        tables = connection.execute(
            """
            SELECT format('%%I.%%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'm', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
              AND n.nspname NOT LIKE 'pg_toast%%' AND c.relname NOT LIKE %s ORDER BY 1
            """,
            [without],
        ).fetchall()
        for (table,) in tables:
            # log_cnt of a sequence is how many values WAL holds ahead: not its state.
            query = f"""
                SELECT count(*), md5(string_agg(r.digest, '' ORDER BY r.digest))
                FROM (SELECT md5((to_jsonb(t) - 'log_cnt')::text) AS digest FROM (SELECT * FROM {table}) t) r
            """
            found[table] = str(connection.execute(query.encode()).fetchone())
        for oid, digest in connection.execute("SELECT oid, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1"):
            found[f"large object {oid}"] = digest
    return found


class NoHistory:
    """The history of a cluster that was never backed up."""

    def new_backup_id(self, begin: dt.datetime, level: Level) -> str:
        """Return the id that says just that."""
        return new_backup_id(begin, level)

    def newest(self, *, mode: str, levels: frozenset[Level], with_files: bool = False) -> Base | None:
        """Return None."""
        return None

    def wal_held(self) -> None:
        """Return None."""
        return

    def last_record(self, held: object) -> None:
        """Return None."""
        return


@dataclass
class MemoryBackup:
    """A backup held in memory: paths to headers and content, the record's head, and what was said."""

    headers: dict[str, ItemHeader] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    head: RecordHead | None = None
    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def accept(self, item: Item) -> None:
        """Take over *item*."""
        path = item.header.path
        assert path not in self.headers
        self.headers[path] = item.header
        content = b"".join(bytes(chunk) for chunk in content_of(item))  # type: ignore[arg-type]  # never unchanged
        assert item.header.size in (-1, len(content))
        self.content[path] = content

    def supply(self, select: Select) -> Iterator[BytesItem]:
        """Give the selected items."""
        for path, header in self.headers.items():
            if select(path):
                yield BytesItem(header, self.content[path])

    @property
    def files(self) -> list[str]:
        """Paths of the files, in the order in which they came."""
        return [path for path, header in self.headers.items() if header.kind is ItemKind.FILE]


def target_of(cluster: Cluster, **more: Any) -> ConnectionTarget:
    """Return how pgkeep connects to *cluster*."""
    return ConnectionTarget(**(cluster.connection_arguments() | more))


def request_for(options: DumpOptions, backup: MemoryBackup, *, level: Level = Level.FULL) -> BackupRequest:
    """Return the request of a dump whose log goes to *backup*."""
    return BackupRequest(
        cluster="main",
        prefix="@postgresql",
        mode="dump",
        level=level,
        begin=dt.datetime(2026, 11, 20, 20, 48, tzinfo=dt.UTC),
        options=options,
        say=backup.said.append,
        warn=backup.warned.append,
    )


def plan_dump(server: Server, options: DumpOptions, backup: MemoryBackup | None = None) -> DumpPlan:
    """Plan a dump."""
    request = request_for(options, MemoryBackup() if backup is None else backup)
    return DumpMode().plan(request, server=server, history=NoHistory())


def dump(server: Server, options: DumpOptions, backup: MemoryBackup | None = None) -> MemoryBackup:
    """Make a dump and hold it in memory, in *backup* if given."""
    backup = backup or MemoryBackup()
    plan = plan_dump(server, options, backup)
    with DumpMode().open(plan, server=server) as source:
        for item in source.items():
            backup.accept(item)
        backup.head = source.finish()
        source.confirm()
    return backup


def dump_cluster(cluster: Cluster, *, bin_dir: Path, databases: Iterable[str] = (), **more: Any) -> MemoryBackup:
    """Make a dump of *cluster* as its superuser."""
    with Server.open(target_of(cluster)) as server:
        return dump(server, DumpOptions(databases=tuple(databases), bin_dir=bin_dir, **more))


def restore_cluster(
    cluster: Cluster, backup: MemoryBackup, *, bin_dir: Path, **more: Any
) -> tuple[DumpRestorePlan, list[str], list[str]]:
    """Restore *backup* into *cluster* as its superuser; return the plan, what was said and what was warned of."""
    said: list[str] = []
    warned: list[str] = []
    assert backup.head is not None
    with Server.open(target_of(cluster)) as server:
        options = DumpRestoreOptions(bin_dir=bin_dir, **more)
        plan = plan_restore(backup.head, options, server=server, warn=warned.append)
        restore(plan, backup.supply, server=server, say=said.append, warn=warned.append)
    return plan, said, warned


_HASHED = """
CREATE TABLE beside AS SELECT g AS id, repeat('b', 100) AS body FROM generate_series(1, 2000) g;
DO $$ BEGIN
  EXECUTE 'CREATE TYPE letter AS ENUM (' || (SELECT string_agg(quote_literal(g), ',') FROM generate_series(1, 64) g)
    || ')';
  CREATE TABLE ranged (id int, body text) PARTITION BY RANGE (id);
  CREATE TABLE ranged_low PARTITION OF ranged FOR VALUES FROM (0) TO (50);
  CREATE TABLE ranged_high PARTITION OF ranged FOR VALUES FROM (50) TO (100);
  INSERT INTO ranged SELECT g, repeat('r', 10) FROM generate_series(0, 99) g;
  CREATE TYPE pair AS (one letter, two int);
  CREATE TYPE letters AS RANGE (subtype = letter);
  CREATE TABLE hashed (which <key>, id int, body text) PARTITION BY HASH (which);
  FOR i IN 0..1 LOOP
    EXECUTE format('CREATE TABLE hashed_%s PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER %s) '
      'PARTITION BY RANGE (id)', i, i);
    EXECUTE format('CREATE TABLE hashed_%s_low PARTITION OF hashed_%s FOR VALUES FROM (MINVALUE) TO (3000)', i, i);
    EXECUTE format('CREATE TABLE hashed_%s_rest PARTITION OF hashed_%s DEFAULT', i, i);
  END LOOP;
  INSERT INTO hashed SELECT <value>, g, repeat('e', 100) FROM generate_series(1, 6000) g;
END $$
"""


def hashed_sql(key: str, value: str) -> str:
    """Return what makes ``hashed``, partitioned by hash of a *key* made of an enum, and ``ranged`` beside it."""
    return _HASHED.replace("<key>", key).replace("<value>", value.format("(enum_range(NULL::letter))[g % 64 + 1]"))
