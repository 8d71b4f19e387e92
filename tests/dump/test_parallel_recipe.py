"""A parallel dump is an archive that PostgreSQL's own programs read."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pgkeep.streams.compression import Compression
from tests.dump.parallel import parallel_dump_of, parts, write_files
from tests.dump.sample import digests
from tests.lab.cluster import Cluster


@pytest.mark.pg(">=17")
@pytest.mark.parametrize("compression", [Compression.ZSTD, Compression.NONE], ids=lambda one: one.value)
def test_recipe_restores_without_pgkeep(
    large: Cluster, large_digests: dict[str, str], bin_dir: Path, tmp_path: Path, compression: Compression
) -> None:
    """restore.sh brings the database back with pg_restore, psql and zstd alone, and says when a chunk is missing."""
    backup = parallel_dump_of(large, "large", bin_dir=bin_dir, compression=compression)
    script = write_files(backup, tmp_path) / "large.parts" / "restore.sh"
    environment = {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PGHOST": str(large.socket_directory),
        "PGPORT": str(large.port),
        "PGUSER": "postgres",
    }

    def run() -> subprocess.CompletedProcess[str]:
        large.sql("DROP DATABASE IF EXISTS again")
        large.sql("CREATE DATABASE again TEMPLATE template0")
        return subprocess.run(["sh", script, "again"], env=environment, capture_output=True, text=True)

    try:
        done = run()
        assert (done.returncode, done.stdout, done.stderr) == (0, "restore.sh: restored\n", "")
        assert digests(large, "again") == large_digests
        chunk = script.parent / parts(backup, "large", "tables/public.ledger")[0]
        chunk.unlink()
        done = run()
        assert (done.returncode, done.stdout) == (1, "")
        assert "files in tables/public.ledger, expected" in done.stderr
    finally:
        large.sql("DROP DATABASE IF EXISTS again")
