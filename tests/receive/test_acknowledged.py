"""With pgkeep as the synchronous standby, no acknowledged commit is lost, whatever is killed."""

from __future__ import annotations

import os

from tests.lab.cluster import Cluster, wait_for
from tests.receive.acknowledged import SCHEMA, Commits
from tests.receive.receiver import SETTINGS, SLOT, Receiver
from tests.restore.conftest import MakeKeeper

ROUNDS = int(os.environ.get("PGKEEP_LEDGER_ROUNDS", "2"))
SYNCHRONOUS = ["-c", f"synchronous_standby_names={SLOT}"]


def wait_until_synchronous(cluster: Cluster) -> None:
    """Wait until the server waits for pgkeep at every commit."""
    wait_for(
        lambda: (
            cluster.sql("SELECT sync_state FROM pg_stat_replication WHERE application_name = %s", [SLOT]) == [("sync",)]
        ),
        "pgkeep is the synchronous standby",
    )


def test_every_acknowledged_commit_comes_back(make_keeper: MakeKeeper) -> None:
    """
    The server is killed under load, and every other time the receiver before it: all that was acknowledged is restored.

    PGKEEP_LEDGER_ROUNDS sets how often.
    """
    keeper = make_keeper(settings=SETTINGS, wal_segment_size_mb=1)
    cluster = keeper.cluster
    cluster.sql(SCHEMA)
    keeper.backup("full", "local")
    cluster.stop()
    rounds: list[Commits] = []
    for number in range(ROUNDS):
        with Receiver(keeper) as receiver:
            cluster.start(options=SYNCHRONOUS)
            wait_until_synchronous(cluster)
            rounds.append(commits := Commits(cluster, f"round{number}"))
            commits.wait_for(200)
            if number % 2:
                receiver.kill()
            cluster.kill()
            commits.join()
            if not number % 2:
                receiver.stop()
        if number % 2:
            # The server is gone: what the killed one had acknowledged is in its spool.
            with Receiver(keeper) as after:
                after.wait_for_line("warning: main: ")
                after.stop()
    restored = keeper.restore()
    for done in rounds:
        done.assert_in(restored.value)
