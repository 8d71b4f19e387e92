"""A page that the server's disk holds without its first half, as whoever reads it during its first write sees it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.restore.keeper import Keeper
from tests.survive.job import Job

PAGE = 8192
SETTINGS = {
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "shared_buffers": "64MB",
    "wal_keep_size": "1GB",
}
"""So that the server leaves the file alone until the next checkpoint."""


def half_written(cluster: Cluster, table: str, *, block: int, fork: str = "") -> Path:
    """Take the first half of a page of *table* away from the disk, not from the server's memory; return the file."""
    inside = cluster.value(f"SELECT pg_relation_filepath('{table}')")
    path = cluster.data_directory / f"{inside}{fork}"
    # Whoever reads a row first may mark it, and the page is written once more.
    assert cluster.value(f"SELECT count(*) FROM {table}")
    cluster.sql("CHECKPOINT")
    with path.open("r+b") as file:
        file.seek(block * PAGE)
        file.write(bytes(PAGE // 2))
    return path


def is_half_written(path: Path, *, block: int) -> bool:
    """Tell whether the page is still as ``half_written`` left it."""
    with path.open("rb") as file:
        file.seek(block * PAGE)
        page = file.read(PAGE)
    return not any(page[: PAGE // 2]) and any(page[PAGE // 2 :])


@contextmanager
def backup_begun(keeper: Keeper, *options: str) -> Iterator[Job]:
    """Begin a backup over the protocol; it stands still meanwhile, and goes on afterwards."""
    with Job(keeper, "backup", *options) as job:
        job.wait_for_line("backup start")
        job.send(signal.SIGSTOP)
        job.wait_until_stopped()
        yield job
        outcome = job.go_on()
        assert outcome.status == 0, outcome.lines
        assert outcome.warnings == [], outcome.lines
