"""What expire leaves, a check of the vault finds whole."""

from __future__ import annotations

from tests.lab.ledger import Ledger
from tests.restore.keeper import Keeper


def test_wal_that_went_with_the_older_full_is_not_missed(keeper: Keeper) -> None:
    """A Full also carries the WAL since the backup before it, which only older backups need."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    for _ in range(3):
        ledger.transfer(1)
        keeper.cluster.switch_wal()
    keeper.backup("full", "local")
    mark = ledger.mark("last")
    keeper.backup("incremental", "local")
    assert keeper.must("expire", "--keep=1").status == 0
    assert len(keeper.info()["backups"]) == 2
    assert keeper.must("verify", "--json").report["is_clean"]
    keeper.restore().assert_is_at(mark)
