"""
Logical dumps and their restore, each against PostgreSQL's own programs of the same version.

The dumps go nowhere on both sides, uncompressed: pg_dump writes to /dev/null, pgkeep's items are read and dropped. Both
include the start of their program. ``dump-small`` is against a directory, since that is the format that pg_dump writes
with two workers; it does not sync. After it, both bring the tables back, and their rows must be equal. A restore makes
a new database from what lies on disk, indexes included; pgkeep also checks every digest, counts the rows and runs
ANALYZE at its end, which pg_restore does not. PGKEEP_BENCH_SCALE is pgbench's scale, 115 for 1.5 GB;
PGKEEP_BENCH_TABLES the number of small tables.

Seen on a quiet machine with two processors, in medians of three rounds, two for the small tables: ``dump-table-2`` 0.69
(goal 0.9), ``dump-table-1`` 1.04 (1.05), ``dump-small`` 0.59 (1.0), ``dump-restore`` 0.75 (0.8).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.lab import SCALE, BenchCluster, Result, alternate, cluster, pgkeep_command, run

_SCALE = int(os.environ.get("PGKEEP_BENCH_SCALE", str(SCALE)))
_SMALL_TABLES = int(os.environ.get("PGKEEP_BENCH_TABLES", "10000"))
_DATABASE = "small"


@contextlib.contextmanager
def dump_bench(workdir: Path) -> Iterator[BenchCluster]:
    """Make a server with one large table."""
    with cluster(workdir, scale=_SCALE, text_rows=1) as server:
        server.configure(max_locks_per_transaction="1024")
        yield server


def table_1(server: BenchCluster) -> Result:
    """One worker."""
    return _table(server, "dump-table-1", 1, 1.05)


def table_2(server: BenchCluster) -> Result:
    """Two workers."""
    return _table(server, "dump-table-2", 2, 0.9)


def small(server: BenchCluster) -> Result:
    """Many tables of ten rows."""
    server.psql(f"CREATE DATABASE {_DATABASE}")
    make = (
        "DO $$ BEGIN FOR i IN {0}..{1} LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', i); "
        "EXECUTE format('INSERT INTO t%s SELECT g, md5(g::text) FROM generate_series(1, 10) g', i); END LOOP; END $$"
    )
    for first in range(0, _SMALL_TABLES, 500):
        _psql(server, _DATABASE, make.format(first, first + 499))
    directory = server.directory / "small.dir"
    ours, peer = alternate(
        lambda: _ours(server, _DATABASE, 2),
        lambda: _client(server, "pg_dump", "-Fd", "-j2", "-Z0", "--no-sync", "-f", str(directory), _DATABASE),
        before=lambda: shutil.rmtree(directory, ignore_errors=True),
    )
    shutil.rmtree(directory, ignore_errors=True)
    _check_equal(server, _DATABASE)
    server.psql(f"DROP DATABASE {_DATABASE}")
    return Result("dump-small", ours, "pg_dump -Fd -j2 -Z0", peer, 1.0)


def restore(server: BenchCluster) -> Result:
    """The large table and its index, two workers."""
    vault, directory = server.directory / "vault", server.directory / "restore.dir"
    where = [f"--host={server.directory}", f"--port={server.port}", "--user=postgres"]
    pgkeep = [*pgkeep_command()]
    run([*pgkeep, "init", "bench", f"--vault={vault}", *where])
    run(
        [
            *(*pgkeep, "backup", "bench", f"--vault={vault}", "--mode=parallel_dump", "--parallel-tables=2"),
            *("--large-table-threshold=64M", "--database=postgres", f"--bin-dir={server.bin_directory}", *where),
        ]
    )
    _client(server, "pg_dump", "-Fd", "-j2", "-Z1", "-f", str(directory), "postgres")
    target = ["--target-database=postgres", "--new-database=again", "--jobs=2", f"--tmpdir={server.directory}/tmp"]

    def peer() -> None:
        server.psql("CREATE DATABASE again TEMPLATE template0")
        _client(server, "pg_restore", "-j2", "-d", "again", str(directory))

    ours_seconds, peer_seconds = alternate(
        lambda: run(
            [*pgkeep, "restore", "bench", f"--vault={vault}", *target, f"--bin-dir={server.bin_directory}", *where]
        ),
        peer,
        before=lambda: server.psql("DROP DATABASE IF EXISTS again"),
    )
    server.psql("DROP DATABASE again")
    return Result("dump-restore", ours_seconds, "pg_restore -j2 of a directory", peer_seconds, 0.8)


def _table(server: BenchCluster, name: str, workers: int, goal: float) -> Result:
    program = server.bin_directory / "pg_dump"
    where = f"-h {server.directory} -p {server.port} -U postgres"
    ours, peer = alternate(
        lambda: _ours(server, "postgres", workers),
        lambda: run(["sh", "-c", f"exec {program} -Fc -Z0 {where} postgres > /dev/null"]),
    )
    return Result(name, ours, "pg_dump -Fc -Z0", peer, goal)


def _check_equal(server: BenchCluster, database: str) -> None:
    """End the bench unless what pgkeep brings back has the digests of what pg_dump and pg_restore bring back."""
    vault, archive = server.directory / "small-vault", server.directory / "small.dump"
    where = [f"--host={server.directory}", f"--port={server.port}", "--user=postgres"]
    arguments = ["bench", f"--vault={vault}", f"--bin-dir={server.bin_directory}", *where]
    run([*pgkeep_command(), "init", "bench", f"--vault={vault}", *where])
    run([*pgkeep_command(), "backup", *arguments, "--mode=parallel_dump", f"--database={database}"])
    target = [f"--target-database={database}", "--new-database=ours", "--jobs=2", f"--tmpdir={server.directory}/tmp"]
    run([*pgkeep_command(), "restore", *arguments, *target])
    _client(server, "pg_dump", "-Fc", "-Z0", "-f", str(archive), database)
    server.psql("CREATE DATABASE peers TEMPLATE template0")
    _client(server, "pg_restore", "-j2", "-d", "peers", str(archive))
    ours, peers = (_digests(server, name) for name in ("ours", "peers"))
    if ours != peers or len(ours) != _SMALL_TABLES:
        raise SystemExit(f"bench: what comes back of {database} is not what pg_restore brings back")
    for name in ("ours", "peers"):
        server.psql(f"DROP DATABASE {name}")
    archive.unlink()
    shutil.rmtree(vault)


def _digests(server: BenchCluster, database: str) -> dict[str, str]:
    """Return a digest of the rows of each small table."""
    found: dict[str, str] = {}
    for start in range(0, _SMALL_TABLES, 250):
        query = " UNION ALL ".join(
            f"SELECT 't{n}', count(*) || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM t{n} AS t"
            for n in range(start, min(start + 250, _SMALL_TABLES))
        )
        found |= dict(line.split("|") for line in _psql(server, database, query).splitlines())
    return found


def _ours(server: BenchCluster, database: str, workers: int) -> None:
    script = str(Path(__file__).with_name("dump_null.py"))
    arguments = [str(server.directory), str(server.port), database, str(workers), str(server.bin_directory)]
    run([sys.executable, script, *arguments])


def _client(server: BenchCluster, program: str, *arguments: str) -> str:
    where = ["-h", str(server.directory), "-p", str(server.port), "-U", "postgres"]
    return run([str(server.bin_directory / program), *where, *arguments])


def _psql(server: BenchCluster, database: str, command: str) -> str:
    return _client(server, "psql", "-XAtq", "-d", database, "-c", command)


BENCHES: dict[str, Callable[[BenchCluster], Result]] = {
    "dump-table-1": table_1,
    "dump-table-2": table_2,
    "dump-small": small,
    "dump-restore": restore,
}
