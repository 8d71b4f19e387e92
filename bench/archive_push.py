"""Archive a backlog of 64 segments, one call per segment as the server makes them, against pgBackRest's async push."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from bench.archive_lab import archive_bench
from bench.lab import ROUNDS, Result, say


def run(workdir: Path) -> Result:
    """Measure from nothing: no service runs, no background process, nothing is archived."""
    ours: list[float] = []
    peers: list[float] = []
    with archive_bench(workdir) as bench:
        for _ in range(ROUNDS + 1):
            for times, forget, push in (
                (ours, bench.forget_ours, bench.push_all),
                (peers, bench.forget_peers, bench.peer_push_all),
            ):
                forget()
                begin = time.perf_counter()
                push()
                times.append(time.perf_counter() - begin)
    # The first round warms the page cache.
    say(f"  ours {[round(t, 2) for t in ours[1:]]}, peer {[round(t, 2) for t in peers[1:]]}")
    return Result(
        "archive-push", statistics.median(ours[1:]), "pgbackrest archive-push, async", statistics.median(peers[1:]), 1.0
    )
