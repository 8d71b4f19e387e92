"""Slots and subscriptions from a real Director's backup to its restore."""

from __future__ import annotations

import pytest

from tests.bacula.conftest import MakeScene
from tests.lab.cluster import free_port
from tests.restore.keeper import Outcome, Restored

pytestmark = pytest.mark.bacula


def test_slots_and_subscriptions_come_back_from_a_job(make_scene: MakeScene) -> None:
    """Both jobs' scripts are in the catalog, and a restore by the menu makes slots and keeps subscriptions asleep."""
    scene = make_scene()
    scene.cluster.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    job = scene.job("pitr", scene.line("pitr", "track_replication_state=yes"))
    full = scene.backup(job, "Full")
    assert "captured 1 replication slots, 0 subscriptions" in full.told
    scene.cluster.sql(
        "CREATE SUBSCRIPTION items CONNECTION 'host=127.0.0.1 port=1' PUBLICATION items "
        "WITH (connect = false, slot_name = 'items')"
    )
    scene.cluster.sql("ALTER SUBSCRIPTION items ENABLE")
    incremental = scene.backup(job, "Incremental")
    assert "captured 1 replication slots, 1 subscriptions" in incremental.told
    for result in (full, incremental):
        names = [name.rpartition("/")[2] for name, _, _ in scene.director.files(result.job_id)]
        assert {"recreate_slots.sql", "recreate_subscriptions.sql.DISABLED"} <= set(names)
    place = scene.directory / "copy"
    options = {"pgdata_dir": str(place), "start_postgresql_after_restore": "yes", "port": str(free_port())}
    result = scene.director.restore(job, "/", options=options)
    restored = Restored(scene.cluster.installation, place, 0, Outcome(0, "", result.told))
    scene.restored.append(restored)
    restored.guard()
    result.must()
    assert "RESTORE PHASE 5/6 topology: 1 subscriptions disabled; 1 replication slots made" in result.told
    assert restored.value("SELECT slot_name FROM pg_replication_slots") == "standby_1"
    assert restored.value("SELECT subenabled FROM pg_subscription") is False
