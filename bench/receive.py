"""
Receive a backlog of 64 segments as a synchronous receiver does, against pg_receivewal --synchronous.

Both begin behind the same segment, write to one file system, and make each segment durable before they say so. Ours is
timed until the server knows that all of it is durable in the spool; shipping into the vault goes on beside it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.lab import BenchCluster, Result, alternate, cluster, pgkeep_command, run, say, server_user

SEGMENTS = 64
CLUSTER = "bench"
SLOT = "pgkeep_bench"
_LONGEST_SECONDS = 300


@dataclass(slots=True)
class ReceiveBench:
    """
    A server with a backlog.

    Attributes:
        server: It keeps the backlog, whatever is received.
        before: The segment that the backlog follows.
        end: LSN behind the backlog, where a segment ends.
    """

    server: BenchCluster
    before: Path
    end: str

    @property
    def vault(self) -> Path:
        """The vault that ours ships into."""
        return self.server.directory / "vault"

    @property
    def spool(self) -> Path:
        """Ours."""
        return self.server.directory / "spool"

    @property
    def target(self) -> Path:
        """The peer's directory."""
        return self.server.directory / "received"

    def forget(self) -> None:
        """Let both begin from nothing but the segment before the backlog."""
        for directory in (self.spool, self.target, *(self.vault / CLUSTER / "wal").iterdir()):
            shutil.rmtree(directory, ignore_errors=True)
        where = [f"--vault={self.vault}", f"--cluster={CLUSTER}"]
        run([*pgkeep_command(), "archive-push", *where, str(self.before)])
        run(["mkdir", str(self.target)])
        run(["cp", str(self.before), str(self.target)])

    def receive(self) -> None:
        """Receive the backlog by pgkeep."""
        options = [f"--vault={self.vault}", f"--spool-dir={self.spool}", "--allow-unbounded-slot"]
        options += [f"--host={self.server.directory}", f"--port={self.server.port}", "--user=postgres"]
        with running([*pgkeep_command(), "receive", CLUSTER, *options]) as process, self._session() as session:
            query = "SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND flush_lsn >= %s::pg_lsn"
            deadline = time.monotonic() + _LONGEST_SECONDS
            while not session.execute(query, [SLOT, self.end]).fetchall():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("bench: pgkeep receive did not receive the backlog")
                time.sleep(0.005)

    def peer_receive(self) -> None:
        """Receive the backlog by pg_receivewal."""
        program = str(self.server.bin_directory / "pg_receivewal")
        where = ["-h", str(self.server.directory), "-p", str(self.server.port), "-U", "postgres"]
        run([program, *where, "-D", str(self.target), "--synchronous", f"--endpos={self.end}", "--no-loop"])

    def _session(self) -> psycopg.Connection[tuple[object, ...]]:
        where = {"host": str(self.server.directory), "port": self.server.port}
        return psycopg.connect(**where, user="postgres", dbname="postgres", autocommit=True)  # type: ignore[arg-type]


def measure(workdir: Path) -> Result:
    """Measure both from nothing."""
    with receive_bench(workdir) as bench:
        ours, peer = alternate(bench.receive, bench.peer_receive, before=bench.forget)
    return Result("receive", ours, "pg_receivewal --synchronous", peer, 1.0)


BENCHES: dict[str, Callable[[Path], Result]] = {"receive": measure}


@contextlib.contextmanager
def receive_bench(workdir: Path) -> Iterator[ReceiveBench]:
    """Make a server with a backlog, and a vault for it."""
    with cluster(workdir, scale=1, text_rows=1000) as server:
        server.configure(wal_keep_size=f"{(SEGMENTS + 16) * 16}MB", max_wal_senders="10")
        where = [f"--host={server.directory}", f"--port={server.port}", "--user=postgres"]
        run([*pgkeep_command(), "init", CLUSTER, f"--vault={server.directory / 'vault'}", *where])
        say(f"  making {SEGMENTS} WAL segments")
        name = server.psql("SELECT pg_walfile_name(pg_switch_wal())").strip()
        before = server.directory / name
        run(["cp", str(server.data_directory / "pg_wal" / name), str(before)])
        text = "SELECT string_agg(md5(g::text), '') AS body FROM generate_series(1, 520000) g"
        many = f"generate_series(1, {SEGMENTS} - 1) n"
        server.psql(f"SELECT count(pg_logical_emit_message(false, n::text, body)) FROM ({text}) t, {many}")
        end = server.psql(
            "SELECT '0/0'::pg_lsn + (ceil(pg_wal_lsn_diff(pg_switch_wal(), '0/0') / (16 << 20)) * (16 << 20))"
        ).strip()
        server.psql("CHECKPOINT")
        yield ReceiveBench(server, before, end)


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* as the server's user while the block runs; what it was doing then does not matter."""
    is_root = os.geteuid() == 0
    process = subprocess.Popen(
        command,
        cwd="/",
        user=server_user() if is_root else None,
        group=pwd.getpwnam(server_user()).pw_gid if is_root else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
