"""Standbys from backups: they replay what is held of their primary's history, and stream the rest."""

from __future__ import annotations

from tests.lab.cluster import SUPERUSER, wait_for
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored


def conninfo(primary: Restored) -> str:
    """Return how a standby reaches *primary*: through its socket, with a passfile that holds nothing."""
    lines = primary.postmaster()
    return f"host={lines[4]} port={lines[3]} user={SUPERUSER}"


def restore_standby(keeper: Keeper, primary: Restored, *arguments: str, status: int = 0) -> Restored:
    """Restore a standby of *primary*."""
    return keeper.restore("--restore-as-standby", f"--primary-conninfo={conninfo(primary)}", *arguments, status=status)


def assert_follows(standby: Restored, primary: Restored) -> None:
    """Assert that *standby* streams from *primary*, has every row, and keeps nothing of its restore."""
    lsn = primary.value("SELECT pg_current_wal_lsn()::text")
    wait_for(lambda: bool(standby.value(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'")), "the standby has caught up")
    assert standby.value("SELECT pg_is_in_recovery()")
    assert standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming"
    assert standby.digests() == primary.digests()
    assert standby.value("SHOW restore_command") == ""
    assert (standby.data_directory / "standby.signal").exists()
    assert not (standby.data_directory / "recovery.signal").exists()


def test_primary_and_two_standbys_from_backups(major: int, make_keeper: MakeKeeper) -> None:
    """All three servers are lost: a primary comes back to a moment, two standbys follow it along its new timeline."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    ledger.transfer(5)
    keeper.backup("full", "local")
    mark = ledger.mark("before the accident")
    ledger.transfer(5)
    # The archive goes on behind that moment, in later segments: a standby that replayed them could follow nobody.
    for _ in range(2):
        keeper.wait_until_archived()
        ledger.transfer(5)
    keeper.wait_until_archived()
    keeper.cluster.stop()
    primary = keeper.restore(f"--target-time={mark.time.isoformat()}")
    primary.assert_is_at(mark)
    standbys = [restore_standby(keeper, primary) for _ in range(2)]
    for standby in standbys:
        assert [line for line in standby.outcome.lines if "PHASE 3/6" in line or "PHASE 5/6" in line] == [
            "RESTORE PHASE 3/6 recovery-config: a standby, along the newest timeline",
            "RESTORE PHASE 5/6 topology: a standby: slots and subscriptions are its primary's",
        ]
        assert standby.report["timeline"] == 2
    with primary.connect() as connection:
        connection.execute("CREATE TABLE since AS SELECT generate_series(1, 1000) AS n")
        rows = connection.execute("SELECT state FROM pg_stat_replication").fetchall()
    assert rows == [("streaming",), ("streaming",)]
    for standby in standbys:
        assert_follows(standby, primary)
    # One of them takes over, the other is made anew from what is held, which the new primary continues.
    primary.stop()
    standbys[0].value("SELECT pg_promote()")
    standbys[0].wait_until_promoted()
    third = restore_standby(keeper, standbys[0])
    assert third.report["timeline"] == 3
    assert_follows(third, standbys[0])
