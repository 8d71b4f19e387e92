"""Until when all commits have been received, from what a server says of its own end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from pgkeep.jobs.receiving.completeness import Completeness
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server.wal_stream import WalChunk, WalStream
from pgkeep.spool.proof import Proof, read_proof

ONE, TWO = Timeline(1), Timeline(2)


def hear(known: Completeness, server_end: int, sent_ns: int, *, timeline: Timeline = ONE) -> None:
    """Let the server say that its WAL ended at *server_end* when it was *sent_ns*."""
    stream = cast("WalStream", SimpleNamespace(server_end=Lsn(server_end), sent_ns=sent_ns))
    known.hear(WalChunk(timeline, Lsn(0), memoryview(b"")), stream)


def test_a_time_is_known_when_all_that_it_speaks_of_is_durable(tmp_path: Path) -> None:
    """Who lags knows an earlier time, and later ones as it comes nearer; who has everything knows the last."""
    known = Completeness(tmp_path)
    hear(known, 100, 10)
    assert known.reach(ONE, Lsn(99)) == 0
    hear(known, 200, 20)
    hear(known, 300, 30)
    assert known.reach(ONE, Lsn(100)) == 10
    assert known.reach(ONE, Lsn(299)) == 10
    assert known.reach(ONE, Lsn(300)) == 30
    hear(known, 400, 40)
    hear(known, 500, 50)
    assert known.reach(ONE, Lsn(500)) == 50
    known.publish()
    assert read_proof(tmp_path) == Completeness(tmp_path).proof == Proof(1, 50)


def test_another_timeline_or_connection_begins_anew(tmp_path: Path) -> None:
    """What was promised of an old timeline, or before the connection broke, is no word on what follows."""
    known = Completeness(tmp_path)
    hear(known, 100, 10)
    assert known.reach(ONE, Lsn(100)) == 10
    hear(known, 200, 20)
    hear(known, 150, 30, timeline=TWO)
    assert known.reach(TWO, Lsn(149)) == 0
    assert known.reach(TWO, Lsn(150)) == 30
    hear(known, 300, 40, timeline=TWO)
    known.begin()
    assert known.reach(TWO, Lsn(300)) == 30
    known.publish()
    proof = read_proof(tmp_path)
    assert proof is not None
    assert (proof.time_of(TWO), proof.time_of(ONE)) == (30, None)
