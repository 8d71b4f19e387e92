"""
Block-level backups of mode pitr_block, and their restore, each against the peers that do the same.

The server is PostgreSQL 17 of Debian trixie, the newest that the pgBackRest of that release backs up; it summarizes its
WAL. Between two backups of a side one row changes in each of the same blocks, 1 % of all, and the server has made a
checkpoint and summarized its WAL, as at the end of a day. Then each side backs that up, once, on its backup before.

Durability is equal: pgBackRest syncs what it writes, pg_basebackup and pg_combinebackup sync their output at the end,
and so does pgkeep (volumes, WAL and record of a backup; the target at the end of a chain that is rolled forward). The
directories that are laid down for pg_combinebackup are not synced, since they are in between only. Two workers or
processes and zstd level 1 everywhere. What pgkeep alone does is not evened out: it carries all WAL since the backup
before, where pg_basebackup has that of the backup, and pgBackRest's was archived before the clock started; and it has
an interpreter to start, which is most of its time where little has changed.

Seen with 2.4 GB on two processors and a disk that writes 2.2 GB a second, by these benches: 0.20 of pgBackRest's time
(goal 0.35), 0.37 of laying down and pg_combinebackup (goal 0.5; 3.1 s, no disk besides the cluster, where those take
105 % more), and 4.6 times that of pg_basebackup (goal 1.1, not met): 0.48 s against 0.10 s. Of the 0.48 s, 0.17 s are
the interpreter and the libraries that it loads, psycopg for half of it, before the first question; 0.05 s the gate;
0.15 s the server's work on the backup, which is all that pg_basebackup waits for; 0.06 s the 64 MB of WAL. With a third
of all blocks changed it was 2.4 s against 1.0 s, 0.9 s of it for 700 MB of WAL. On a slower disk and processor (0.9 GB
a second): 0.10, 0.53 to 0.56, and 6.

PGKEEP_BENCH_SCALE is pgbench's scale, 115 for 2 GB.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab import SCALE, TEXT_ROWS, BenchCluster, Result, alternate, cluster, pgbackrest, pgkeep_command, run, say
from tests.lab.servers import debian_program, installation

CLUSTER = "bench"
_SCALE = int(os.environ.get("PGKEEP_BENCH_SCALE", str(SCALE)))
_SETTINGS = "summarize_wal = on\nwal_keep_size = 4GB\n"
_STEP = 100
"""One block of so many changes."""

_SUMMARY_SECONDS = 60
_SAMPLE_SECONDS = 0.02


@dataclass(slots=True)
class BlockBench:
    """A running server, a vault, and a chain of pg_basebackup's directories over it."""

    server: BenchCluster
    vault: Path
    directories: list[Path] = field(default_factory=list)

    @property
    def where(self) -> list[str]:
        """Options of pgkeep that lead to the server."""
        return [f"--host={self.server.directory}", f"--port={self.server.port}", "--user=postgres"]

    def pgkeep(self, verb: str, *options: str) -> str:
        """Run pgkeep on the bench's cluster; return its output."""
        return run([*pgkeep_command(), verb, CLUSTER, f"--vault={self.vault}", *options])

    def backup(self, level: str) -> str:
        """Make a backup with pgkeep, which must be of that *level*; return its id."""
        report = json.loads(
            self.pgkeep(
                *("backup", "--mode=pitr_block", f"--level={level}", "--start-fast", "--jobs=2", "--json"), *self.where
            )
        )
        if report["level"] != level.capitalize():
            raise SystemExit(f"bench: asked for {level}, made {report['level']}: {report['warnings']}")
        return str(report["backup_id"])

    def base_backup(self) -> None:
        """Make the next directory with pg_basebackup, the first one full: tars, zstd level 1, WAL, manifest, synced."""
        target = self.server.directory / f"basebackup-{len(self.directories)}"
        program = str(self.server.bin_directory / "pg_basebackup")
        run(
            [
                *(program, "-h", str(self.server.directory), "-p", str(self.server.port), "-U", "postgres"),
                *("-D", str(target), "-Ft", "--compress=client-zstd:level=1,workers=2", "-X", "fetch", "-c", "fast"),
                *([f"--incremental={self.directories[-1]}/backup_manifest"] if self.directories else []),
            ]
        )
        self.directories.append(target)

    def change(self) -> None:
        """Change a row in each of the same blocks, and wait until the server has summarized that."""
        # By block, not by row: what the bench is of is in its name.
        for name, row in (("pgbench_accounts", "abalance = abalance + 1"), ("notes", "id = -id")):
            blocks = self.server.psql(f"SELECT pg_relation_size('{name}') / 8192")
            self.server.psql(
                f"UPDATE {name} SET {row} WHERE ctid = ANY (ARRAY(SELECT (SELECT t.ctid FROM {name} t WHERE "
                f"t.ctid >= format('(%s,0)', b)::tid AND t.ctid < format('(%s,0)', b + 1)::tid LIMIT 1) "
                f"FROM generate_series(0, {int(blocks)} - 1, {_STEP}) b))"
            )
        self.server.psql("CHECKPOINT")
        redo = self.server.psql("SELECT redo_lsn FROM pg_control_checkpoint()").strip()
        deadline = time.monotonic() + _SUMMARY_SECONDS
        pause = threading.Event()
        while self.server.psql(f"SELECT max(end_lsn) >= '{redo}' FROM pg_available_wal_summaries()").strip() != "t":
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: the server has not summarized its WAL up to {redo}")
            pause.wait(0.1)

    def change_once_a_round(self) -> Callable[[], None]:
        """Return what changes blocks before the first side of a round, so that both build on the same changes."""
        turns = itertools.cycle((True, False))

        def change() -> None:
            if next(turns):
                self.change()

        return change

    def scratch(self, name: str) -> Path:
        """Return a path for a directory to be made, with nothing there."""
        path = self.server.directory / name
        shutil.rmtree(path, ignore_errors=True)
        return path


