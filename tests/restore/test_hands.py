"""Restores that people finish by hand, and those that take another's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored


@pytest.mark.parametrize("level", ["full", "differential"])
def test_restore_that_is_started_by_hand(keeper: Keeper, level: str) -> None:
    """Without --start everything is prepared: pg_ctl alone replays to the target, through restore_command."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    if level == "differential":
        ledger.transfer(20)
        keeper.backup("differential", "local")
    mark = ledger.mark("target")
    ledger.transfer(20)
    keeper.backup("incremental", "local")
    restored = keeper.restore(f"--target-time={mark.time.isoformat()}", start=False)
    assert not restored.report["started"]
    assert restored.postmaster() == []
    assert "the server was not started: its next start replays to the target" in restored.outcome.lines
    restored.start()
    restored.wait_until_promoted()
    restored.assert_is_at(mark)
    assert restored.value("SELECT current_setting('port')::int") == restored.port
    assert restored.value("SELECT current_setting('archive_mode')") == "off"


def test_restore_into_the_original_place(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """--overwrite-existing renames the data directory and the tablespaces' own, and the server comes back in place."""
    keeper = make_keeper(archive="vault")
    cluster = keeper.cluster
    place = lab_directory / "fast"
    place.mkdir()
    server_user().own(place)
    cluster.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    cluster.sql("CREATE TABLE in_fast TABLESPACE fast AS SELECT generate_series(1, 3000) AS n")
    ledger = Ledger(cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("before the accident")
    cluster.sql("DROP TABLE ledger_entry, in_fast")
    keeper.wait_until_archived()
    cluster.stop()
    version_directory = next(place.iterdir()).name
    data = cluster.data_directory
    assert keeper.refuse(f"--pgdata-dir={data}", f"--target-time={mark.time.isoformat()}")[0] == 8
    restored = keeper.restore(f"--target-time={mark.time.isoformat()}", "--overwrite-existing", to=data.name)
    restored.assert_is_at(mark)
    [moved] = lab_directory.glob("data.old.*")
    [moved_tablespace] = place.glob(f"{version_directory}.old.*")
    assert (moved / "global/pg_control").exists()
    assert moved_tablespace.is_dir()
    assert not (moved / "backup_label").exists()
    # It is the cluster itself, no copy: it archives again, under its new timeline.
    assert restored.value("SELECT current_setting('archive_mode')") == "on"
    wait_for(
        lambda: (
            restored.value("SELECT coalesce(last_archived_wal, '') = '00000002.history' FROM pg_stat_archiver")
            or restored.value("SELECT coalesce(last_archived_wal, '') > '00000002' FROM pg_stat_archiver")
        ),
        "the history of timeline 2 is archived",
    )
    settings = (restored.data_directory / "postgresql.auto.conf").read_text()
    assert "recovery_target" not in settings
    assert "restore_command" not in settings
    left = {path.name for path in restored.data_directory.iterdir()}
    assert not left & {"recovery.signal", "backup_label", "tablespace_map", "pgkeep.wal-plan.json", "pgkeep.restoring"}


def test_directory_that_is_overwritten_is_renamed(keeper: Keeper) -> None:
    """What stands in the target's place is there afterwards, under another name, unless the plan was only shown."""
    Ledger(keeper.cluster)
    keeper.backup("full", "local")
    target = keeper.directory / "target"
    target.mkdir()
    (target / "precious").write_text("do not lose me")
    server_user().own(target)
    restored = keeper.restore("--overwrite-existing", "--target-immediate", to="target")
    [moved] = keeper.directory.glob("target.old.*")
    assert (moved / "precious").read_text() == "do not lose me"
    assert f"moved {target} to {moved}" in restored.outcome.lines
    assert not (target / "precious").exists()


def subscriptions(restored: Restored) -> list[tuple[str, bool]]:
    """Return the names of the subscriptions and whether they are enabled."""
    with restored.connect() as connection:
        return connection.execute("SELECT subname, subenabled FROM pg_subscription ORDER BY 1").fetchall()


def test_subscriptions_come_back_disabled(make_keeper: MakeKeeper) -> None:
    """A restored server never takes the publisher's slot away from the server that it was copied from."""
    keeper = make_keeper(settings={"wal_level": "logical"})
    cluster = keeper.cluster
    cluster.sql("CREATE DATABASE publisher")
    for dbname in ("publisher", "postgres"):
        cluster.sql("CREATE TABLE item (id int PRIMARY KEY)", dbname=dbname)
    cluster.sql("CREATE PUBLICATION items FOR TABLE item", dbname="publisher")
    cluster.sql("SELECT pg_create_logical_replication_slot('items', 'pgoutput')", dbname="publisher")
    cluster.sql(
        f"CREATE SUBSCRIPTION items CONNECTION '{cluster.conninfo(dbname='publisher')}' PUBLICATION items "
        "WITH (create_slot = false, slot_name = 'items')"
    )
    query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'items' AND active"
    wait_for(lambda: len(cluster.sql(query)) == 1, "the subscription streams")
    keeper.backup("full", "local")
    cluster.sql("INSERT INTO item VALUES (1)", dbname="publisher")
    wait_for(lambda: cluster.value("SELECT count(*) FROM item") == 1, "the row is there")
    keeper.backup("incremental", "local")
    sender = cluster.sql(query)
    assert len(sender) == 1
    restored = keeper.restore()
    assert "RESTORE PHASE 5/6 topology: 1 subscriptions disabled" in restored.outcome.lines
    assert subscriptions(restored) == [("items", False)]
    assert restored.value("SELECT count(*) FROM item") == 1
    by_hand = keeper.restore(start=False)
    by_hand.start()
    by_hand.wait_until_promoted()
    # Nobody was there to disable it, so no worker may start.
    assert subscriptions(by_hand) == [("items", True)]
    assert by_hand.value("SELECT current_setting('max_logical_replication_workers')") == "0"
    assert cluster.sql(query) == sender
