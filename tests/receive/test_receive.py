"""WAL is received as it is written, and comes back to the last record."""

from __future__ import annotations

from tests.lab.ledger import Ledger
from tests.receive.receiver import SETTINGS, SLOT, Receiver
from tests.restore.conftest import MakeKeeper


def test_everything_received_comes_back(make_keeper: MakeKeeper) -> None:
    """A stopped receiver has shipped all up to the last commit, in whole segments and a partial one."""
    keeper = make_keeper(settings=SETTINGS)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with Receiver(keeper).wait_until_streaming() as receiver:
        ledger.transfer(20)
        whole = cluster.switch_wal()
        ledger.transfer(20)
        mark = ledger.mark("last")
        partial = str(cluster.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())"))
        receiver.wait_until_flushed()
        receiver.wait_until_shipped(whole)
        outcome = receiver.stop()
        assert receiver.spooled() == [f"{partial}.partial"]
    assert outcome.warnings == []
    assert cluster.sql("SELECT slot_name, slot_type, temporary, active FROM pg_replication_slots") == [
        (SLOT, "physical", False, False)
    ]
    receiver.wait_until_shipped(f"{partial}.partial")
    restored = keeper.restore()
    restored.assert_is_at(mark)
