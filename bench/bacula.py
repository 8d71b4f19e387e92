"""
A Full of mode pitr through a real Bacula, and its restore, against the File Daemon's own of the same files.

Both sides have TLS and CommCompression as they are by default, the signature XXHASH64, and one volume a job; pgkeep
checks every page besides. What a job costs whatever its size is subtracted on both sides: the time of the same job over
a cluster that was just made. A checkpoint goes before each job, so that none has to wait for one. A restore is over
when what it wrote is on disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.lab import ROUNDS, BenchCluster, Result, cluster, free_port, run, say
from tests.lab.bacula import Director
from tests.lab.server_user import server_user

BACKUP_GOAL = 1.05
RESTORE_GOAL = 1.1
SIDES = ("pgkeep", "directory")


@dataclass(slots=True)
class BaculaBench:
    """A filled server, an empty one, and a Director with a job for each of them and side."""

    director: Director
    full: BenchCluster
    empty: BenchCluster

    def servers(self) -> dict[str, BenchCluster]:
        """Both servers by what they are."""
        return {"full": self.full, "empty": self.empty}

    def backup(self, side: str, size: str, *, keep: bool = False) -> float:
        """Run a Full; return its seconds."""
        server = self.servers()[size]
        server.psql("CHECKPOINT")
        os.sync()
        self.director.tick()
        begin = time.perf_counter()
        self.director.run(f"{side}-{size}", "Full").must()
        seconds = time.perf_counter() - begin
        if not keep:
            for volume in self.director.layout.volume_directory.iterdir():
                volume.unlink()
        return seconds

    def restore(self, side: str, size: str) -> float:
        """Restore the newest Full into an empty directory; return the seconds."""
        target = self.director.directory / "restored"
        shutil.rmtree(target, ignore_errors=True)
        os.sync()
        with self.director.open_console() as console:
            self.director.tick()
            begin = time.perf_counter()
            job_id = self.director.restore_in(console, f"{side}-{size}", target)
        self.director.wait(job_id).must()
        # pgkeep has made durable what it laid down, the File Daemon leaves that to the kernel.
        os.sync()
        seconds = time.perf_counter() - begin
        shutil.rmtree(target, ignore_errors=True)
        return seconds


@contextlib.contextmanager
def bacula_bench(workdir: Path) -> Iterator[BaculaBench]:
    """Make everything that these benches need."""
    with cluster(workdir) as full, _empty_cluster(full) as empty, Director(workdir / "bacula") as director:
        _install(director, full.bin_directory)
        director.start()
        for size, server in (("full", full), ("empty", empty)):
            line = f"pgkeep: mode=pitr host={server.directory} port={server.port} user=postgres start_fast=yes"
            pool = ["Pool = Single"]
            director.add_job(f"pgkeep-{size}", f"{line} verify_checksum=yes cluster_id={size}", more=pool)
            data = server.data_directory
            director.add_job(f"directory-{size}", files=[str(data)], excluded=[str(data / "pg_wal")], more=pool)
        yield BaculaBench(director, full, empty)


@contextlib.contextmanager
def _empty_cluster(full: BenchCluster) -> Iterator[BenchCluster]:
    directory = full.directory / "empty"
    run(["mkdir", str(directory)])
    made = BenchCluster(directory, full.bin_directory, free_port())
    run([str(made.bin_directory / "initdb"), "-D", str(made.data_directory), "-k", "-A", "trust", "-U", "postgres"])
    with open(made.data_directory / "postgresql.auto.conf", "a") as file:
        file.write(f"port = {made.port}\nunix_socket_directories = '{directory}'\nwal_level = replica\n")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def _install(director: Director, bin_directory: Path) -> None:
    state, config = director.directory / "state", director.directory / "pgkeep.conf"
    config.write_text(f"[options]\nstate_dir = {state}\nbin_dir = {bin_directory}\n")
    config.chmod(0o600)
    server_user().own(config)
    fd_config = director.layout.configuration / "bacula-fd.conf"
    command = [
        *(Path(sys.executable).with_name("pgkeep"), "bacula", "install"),
        *(f"--fd-config={fd_config}", f"--config={config}", f"--state-dir={state}"),
    ]
    subprocess.run(command, cwd="/", check=True, capture_output=True, **server_user().popen_arguments())


def backup(bench: BaculaBench) -> Result:
    """A Full, against the File Daemon's own of the data directory."""
    ours, peer = _compare(bench.backup)
    return Result("bacula-pitr", ours, "bacula-fd, File = data directory", peer, BACKUP_GOAL)


def restore(bench: BaculaBench) -> Result:
    """A restore into a directory, against the File Daemon's own."""
    for size in bench.servers():
        for side in SIDES:
            bench.backup(side, size, keep=True)
    ours, peer = _compare(bench.restore)
    return Result("bacula-restore", ours, "bacula-fd, File = data directory", peer, RESTORE_GOAL)


def _compare(action: Callable[[str, str], float]) -> tuple[float, float]:
    """Return the median of each side over the full server, less that over the empty one."""
    times: dict[tuple[str, str], list[float]] = {}
    for round_number in range(ROUNDS + 1):
        for size in ("full", "empty"):
            for side in SIDES:
                seconds = action(side, size)
                # The first round warms up the machine.
                if round_number:
                    times.setdefault((side, size), []).append(seconds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    for key, values in sorted(times.items()):
        say(f"  {' '.join(key)}: {[round(value, 2) for value in values]}")
    return tuple(medians[side, "full"] - medians[side, "empty"] for side in SIDES)  # type: ignore[return-value]


BENCHES = {"bacula-pitr": backup, "bacula-restore": restore}
