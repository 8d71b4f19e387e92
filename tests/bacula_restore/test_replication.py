"""Slots and subscriptions through Bacula's stream: beside the record in the job, and at work in the restore."""

from __future__ import annotations

from pathlib import Path

from tests.bacula_restore.conftest import MakeDaemon

TRACKED = "track_replication_state=yes"
SCRIPTS = ["recreate_slots.sql", "recreate_subscriptions.sql.DISABLED"]


def test_slots_of_the_newest_job_come_back(make_daemon: MakeDaemon) -> None:
    """Each job has its scripts beside its record, and the restored server the slots that the last job saw."""
    daemon = make_daemon(settings={"wal_level": "logical"})
    cluster = daemon.cluster
    cluster.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    full = daemon.backup("F", TRACKED)
    assert full.said("info").count("captured 1 replication slots, 0 subscriptions") == 1
    cluster.sql("SELECT pg_create_logical_replication_slot('orders', 'test_decoding')")
    cluster.sql("CREATE TABLE newer AS SELECT 1")
    daemon.backup("I", TRACKED)
    answer = daemon.restore(
        where=f"{daemon.directory}/out", options={"start_postgresql_after_restore": "yes", "port": "1"}
    )
    assert answer.error == "", answer.job.messages
    restored = daemon.server(daemon.directory / "out/@postgresql/pitr/pgdata", answer)
    assert any(line.endswith("; 2 replication slots made") for line in answer.phases)
    query = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots"
    assert restored.value(query) == "orders standby_1"
    assert restored.value("SELECT count(*) FROM newer") == 1
    assert list(restored.data_directory.rglob("recreate*")) == []


def test_scripts_do_not_stand_in_the_way_of_dumps(make_daemon: MakeDaemon) -> None:
    """Databases come back into the server from a job that holds scripts, too."""
    daemon = make_daemon("dump", TRACKED)
    daemon.cluster.sql("CREATE DATABASE sales")
    daemon.cluster.sql("CREATE TABLE item AS SELECT generate_series(1, 100) n", dbname="sales")
    daemon.words += f" tmpdir={daemon.directory}/tmp"
    daemon.backup()
    daemon.cluster.sql("DROP TABLE item", dbname="sales")
    answer = daemon.restore(options={"target_database": "sales"})
    assert answer.error == "", answer.job.messages
    assert answer.job.said("warning") == []
    assert daemon.cluster.value("SELECT count(*) FROM item", dbname="sales") == 100


def test_scripts_are_restored_as_files(make_daemon: MakeDaemon) -> None:
    """Whoever restores plain files gets the scripts of every job, and no warning that they cannot be checked."""
    daemon = make_daemon("dump", TRACKED)
    daemon.cluster.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    daemon.backup()
    answer = daemon.restore(where=f"{daemon.directory}/files", options={"restore_mode": "files"})
    assert answer.error == "", answer.job.messages
    assert answer.job.said("warning") == []
    found = sorted(Path(daemon.directory, "files").rglob("recreate*"))
    assert [path.name for path in found] == SCRIPTS
    assert "pg_create_physical_replication_slot('standby_1', true)" in found[0].read_text()
    assert [path.stat().st_mode & 0o777 for path in found] == [0o600, 0o600]
