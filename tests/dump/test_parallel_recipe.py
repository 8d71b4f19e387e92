"""A parallel dump is an archive that PostgreSQL's own programs read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pgkeep.streams.compression import Compression
from tests.dump.parallel import parallel_dump_of, parts, write_files
from tests.dump.sample import digests, restore_cluster
from tests.lab.cluster import Cluster


@pytest.mark.pg(">=17")
@pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.NONE], ids=lambda one: one.value)
def test_recipe_restores_without_pgkeep(
    large: Cluster, large_digests: dict[str, str], bin_dir: Path, tmp_path: Path, compression: Compression
) -> None:
    """restore.sh brings the database back with pg_restore, psql and zstd alone, and says when a chunk is missing."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir, compression=compression)
    script = write_files(backup, tmp_path) / "large.parts" / "restore.sh"
    try:
        done = run_recipe(script, large, bin_dir)
        assert (done.returncode, done.stdout, done.stderr) == (0, "restore.sh: restored\n", "")
        assert digests(large, "again") == large_digests
        chunk = script.parent / parts(backup, "large", "tables/public.ledger")[0]
        if compression is Compression.NONE:
            # Cut between two rows, it is a chunk like any other; only the number of rows tells.
            whole = chunk.read_bytes()
            chunk.write_bytes(whole[: whole.index(b"\n") + 1])
            done = run_recipe(script, large, bin_dir)
            assert (done.returncode, done.stdout) == (1, "")
            assert "rows in tables/public.ledger, expected" in done.stderr
        chunk.unlink()
        done = run_recipe(script, large, bin_dir)
        assert (done.returncode, done.stdout) == (1, "")
        assert "files in tables/public.ledger, expected" in done.stderr
    finally:
        large.sql("DROP DATABASE IF EXISTS again")


@pytest.mark.pg(">=17")
def test_recipe_where_the_database_has_another_encoding(large: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """The names in restore.sh are what they are, whatever encoding psql would choose by itself."""
    large.sql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    try:
        with large.connect("latin", client_encoding="UTF8") as connection:
            connection.execute("""CREATE TABLE "tä" AS SELECT repeat('ü', 100) AS v FROM generate_series(1, 900)""")
        backup = parallel_dump_of(large, "latin", bin_dir=bin_dir, include_globals=False)
        script = write_files(backup, tmp_path) / "latin.parts" / "restore.sh"
        done = run_recipe(script, large, bin_dir, encoding="LATIN1")
        assert (done.returncode, done.stdout, done.stderr) == (0, "restore.sh: restored\n", "")
        with large.connect("again", client_encoding="UTF8") as connection:
            query = """SELECT count(*), min(v), max(v) FROM "tä" """
            assert connection.execute(query).fetchone() == (900, "ü" * 100, "ü" * 100)
    finally:
        large.sql("DROP DATABASE IF EXISTS again")
        large.sql("DROP DATABASE latin")


@pytest.mark.pg(">=17")
def test_sequences_without_a_row(large: Cluster, bin_dir: Path, tmp_path: Path) -> None:
    """Where pg_dump copies no row there is no piece, and the values of sequences come back all the same."""
    large.sql("CREATE DATABASE counted")
    large.sql("CREATE SEQUENCE counter START 41; SELECT nextval('counter'), nextval('counter')", dbname="counted")
    names: dict[str, Any] = {"databases": ("counted",), "new_database": "again", "tmpdir": tmp_path / "staging"}
    try:
        backup = parallel_dump_of(large, "counted", bin_dir=bin_dir, include_globals=False)
        assert parts(backup, "counted", "data/") == []
        restore_cluster(large, backup, bin_dir=bin_dir, **names)
        assert large.value("SELECT nextval('counter')", dbname="again") == 43
        script = write_files(backup, tmp_path) / "counted.parts" / "restore.sh"
        done = run_recipe(script, large, bin_dir)
        assert (done.returncode, done.stdout, done.stderr) == (0, "restore.sh: restored\n", "")
        assert large.value("SELECT nextval('counter')", dbname="again") == 43
    finally:
        large.sql("DROP DATABASE IF EXISTS again")
        large.sql("DROP DATABASE counted")


def run_recipe(
    script: Path, cluster: Cluster, bin_dir: Path, *, encoding: str = "UTF8"
) -> subprocess.CompletedProcess[str]:
    """Run *script* on a new database ``again``."""
    environment = {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PGHOST": str(cluster.socket_directory),
        "PGPORT": str(cluster.port),
        "PGUSER": "postgres",
    }
    cluster.sql("DROP DATABASE IF EXISTS again")
    cluster.sql(f"CREATE DATABASE again TEMPLATE template0 ENCODING '{encoding}'")
    return subprocess.run(["sh", script, "again"], env=environment, capture_output=True, text=True)
