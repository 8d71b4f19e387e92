"""A receiver that is killed at any point leaves no gap and no duplicate."""

from __future__ import annotations

from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.receive.receiver import SETTINGS, Receiver
from tests.restore.conftest import MakeKeeper
from tests.survive.job import Point

POINTS: list[Point] = [
    ("KILL", 1, "open", r"[0-9A-F]{24}\.partial"),
    ("KILL", 2, "open", r"[0-9A-F]{24}\.partial"),
    ("KILL", 1, "os.rename", r"[0-9A-F]{24}\.partial"),
    ("KILL", 1, "os.link", "zst"),
    ("KILL", 1, "os.remove", "0000"),
]


def test_a_killed_receiver_goes_on(make_keeper: MakeKeeper) -> None:
    """Killed at five points one after the other, it goes on where it was: the WAL has no gap, and all comes back."""
    keeper = make_keeper(settings=SETTINGS, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    said: list[str] = []
    for point in POINTS:
        with Receiver(keeper, at=point) as receiver:

            def is_dead(receiver: Receiver = receiver) -> bool:
                # Not while it starts: a segment each time would be a lot.
                if receiver.is_streaming:
                    ledger.transfer(1)
                    cluster.switch_wal()
                return not receiver.is_running

            wait_for(is_dead, f"pgkeep is killed at {point}")
            outcome = receiver.end()
            assert outcome.status == -9
            said += outcome.warnings
    with Receiver(keeper).wait_until_streaming() as receiver:
        mark = ledger.mark("last")
        receiver.wait_until_flushed()
        outcome = receiver.stop()
    assert said + outcome.warnings == []
    info = keeper.info()
    assert (info["status"], info["gaps"]) == ("ok", [])
    assert len(info["wal"]) == 1, info["wal"]
    keeper.restore().assert_is_at(mark)
