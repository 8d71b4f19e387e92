"""
Whole backups and restores of a 2 GB cluster, each against the peer that does the same.

Both sides run as the server's user, two workers or processes, zstd level 1, page checksums checked. Durability is made
equal: pgBackRest syncs every file and directory that it writes, pg_basebackup syncs its output at the end, and so
does pgkeep (volumes and record at the end of a backup; the whole target by one barrier at the end of a lay-down).

What differs between pgkeep and pg_basebackup is told here, and not evened out. Both ask for a BASE_BACKUP with a fast
checkpoint and a manifest with CRC-32C, and compress as clients, with two workers. pg_basebackup writes one tar of one
frame, and has the server add up the sizes of its files first. pgkeep digests everything (content and stored bytes,
BLAKE3), writes frames that can be read alone, makes a slot, and takes the WAL by a second stream, where pg_basebackup
has it within the first. It also has an interpreter to start, with bytecode at hand as in an installed package.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.lab import BenchCluster, Result, alternate, cluster, pgbackrest, pgkeep_command, run

CLUSTER = "bench"


@dataclass(slots=True)
class PhysicalBench:
    """A running server, a vault and a stanza over it."""

    server: BenchCluster
    vault: Path
    peer: list[str]

    def pgkeep(self, verb: str, *options: str) -> str:
        """Run pgkeep on the bench's cluster; return its output."""
        return run([*pgkeep_command(), verb, CLUSTER, f"--vault={self.vault}", *options])

    def backup(self, *options: str) -> dict[str, str]:
        """Make a Full with pgkeep; return its report."""
        where = [f"--host={self.server.directory}", f"--port={self.server.port}", "--user=postgres"]
        report: dict[str, str] = json.loads(
            self.pgkeep("backup", "--mode=pitr", "--level=full", "--start-fast", "--jobs=2", "--json", *where, *options)
        )
        return report

    def scratch(self, name: str) -> Path:
        """Return a path for a directory to be made, with nothing there."""
        path = self.server.directory / name
        shutil.rmtree(path, ignore_errors=True)
        return path


@contextlib.contextmanager
def physical_bench(workdir: Path) -> Iterator[PhysicalBench]:
    """Make everything that these benches need."""
    with cluster(workdir) as server, pgbackrest(server) as peer:
        vault = server.directory / "vault"
        bench = PhysicalBench(server, vault, peer)
        where = [f"--host={server.directory}", f"--port={server.port}", "--user=postgres"]
        bench.pgkeep("init", *where)
        yield bench


def pitr_full(bench: PhysicalBench) -> Result:
    """A Full into the vault, against ``pgbackrest backup --type=full``."""
    ours, peer = alternate(
        lambda: bench.backup("--transport=local"), lambda: run([*bench.peer, "--type=full", "backup"])
    )
    return Result("pitr-full", ours, "pgbackrest backup --type=full", peer, 0.9)


def stream_full(bench: PhysicalBench) -> Result:
    """A Full over the replication protocol, against pg_basebackup: tar, zstd level 1, WAL, manifest, synced."""
    program = str(bench.server.bin_directory / "pg_basebackup")
    target = bench.server.directory / "basebackup"

    def peer_backup() -> None:
        run(
            [
                *(program, "-h", str(bench.server.directory), "-p", str(bench.server.port), "-U", "postgres"),
                *("-D", str(target), "-Ft", "--compress=client-zstd:level=1,workers=2", "-X", "fetch", "-c", "fast"),
            ]
        )

    ours, peer = alternate(
        lambda: bench.backup("--transport=stream"), peer_backup, before=lambda: bench.scratch("basebackup")
    )
    bench.scratch("basebackup")
    return Result("stream-full", ours, "pg_basebackup", peer, 1.1)


def restore(bench: PhysicalBench) -> Result:
    """Files and recovery settings of a Full, durable, against ``pgbackrest restore``."""
    backup_id = bench.backup("--transport=local")["backup_id"]
    run([*bench.peer, "--type=full", "backup"])
    target = bench.server.directory / "restored"

    def empty() -> None:
        bench.scratch("restored")
        run(["mkdir", "-m", "0700", str(target)])

    ours, peer = alternate(
        lambda: bench.pgkeep("restore", f"--pgdata-dir={target}", f"--backup-id={backup_id}", "--jobs=2"),
        lambda: run([*bench.peer, f"--pg1-path={target}", "restore"]),
        before=empty,
    )
    bench.scratch("restored")
    return Result("restore", ours, "pgbackrest restore", peer, 0.6)


def verify(bench: PhysicalBench) -> Result:
    """Every digest and page of a Full, against making one."""
    backup_id = bench.backup("--transport=local")["backup_id"]
    ours, peer = alternate(
        lambda: bench.pgkeep("verify", f"--backup-id={backup_id}", "--jobs=2"),
        lambda: bench.backup("--transport=local"),
    )
    return Result("verify", ours, "pgkeep backup --level=full", peer, 0.5)


BENCHES = {"pitr-full": pitr_full, "restore": restore, "stream-full": stream_full, "verify": verify}
