"""Get one segment from the archive, against ``pgbackrest archive-get``: a median over all segments, in random order."""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

from bench.archive_lab import ArchiveBench, archive_bench
from bench.lab import ROUNDS, Result, say

TARGET = "pg_wal/RECOVERYXLOG"


def run(workdir: Path) -> Result:
    """
    Measure single gets with the service running, which it is after the first segment of any recovery.

    The order is random, so that nothing which was fetched ahead is of use.
    """
    with archive_bench(workdir) as bench:
        bench.push_all()
        bench.mark_all_ready()
        bench.peer_push_all()
        ours: list[float] = []
        peers: list[float] = []
        order = random.Random(0)
        for _ in range(ROUNDS):
            names = list(bench.names)
            order.shuffle(names)
            for name in names[: len(names) // 2]:
                ours.append(_timed_get(bench, name, is_ours=True))
                peers.append(_timed_get(bench, name, is_ours=False))
        for name, side in (("ours", ours), ("peer", peers)):
            quartiles = [round(1000 * cut, 1) for cut in statistics.quantiles(side)]
            say(f"  {name}: quartiles of {len(side)} gets {quartiles} ms")
    return Result("archive-get", statistics.median(ours), "pgbackrest archive-get", statistics.median(peers), 1.0)


def _timed_get(bench: ArchiveBench, name: str, *, is_ours: bool) -> float:
    # The server removes the file before it asks, too.
    (bench.data_directory / TARGET).unlink(missing_ok=True)
    get = bench.ours if is_ours else bench.peers
    begin = time.perf_counter()
    get("archive-get", name, TARGET)
    return time.perf_counter() - begin
