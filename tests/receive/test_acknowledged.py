"""With pgkeep as the synchronous standby, no acknowledged commit is lost, whatever is killed."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from tests.lab.acknowledged import SCHEMA, Commits
from tests.lab.cluster import Cluster, wait_for
from tests.receive.held_wal import HeldWal
from tests.receive.receiver import SETTINGS, SLOT, Receiver
from tests.restore.conftest import MakeKeeper

ROUNDS = int(os.environ.get("PGKEEP_LEDGER_ROUNDS", "20"))
SYNCHRONOUS = ["-c", f"synchronous_standby_names={SLOT}"]


def wait_until_synchronous(cluster: Cluster) -> None:
    """Wait until the server waits for pgkeep at every commit."""
    wait_for(
        lambda: (
            cluster.sql("SELECT sync_state FROM pg_stat_replication WHERE application_name = %s", [SLOT]) == [("sync",)]
        ),
        "pgkeep is the synchronous standby",
    )


@pytest.mark.timeout(300 + 30 * ROUNDS)
def test_every_acknowledged_commit_comes_back(make_keeper: MakeKeeper) -> None:
    """
    The server is killed under load, and every other time the receiver before it: all that was acknowledged is there.

    PGKEEP_LEDGER_ROUNDS sets how often. After each kill, before the server could send it again, what the receiver had
    acknowledged is in its spool, byte for byte. In the end the restored rows are counted.
    """
    keeper = make_keeper(archive="directory", settings=SETTINGS, wal_segment_size_mb=1)
    cluster = keeper.cluster
    cluster.sql(SCHEMA)
    keeper.backup("full", "local")
    held = HeldWal(keeper, keeper.directory / "archive")
    cluster.stop()
    rounds: list[Commits] = []
    with ExitStack() as stack:
        receiver: Receiver | None = None
        for number in range(ROUNDS):
            cluster.start(options=SYNCHRONOUS)
            if receiver is None:
                receiver = stack.enter_context(Receiver(keeper))
            wait_until_synchronous(cluster)
            rounds.append(commits := Commits(cluster, f"round{number}", slot=SLOT))
            commits.wait_for(50)
            if number % 2:
                receiver.kill()
                receiver = None
            cluster.kill()
            commits.join()
            assert commits.durable > 0
            held.check_spool(commits.durable)
        # The server is gone: what is in the spool is shipped without it.
        last = receiver or stack.enter_context(Receiver(keeper))
        last.wait_for_line("warning: main: ")
        last.stop()
    restored = keeper.restore()
    for done in rounds:
        done.assert_in(restored.value)
