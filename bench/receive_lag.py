"""
How far a receiver is behind while pgbench runs: from when the server has flushed WAL until it knows that we have, too.

Asked every few milliseconds, so the longest lag includes how long it takes to ask. The receiver is asynchronous, and
ships into the vault beside it. PGKEEP_BENCH_SECONDS is how long pgbench runs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psycopg

from bench.lab import BenchCluster, Result, cluster, pgkeep_command, run, say
from bench.receive import CLUSTER, SLOT, running

SECONDS = int(os.environ.get("PGKEEP_BENCH_SECONDS", "30"))
CLIENTS = 4
_PAUSE_SECONDS = 0.003
_LONGEST_SECONDS = 60
_POSITIONS = """
SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint, pg_wal_lsn_diff(flush_lsn, '0/0')::bigint
FROM pg_stat_replication WHERE application_name = %s
"""


def measure(workdir: Path) -> Result:
    """Measure the lag; the longest one counts, against one second."""
    with cluster(workdir, scale=10, text_rows=1000) as server:
        server.configure(max_wal_senders="10")
        vault, spool = server.directory / "vault", server.directory / "spool"
        where = [f"--host={server.directory}", f"--port={server.port}", "--user=postgres"]
        run([*pgkeep_command(), "init", CLUSTER, f"--vault={vault}", *where])
        options = [f"--vault={vault}", f"--spool-dir={spool}", "--allow-unbounded-slot", *where]
        with running([*pgkeep_command(), "receive", CLUSTER, *options]) as receiver, _session(server) as session:
            _wait_until_level(session)
            with running(_pgbench(server)) as load:
                lags = _lags(session, load)
            peak = _peak_mib(receiver.pid)
    if not lags:
        raise SystemExit("bench: pgbench wrote no WAL")
    say(f"  lag of {len(lags)} positions: median {statistics.median(lags):.4f} s, longest {max(lags):.3f} s")
    more = {"median_seconds": round(statistics.median(lags), 4), "receiver_peak_mib": round(peak, 1)}
    return Result("receive-lag", max(lags), "one second", 1.0, 1.0, more)


BENCHES: dict[str, Callable[[Path], Result]] = {"receive-lag": measure}


def _session(server: BenchCluster) -> psycopg.Connection[tuple[int, int | None]]:
    where = {"host": str(server.directory), "port": server.port}
    return psycopg.connect(**where, user="postgres", dbname="postgres", autocommit=True)  # type: ignore[arg-type]


def _pgbench(server: BenchCluster) -> list[str]:
    where = ["-h", str(server.directory), "-p", str(server.port), "-U", "postgres"]
    return [str(server.bin_directory / "pgbench"), *where, "-n", f"-c{CLIENTS}", "-j2", f"-T{SECONDS}", "postgres"]


def _wait_until_level(session: psycopg.Connection[tuple[int, int | None]]) -> None:
    """Wait until the receiver has all that was there before."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while True:
        row = session.execute(_POSITIONS, [SLOT]).fetchone()
        if row is not None and row[1] is not None and row[1] >= row[0]:
            return
        if time.monotonic() > deadline:
            raise SystemExit("bench: pgkeep receive does not get level with the server")
        time.sleep(_PAUSE_SECONDS)


def _lags(session: psycopg.Connection[tuple[int, int | None]], load: subprocess.Popen[bytes]) -> list[float]:
    """Return how long each position that was seen at the server took to be durable at the receiver, in seconds."""
    waiting: deque[tuple[float, int]] = deque()
    lags: list[float] = []
    seen = 0
    while load.poll() is None or waiting:
        row = session.execute(_POSITIONS, [SLOT]).fetchone()
        now = time.monotonic()
        if row is None:
            raise SystemExit("bench: pgkeep receive is gone")
        flushed, durable = row
        if flushed > seen:
            waiting.append((now, flushed))
            seen = flushed
        while waiting and durable is not None and waiting[0][1] <= durable:
            lags.append(now - waiting.popleft()[0])
        if waiting and now - waiting[0][0] > _LONGEST_SECONDS:
            raise SystemExit(f"bench: pgkeep receive is more than {_LONGEST_SECONDS} s behind")
        time.sleep(_PAUSE_SECONDS)
    return lags


def _peak_mib(pid: int) -> float:
    """Return the most memory that a process has had resident, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    [peak] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    return peak / 1024
