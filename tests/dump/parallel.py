"""Parallel dumps held in memory, and a database with tables that workers copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pgkeep.modes.parallel_dump import ParallelDumpMode
from pgkeep.modes.parallel_dump_plan import ParallelDumpOptions, ParallelDumpPlan
from pgkeep.server.connection import Server
from tests.dump.sample import MemoryBackup, NoHistory, request_for, target_of
from tests.lab.cluster import Cluster

ROOT = "@postgresql/parallel_dump"

LARGE = """
CREATE SCHEMA "Odd.Sch ema";
CREATE TABLE ledger (id bigint PRIMARY KEY, body text, amount numeric);
INSERT INTO ledger SELECT g, repeat(md5(g::text), 3), g * 1.01 FROM generate_series(1, 12000) g;
DELETE FROM ledger WHERE id % 3 = 0;
UPDATE ledger SET body = body || 'x' WHERE id % 5 = 0;
CREATE TABLE "Odd.Sch ema"."we/ird ""tä"" ble" (
  "from" int GENERATED ALWAYS AS IDENTITY (START 100), "Wörd" text, dropped int, doc text,
  twice int GENERATED ALWAYS AS (length("Wörd") * 2) STORED, day date DEFAULT '2026-01-01');
ALTER TABLE "Odd.Sch ema"."we/ird ""tä"" ble" DROP COLUMN dropped;
INSERT INTO "Odd.Sch ema"."we/ird ""tä"" ble" ("Wörd", doc)
  SELECT E'tab\\t\\\\ line\\n ü' || g, '<a b="' || g || '">ä</a>' FROM generate_series(1, 3000) g;
CREATE TABLE part (id numeric(20,2) NOT NULL, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (0);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (0) TO (MAXVALUE) PARTITION BY RANGE (id);
CREATE TABLE part_high_1 PARTITION OF part_high FOR VALUES FROM (0) TO (1000000);
CREATE TABLE part_high_2 PARTITION OF part_high FOR VALUES FROM (1000000) TO (MAXVALUE);
INSERT INTO part SELECT (g - 3000) * 997.5, repeat('p', 60) FROM generate_series(1, 6000) g;
CREATE TABLE parent (id int PRIMARY KEY, txt text);
CREATE TABLE child (extra text) INHERITS (parent);
INSERT INTO parent SELECT g, repeat('q', 80) FROM generate_series(1, 2000) g;
INSERT INTO child SELECT g, repeat('r', 80), 'x' FROM generate_series(5000, 7000) g;
CREATE TABLE refers (id int PRIMARY KEY, ledger bigint REFERENCES ledger);
INSERT INTO refers SELECT g, g * 3 + 1 FROM generate_series(1, 2000) g;
CREATE UNLOGGED TABLE volatile AS SELECT g AS id, repeat('u', 80) AS v FROM generate_series(1, 1500) g;
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy ü');
CREATE TYPE pair AS (a int, b text);
CREATE TABLE kinds (p positive, m mood, c pair, r int4range, a text[], b bytea, j jsonb, i interval, f float8,
  at timestamptz, u uuid, n inet, bits bit(5), ts tsvector, pt point);
INSERT INTO kinds SELECT g, (ARRAY['sad','ok','happy ü'])[g % 3 + 1]::mood, (g, E'b,"\\n' || g)::pair,
  int4range(g, g + 5), ARRAY['a', NULL, E'\\\\', 'ü' || g], decode(md5(g::text), 'hex'), jsonb_build_object('k', g),
  g * interval '1 day 3 seconds', CASE g % 4 WHEN 0 THEN 'NaN'::float8 WHEN 1 THEN 'Infinity' ELSE g / 3.0 END,
  timestamptz '2024-03-31 01:30+01' + g * interval '1 hour', md5(g::text)::uuid, '10.0.0.1', B'10110',
  to_tsvector('simple', 'word' || g), point(g, g) FROM generate_series(1, 2000) g;
CREATE INDEX ON kinds (p);
CREATE MATERIALIZED VIEW totals AS SELECT count(*) AS n FROM ledger;
CREATE SEQUENCE loose START 7;
SELECT nextval('loose'), nextval('loose');
CREATE TABLE nothing (id int);
CREATE TABLE without_columns ();
SELECT lo_from_bytea(4711, decode(repeat('00ff10', 100000), 'hex'));
"""
"""With ``whole_bytes`` of a few kilobytes, workers copy nearly everything in it."""

SMALL = {"whole_bytes": 64 << 10, "threshold_bytes": 200 << 10, "range_bytes": 32 << 10, "chunk_bytes": 100 << 10}
"""Limits at which tables of a test are large."""


def make_large(cluster: Cluster, dbname: str) -> None:
    """Create database *dbname* with the tables in it."""
    cluster.sql(f'CREATE DATABASE "{dbname}"')
    with cluster.connect(dbname) as connection:
        connection.execute(LARGE.encode())
        connection.execute("ANALYZE")


def options_for(bin_dir: Path, **more: Any) -> ParallelDumpOptions:
    """Return options at whose limits the tables of a test are large."""
    return ParallelDumpOptions(**{"bin_dir": bin_dir, "workers": 3, "jobs": 2, **SMALL, **more})


def plan_parallel(server: Server, options: ParallelDumpOptions, backup: MemoryBackup) -> ParallelDumpPlan:
    """Plan a parallel dump."""
    request = dataclasses.replace(request_for(options, backup), mode="parallel_dump")
    return ParallelDumpMode().plan(request, server=server, history=NoHistory())


def parallel_dump(server: Server, options: ParallelDumpOptions, backup: MemoryBackup | None = None) -> MemoryBackup:
    """Make a parallel dump and hold it in memory."""
    backup = backup or MemoryBackup()
    plan = plan_parallel(server, options, backup)
    with ParallelDumpMode().open(plan, server=server) as source:
        for item in source.items():
            backup.accept(item)
        backup.head = source.finish()
        source.confirm()
    return backup


def parallel_dump_of(cluster: Cluster, *databases: str, bin_dir: Path, **more: Any) -> MemoryBackup:
    """Make a parallel dump of *cluster* as its superuser."""
    with Server.open(target_of(cluster)) as server:
        return parallel_dump(server, options_for(bin_dir, databases=databases, **more))


def parts(backup: MemoryBackup, dbname: str, below: str = "") -> list[str]:
    """Return the paths of the parts of *dbname*, relative to their directory, sorted."""
    root = f"{ROOT}/{dbname}.parts/"
    return sorted(path.removeprefix(root) for path in backup.files if path.startswith(root + below))


def write_files(backup: MemoryBackup, directory: Path, paths: Iterable[str] | None = None) -> Path:
    """Write the files of *backup* into *directory*; return where those of the mode are."""
    for path in backup.files if paths is None else paths:
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(backup.content[path])
    return directory / ROOT
