"""A server whose files were put back to an earlier state, and which has gone on since: its WAL is another one."""

from __future__ import annotations

import pytest

from pgkeep.errors import ArchiveError
from tests.lab.cluster import Cluster, wait_for
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.lab.snapshot import put_snapshot_back, take_snapshot
from tests.restore.keeper import Keeper

PUT_BACK = "its files were put back to an earlier state"


def write_until_past(cluster: Cluster, lsn: str, *, bytes_more: int) -> None:
    """Let *cluster* write WAL until it is past *lsn*."""
    cluster.sql("CREATE TABLE IF NOT EXISTS filler (body text)")
    past = "SELECT pg_current_wal_flush_lsn() > %s::pg_lsn + %s"
    while not cluster.value(past, [lsn, bytes_more]):
        cluster.sql("INSERT INTO filler SELECT repeat('z', 500) FROM generate_series(1, 200)")


@pytest.mark.pg(">=15")
@pytest.mark.parametrize("levels", [("full",), ("full", "incremental"), ("full", "differential")], ids="-".join)
@pytest.mark.parametrize("transport", ["local", "stream"])
def test_incremental_on_a_lost_past_is_made_as_a_full(keeper: Keeper, transport: str, levels: tuple[str, ...]) -> None:
    """System identifier, timeline and position fit, and the WAL does not: a Full, which is restored."""
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    take_snapshot(cluster)
    ledger.transfer(5)
    for level in levels:
        ledger.transfer(5)
        last = keeper.backup(level, transport).report
    put_snapshot_back(cluster)
    write_until_past(cluster, last["wal_stop"], bytes_more=40_000_000)
    ledger = Ledger(cluster)
    ledger.transfer(5)
    outcome = keeper.backup("incremental", transport)
    assert (outcome.report["level"], outcome.report["base"]) == ("Full", "")
    assert any(PUT_BACK in line for line in outcome.warnings), outcome.warnings
    ledger.transfer(5)
    mark = ledger.mark("end")
    assert keeper.backup("incremental", transport).report["level"] == "Incremental"
    assert keeper.run("verify").status == 0
    cluster.stop()
    keeper.restore().assert_is_at(mark)


@pytest.mark.pg(">=15")
@pytest.mark.parametrize("transport", ["local", "stream"])
def test_just_past_the_end_of_what_is_held(keeper: Keeper, transport: str) -> None:
    """The server is still within the segment that the archive has, whole, of the lost past: a Full, restored."""
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    take_snapshot(cluster)
    ledger.transfer(5)
    stop = keeper.backup("full", transport).report["wal_stop"]
    put_snapshot_back(cluster)
    write_until_past(cluster, stop, bytes_more=0)
    outcome = keeper.backup("incremental", transport)
    assert outcome.report["level"] == "Full"
    assert any("WAL is held up to 0/03000000, the server's ends at 0/02" in line for line in outcome.warnings)
    mark = Ledger(cluster).mark("end")
    keeper.backup("incremental", transport)
    cluster.stop()
    keeper.restore().assert_is_at(mark)


@pytest.mark.pg(">=15")
def test_an_archive_that_is_far_ahead(keeper: Keeper) -> None:
    """Where the archive has other WAL under the names that the server writes now, nothing is mixed."""
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    take_snapshot(cluster)
    ledger.transfer(5)
    for level in ("full", "incremental", "incremental"):
        ledger.transfer(5)
        keeper.backup(level, "local")
    mark = ledger.mark("end")
    keeper.backup("incremental", "local")
    put_snapshot_back(cluster)
    for level in ("incremental", "full"):
        outcome = keeper.run("backup", *keeper.backup_options(level, "local"))
        assert outcome.status == ArchiveError.exit_status
        assert "with other content" in outcome.refusal[0]
        assert PUT_BACK in "".join(outcome.warnings)
    cluster.stop()
    keeper.restore().assert_is_at(mark)


@pytest.mark.pg(">=15")
def test_an_archive_directory_with_the_lost_past(keeper: Keeper) -> None:
    """What the archive has under the name of a Full's own WAL is of the past that was given up: no backup, and why."""
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    archive = keeper.directory / "archive"
    archive.mkdir()
    server_user().own(archive)
    cluster.configure({"archive_mode": "on", "archive_command": f"test ! -f {archive}/%f && cp %p {archive}/%f"})
    cluster.restart()
    take_snapshot(cluster)
    for _ in range(6):
        ledger.transfer(5)
        cluster.switch_wal()
    wait_for(lambda: len(list(archive.iterdir())) > 5, "the past is archived")
    put_snapshot_back(cluster)
    outcome = keeper.run("backup", *keeper.backup_options("full", "local"), f"--archive-dir={archive}")
    assert outcome.status == ArchiveError.exit_status
    assert f"of archive directory {archive} is not the server's: the backup ends at" in outcome.refusal[0]
    for path in archive.iterdir():
        path.unlink()
    mark = ledger.mark("end")
    keeper.backup("full", "local", f"--archive-dir={archive}")
    cluster.stop()
    keeper.restore().assert_is_at(mark)
