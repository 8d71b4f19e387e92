"""A receiver that is killed -9 again and again, wherever it is, loses, doubles and changes no byte."""

from __future__ import annotations

import os
import random
import threading
from contextlib import suppress

import psycopg
import pytest

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster, wait_for
from tests.lab.ledger import Ledger
from tests.receive.held_wal import SEGMENT, HeldWal, acknowledged
from tests.receive.receiver import SETTINGS, Receiver
from tests.restore.conftest import MakeKeeper

KILLS = int(os.environ.get("PGKEEP_RECEIVER_KILLS", "5"))


class Writer:
    """Writes WAL of random bytes, in records of many sizes, for as long as the block runs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        chance = random.Random(1)
        with suppress(psycopg.OperationalError), self._cluster.connect() as connection:
            while not self._stop.is_set():
                content = chance.randbytes(chance.choice([10, 1000, 30_000]))
                connection.execute("SELECT pg_logical_emit_message(true, 'x', %s::bytea)", [content])


@pytest.mark.timeout(300 + 30 * KILLS)
def test_a_receiver_killed_at_random_moments(make_keeper: MakeKeeper) -> None:
    """
    After each kill the spool has every acknowledged byte; in the end the vault has every segment once, as it was.

    PGKEEP_RECEIVER_KILLS sets how often.
    """
    # What is copied to the directory is there to compare with; the vault has only what is received.
    keeper = make_keeper(archive="directory", settings=SETTINGS, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    held = HeldWal(keeper, keeper.directory / "archive")
    chance, reached = random.Random(20261121), Lsn(0)
    with Writer(cluster):
        for number in range(KILLS):
            with Receiver(keeper) as receiver:
                # By what it has got done, not by the clock: from its first acknowledgement to some segments later.
                goal = Lsn(reached + (chance.randrange(3 * SEGMENT) if number else 1))

                def has_got_there(goal: Lsn = goal, receiver: Receiver = receiver) -> bool:
                    nonlocal reached
                    reached = max(reached, acknowledged(cluster))
                    return reached >= goal or not receiver.is_running

                wait_for(has_got_there, f"{goal} is acknowledged", timeout_seconds=120)
                assert receiver.is_running, "\n".join(receiver.lines)
                receiver.kill()
                assert [line for line in receiver.lines if " is in use" not in line and "warning" in line] == []
            held.check_spool(reached)
    with Receiver(keeper) as receiver:
        receiver.wait_until_streaming()
        mark = ledger.mark("last")
        last = cluster.switch_wal()
        receiver.wait_until_flushed()
        receiver.stop()
    assert held.check_vault(last=last) > KILLS // 2
    info = keeper.info()
    assert (info["status"], info["gaps"], len(info["wal"])) == ("ok", [], 1)
    keeper.restore().assert_is_at(mark)
