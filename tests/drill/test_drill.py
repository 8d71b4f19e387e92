"""A drill proves a point by a restore, keeps the evidence, and leaves nothing else."""

from __future__ import annotations

from pathlib import Path

from pgkeep.pg.lsn import Lsn
from tests.drill.drill import evidence, life_of, proved
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper


def rows_wanted(place: Path, ledger: Ledger, *, entries: int) -> Path:
    """Write SQL at *place* that fails unless the ledger adds up and has so many entries."""
    place.write_text(
        f"SELECT 1 / (count(*) = {entries})::int FROM ledger_entry;\n"
        "SELECT 1 / (sum(balance) = 0)::int FROM ledger_account;\n"
        f"SELECT 1 / (count(*) = {ledger.accounts})::int FROM ledger_account;\n"
    )
    place.chmod(0o644)
    server_user().own(place)
    return place


def test_a_point_is_proved(make_keeper: MakeKeeper, major: int) -> None:
    """The rows of the target are there and no later ones, the live server is left alone, and nothing stays."""
    keeper = make_keeper(archive="vault", major=major)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    backup_id = keeper.backup("full", "local").report["backup_id"]
    ledger.transfer(5)
    mark = ledger.mark("five")
    ledger.transfer(2)
    keeper.wait_until_archived()
    before = life_of(cluster)
    held = sorted(path.name for path in (keeper.vault / keeper.name / "wal").rglob("*"))
    sql = rows_wanted(keeper.directory / "rows.sql", ledger, entries=5)
    report = proved(keeper, f"--target-lsn={mark.lsn}", f"--post-restore-sql={sql}")
    assert (report["backup_id"], report["result"], report["timeline"]) == (backup_id, "proved", 1)
    assert report["target"] == f"lsn {Lsn.parse(mark.lsn)}"
    assert report["databases"] == ["postgres", "template1"]
    [found] = evidence(keeper)
    assert {name: report[name] for name in found} == found
    assert life_of(cluster) == before
    assert sorted(path.name for path in (keeper.vault / keeper.name / "wal").rglob("*")) == held