@contextlib.contextmanager
def block_bench(workdir: Path) -> Iterator[BlockBench]:
    """Make everything that these benches need."""
    text_rows = max(1, TEXT_ROWS * _SCALE // SCALE)
    with cluster(
        workdir,
        scale=_SCALE,
        text_rows=text_rows,
        bin_directory=installation(17).bin_dir,
        fill_factor=90,
        settings=_SETTINGS,
    ) as server:
        bench = BlockBench(server, server.directory / "vault")
        bench.pgkeep("init", *bench.where)
        yield bench


def incremental_pgbackrest(bench: BlockBench) -> Result:
    """An Incremental, against ``pgbackrest backup --type=incr`` with bundles and block incrementals."""
    program = str(debian_program("pgbackrest", suite="trixie"))
    with pgbackrest(bench.server, program=program, options="repo1-bundle=y\nrepo1-block=y\n") as command:
        bench.backup("full")
        run([*command, "--type=full", "backup"])
        ours, peer = alternate(
            lambda: bench.backup("incremental"),
            lambda: run([*command, "--type=incr", "backup"]),
            before=bench.change_once_a_round(),
        )
    bench.server.configure(archive_mode="off")
    return Result("block-incr-pgbackrest", ours, "pgbackrest backup --type=incr, bundle and block", peer, 0.35)


def incremental_basebackup(bench: BlockBench) -> Result:
    """An Incremental, against ``pg_basebackup --incremental``."""
    bench.backup("full")
    _forget(bench)
    bench.base_backup()
    ours, peer = alternate(lambda: bench.backup("incremental"), bench.base_backup, before=bench.change_once_a_round())
    _forget(bench)
    return Result("block-incr-basebackup", ours, "pg_basebackup --incremental", peer, 1.1)


def restore(bench: BlockBench) -> Result:
    """A Full and three Incrementals, durable, against laying the directories down and ``pg_combinebackup``."""
    _forget(bench)
    backup_id = bench.backup("full")
    bench.base_backup()
    for _ in range(3):
        bench.change()
        backup_id = bench.backup("incremental")
        bench.base_backup()
    target, parts = bench.server.directory / "restored", bench.server.directory / "parts"

    def empty() -> None:
        for path in (target, parts):
            bench.scratch(path.name)
            run(["mkdir", "-m", "0700", str(path)])

    def ours() -> None:
        programs = f"--bin-dir={bench.server.bin_directory}"
        bench.pgkeep("restore", f"--pgdata-dir={target}", f"--backup-id={backup_id}", "--jobs=2", programs)

    def peer() -> None:
        places = [str(parts / directory.name) for directory in bench.directories]
        for place, directory in zip(places, bench.directories, strict=True):
            run(["mkdir", "-m", "0700", place])
            run(["sh", "-c", f"zstd -dcq {directory}/base.tar.zst | tar -xf - -C {place}"])
            run(["cp", f"{directory}/backup_manifest", place])
        run([str(bench.server.bin_directory / "pg_combinebackup"), *places, "-o", str(target)])

    ours_seconds, peer_seconds = alternate(ours, peer, before=empty)
    percent = {}
    for side, action in (("ours", ours), ("peer", peer)):
        empty()
        percent[f"{side}_extra_disk_percent"] = _extra_disk(action, bench.server.directory, target)
    empty()
    _forget(bench)
    name = "pg_basebackup's directories laid down, pg_combinebackup"
    return Result("block-restore", ours_seconds, name, peer_seconds, 0.5, more=percent)


def _forget(bench: BlockBench) -> None:
    """Remove pg_basebackup's directories."""
    while bench.directories:
        shutil.rmtree(bench.directories.pop())


def _extra_disk(action: Callable[[], object], directory: Path, result: Path) -> float:
    """Return by how many percent of *result* the disk of *directory* was fuller, at its fullest, than afterwards."""
    begin, peak, is_over = _used_bytes(directory), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(_SAMPLE_SECONDS):
            peak = max(peak, _used_bytes(directory))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        action()
    finally:
        is_over.set()
        thread.join()
    os.sync()
    size = int(re.match(r"\d+", run(["du", "-sk", str(result)]))[0]) << 10  # type: ignore[index]
    extra = 100 * (max(peak, _used_bytes(directory)) - begin - size) / size
    say(f"  {extra:.2f} % of the cluster more than the cluster")
    return round(extra, 2)


def _used_bytes(directory: Path) -> int:
    """Return how full the file system is: files without a name count, as do those of anybody else."""
    status = os.statvfs(directory)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


BENCHES: dict[str, Callable[[BlockBench], Result]] = {
    "block-incr-pgbackrest": incremental_pgbackrest,
    "block-incr-basebackup": incremental_basebackup,
    "block-restore": restore,
}
