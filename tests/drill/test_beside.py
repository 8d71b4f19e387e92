"""Drills beside what else goes on: backups, receiving, chains of blocks, tablespaces."""

from __future__ import annotations

from tests.drill.drill import drill, evidence, job, proved
from tests.drill.test_drill import rows_wanted
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.receive.receiver import SETTINGS, Receiver
from tests.restore.conftest import MakeKeeper


def test_while_a_backup_is_made_and_wal_received(make_keeper: MakeKeeper) -> None:
    """A chain of blocks is proved to the last byte received, while the next backup is made and WAL goes on coming."""
    keeper = make_keeper(major=18, settings=SETTINGS | {"summarize_wal": "on"})
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    blocks = ["--mode=pitr_block", "--json", "--start-fast", *keeper.server_options()]
    with Receiver(keeper).wait_until_streaming() as receiver:
        keeper.must("backup", *blocks, "--level=full")
        ledger.transfer(4)
        backup_id = keeper.must("backup", *blocks, "--level=incremental").report["backup_id"]
        ledger.transfer(4)
        receiver.wait_until_flushed()
        receiver.wait_until_shipped(cluster.switch_wal())
        sql = rows_wanted(keeper.directory / "rows.sql", ledger, entries=8)
        with job(keeper, f"--post-restore-sql={sql}", at=("STOP", 1, "open", "/volume-")) as drilling:
            drilling.wait_until_stopped()
            ledger.transfer(4)
            keeper.must("backup", *blocks, "--level=incremental")
            # The backup has switched: where nothing is written there is nothing to ship.
            ledger.transfer(1)
            receiver.wait_until_shipped(cluster.switch_wal())
            outcome = drilling.go_on()
        assert outcome.status == 0, "\n".join(outcome.lines)
        assert receiver.stop().warnings == []
    [proof] = evidence(keeper)
    assert (proof["backup_id"], proof["result"]) == (backup_id, "proved")


def test_tablespaces_stay_in_the_scratch_directory(make_keeper: MakeKeeper) -> None:
    """Those of the backup go there; one that only the replay would make is refused, since nothing leads it there."""
    keeper = make_keeper(archive="vault")
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    places = [keeper.directory / name for name in ("first", "second")]
    for place in places:
        place.mkdir()
        server_user().own(place)
    cluster.sql(f"CREATE TABLESPACE first LOCATION '{places[0]}'")
    cluster.sql("CREATE TABLE there (n int) TABLESPACE first")
    keeper.backup("full", "local")
    cluster.sql("INSERT INTO there SELECT generate_series(1, 1000)")
    mark = ledger.mark("before")
    cluster.sql(f"CREATE TABLESPACE second LOCATION '{places[1]}'")
    cluster.sql("CREATE TABLE elsewhere TABLESPACE second AS SELECT 1 AS n")
    keeper.wait_until_archived()
    before = [sorted(str(path) for path in place.rglob("*")) for place in places]
    sql = rows_wanted(keeper.directory / "rows.sql", ledger, entries=0)
    sql.write_text("SELECT 1 / (count(*) = 1000)::int FROM there;\n")
    proved(keeper, f"--target-lsn={mark.lsn}", f"--post-restore-sql={sql}")
    outcome = drill(keeper)
    assert outcome.status == 8
    assert outcome.refusal[0].endswith(f" in {places[1]}, out of the scratch directory")
    assert len(evidence(keeper)) == 1
    assert [sorted(str(path) for path in place.rglob("*")) for place in places] == before
    assert cluster.value("SELECT count(*) FROM there") == 1000
