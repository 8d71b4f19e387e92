"""A relation that crosses the gigabyte at which PostgreSQL begins its next file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.cluster import MakeCluster
from tests.lab.server_user import server_directory, server_user, short_temporary_directory
from tests.roll_forward.chains import SETTINGS, Chain, assert_same

GIGABYTE = 1 << 30
BLOCK = 8192


@pytest.fixture
def lab_directory() -> Iterator[Path]:
    """An empty directory on disk: gigabytes are too much for memory."""
    with server_directory(short_temporary_directory()) as path:
        yield path


def test_relation_beyond_its_first_file(make_cluster: MakeCluster, lab_directory: Path) -> None:
    """Blocks of both files change; then the relation is cut off in the first, and the second is left empty."""
    cluster = make_cluster(settings=SETTINGS)
    cluster.sql("CREATE TABLE large AS SELECT 1 AS n, 'first' AS text")
    cluster.sql("CHECKPOINT")
    first = cluster.data_directory / cluster.value("SELECT pg_relation_filepath('large')")
    cluster.stop()
    # Pages of zeros are new pages to the server, and take no room here.
    second = first.with_name(f"{first.name}.1")
    for path, size in ((first, GIGABYTE), (second, 3 * BLOCK)):
        with path.open("ab") as file:
            file.truncate(size)
    server_user().own(second)
    cluster.start()
    cluster.sql("INSERT INTO large VALUES (2, 'in the second file')")
    assert cluster.value("SELECT max(ctid) FROM large") == "(131074,1)"

    chain = Chain(cluster, lab_directory)
    chain.take()
    cluster.sql("UPDATE large SET text = text || ' changed' WHERE n = 1")
    cluster.sql("INSERT INTO large SELECT 3, repeat('x', 900) FROM generate_series(1, 30)")
    chain.take()
    target = chain.target("rolled")
    chain.roll(target, chain.ids)
    assert second.stat().st_size > 3 * BLOCK
    for path in (first, second):
        # What is between its first blocks and its last one nobody has written to.
        assert ends(target.data_directory / path.relative_to(cluster.data_directory)) == ends(path)
    cluster.sql("DELETE FROM large WHERE n > 1")
    cluster.sql("VACUUM (TRUNCATE) large")
    assert second.stat().st_size == 0
    chain.take()
    chain.roll(target, chain.ids, done=2)
    assert_same(target.data_directory, chain.combine(chain.ids, "combined"), [])


def ends(path: Path) -> tuple[int, bytes, bytes]:
    """Return the size of a file, and its first and last blocks."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        last = max(0, size - 8 * BLOCK)
        return size, os.pread(file.fileno(), 8 * BLOCK, 0), os.pread(file.fileno(), 8 * BLOCK, last)
