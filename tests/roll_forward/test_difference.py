"""
The one difference to pg_combinebackup, seen with 17.11 and 18.6: blocks that were cut off stay cut off.

Of a block below the truncation length of the newest increment that no increment holds, pg_combinebackup takes what the
Full has, although an increment between them has cut it off: rows that were deleted are there again.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.cluster import MakeCluster
from tests.roll_forward.chains import SETTINGS, Chain

BLOCK = 8192


def test_blocks_that_were_cut_off_do_not_come_back(make_cluster: MakeCluster, lab_directory: Path) -> None:
    """A table that shrinks, and then grows by pages nobody wrote, has zeros there, as at the server; rows stay gone."""
    cluster = make_cluster(settings=SETTINGS)
    cluster.sql("CREATE TABLE shrunk AS SELECT n, repeat('x', 900) AS text FROM generate_series(1, 400) AS n")
    cluster.sql("VACUUM (FREEZE) shrunk")
    cluster.sql("CHECKPOINT")
    inside = cluster.value("SELECT pg_relation_filepath('shrunk')")
    file = cluster.data_directory / inside
    blocks = file.stat().st_size // BLOCK
    chain = Chain(cluster, lab_directory)
    chain.take()
    cluster.sql("DELETE FROM shrunk WHERE n > 160")
    cluster.sql("VACUUM (TRUNCATE) shrunk")
    assert file.stat().st_size == 20 * BLOCK
    chain.take()
    cluster.stop()
    # As an extension that a crash cut short leaves it: pages of zeros, of which no WAL tells.
    with file.open("ab") as opened:
        opened.truncate(blocks * BLOCK)
    cluster.start()
    cluster.sql("UPDATE shrunk SET text = 'changed' WHERE n = 1")
    cluster.sql("CHECKPOINT")
    chain.take()
    at_server = file.read_bytes()
    assert (len(at_server), at_server.count(b"x" * 900)) == (blocks * BLOCK, 160)

    target = chain.target("rolled")
    chain.roll(target, chain.ids)
    rolled = (target.data_directory / inside).read_bytes()
    assert rolled == at_server
