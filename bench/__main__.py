"""
Measure pgkeep side by side with its peers: ``./dev bench [NAME...]``.

One JSON object a line on stdout: name, ours_seconds, peer, peer_seconds, ratio (ours by peer's; less is better), goal.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from bench import archive_get, archive_push, bacula, blocks, dumps, physical, receive, receive_lag
from bench.lab import Result, say

Lab = TypeVar("Lab")

ARCHIVE_BENCHES: dict[str, Callable[[Path], Result]] = {
    "archive-push": archive_push.run,
    "archive-get": archive_get.run,
    **receive.BENCHES,
    **receive_lag.BENCHES,
}
NAMES = (*physical.BENCHES, *blocks.BENCHES, *ARCHIVE_BENCHES, *bacula.BENCHES, *dumps.BENCHES)


def main(wanted: list[str]) -> int:
    """Run the benches called *wanted*, all of them when none is named; return the exit status."""
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        say(f"bench: no such bench: {', '.join(unknown)}; there are {', '.join(NAMES)}")
        return 2
    for result in _results(wanted or list(NAMES)):
        print(result.line(), flush=True)
    return 0


def _results(wanted: list[str]) -> Iterator[Result]:
    chosen = [name for name in wanted if name in physical.BENCHES]
    if chosen:
        with _workdir() as workdir, physical.physical_bench(workdir) as bench:
            yield from _each(chosen, physical.BENCHES, bench)
    chosen = [name for name in wanted if name in blocks.BENCHES]
    if chosen:
        with _workdir() as workdir, blocks.block_bench(workdir) as of_blocks:
            yield from _each(chosen, blocks.BENCHES, of_blocks)
    chosen = [name for name in wanted if name in bacula.BENCHES]
    if chosen:
        with _workdir() as workdir, bacula.bacula_bench(workdir) as through_bacula:
            yield from _each(chosen, bacula.BENCHES, through_bacula)
    chosen = [name for name in wanted if name in dumps.BENCHES]
    if chosen:
        with _workdir() as workdir, dumps.dump_bench(workdir) as server:
            yield from _each(chosen, dumps.BENCHES, server)
    for name in wanted:
        if name in ARCHIVE_BENCHES:
            say(f"bench: {name}")
            with _workdir() as workdir:
                yield ARCHIVE_BENCHES[name](workdir)


def _each(names: list[str], benches: Mapping[str, Callable[[Lab], Result]], lab: Lab) -> Iterator[Result]:
    for name in names:
        say(f"bench: {name}")
        yield benches[name](lab)


class _workdir:  # noqa: N801 - used like a function
    """A directory that the server's user can enter, removed in the end."""

    def __enter__(self) -> Path:
        self._path = Path(tempfile.mkdtemp(prefix="pgkeep-bench-", dir=os.environ.get("PGKEEP_BENCH_DIR")))
        self._path.chmod(0o755)
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
