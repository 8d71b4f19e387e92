"""Phase 5: a restored server takes nothing from the servers that live on, and has its slots again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pgkeep.jobs.restoring.directory import RestoreDirectory, RestoreRun
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.jobs.restoring.topology import restore_topology
from pgkeep.server.connection import ConnectionTarget, Server
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.servers import newest_installation
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored
from tests.restore.test_replication_record import TRACKED

SECRET = "geheim-in-a-subscription"
SLOTS, SUBSCRIPTIONS = "recreate_slots.sql", "recreate_subscriptions.sql.DISABLED"
_SUBSCRIPTIONS = "SELECT subname::text, subenabled, subslotname::text FROM pg_subscription ORDER BY 1"


def restore_directory(restored: Restored) -> Path:
    """Return where the restore keeps its state and its scripts."""
    return restored.data_directory.with_name(f"{restored.data_directory.name}.pgkeep-restore")


def subscriptions_of(restored: Restored) -> list[tuple[str, bool, str | None]]:
    """Return name, whether enabled, and slot of each subscription."""
    with restored.connect() as connection:
        return connection.execute(_SUBSCRIPTIONS).fetchall()


def slots_of(restored: Restored) -> list[tuple[str, str | None, str | None]]:
    """Return name, plugin and database of each slot that keeps WAL."""
    with restored.connect() as connection:
        query = "SELECT slot_name, plugin, database FROM pg_replication_slots WHERE restart_lsn IS NOT NULL ORDER BY 1"
        return connection.execute(query).fetchall()


class Watched:
    """A publisher that writes down whoever asks for its slot."""

    def __init__(self, publisher: Cluster) -> None:
        self.cluster = publisher
        publisher.sql("CREATE TABLE item (id int PRIMARY KEY)")
        publisher.sql("CREATE PUBLICATION items FOR TABLE item")

    def streams(self) -> int:
        """Return how often anybody has begun to stream since the server started."""
        return self.cluster.log_text().count("START_REPLICATION SLOT")

    def sessions(self) -> int:
        """Return how many replication sessions there ever were."""
        return self.cluster.log_text().count("replication connection authorized")

    def holder(self) -> int | None:
        """Return the process that streams from the slot."""
        pid: int | None = self.cluster.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'items'")
        return pid


@pytest.fixture
def publisher(major: int, make_cluster: MakeCluster) -> Watched:
    """A publisher of `major`."""
    settings = {"wal_level": "logical", "log_replication_commands": "on", "log_connections": "on"}
    return Watched(make_cluster("publisher", major=major, settings=settings))


@pytest.fixture
def subscriber(publisher: Watched, make_keeper: MakeKeeper) -> Keeper:
    """A subscriber that streams from `publisher`, with slots of its own, and a vault for it."""
    keeper = make_keeper(settings={"wal_level": "logical"})
    cluster = keeper.cluster
    cluster.sql("CREATE TABLE item (id int PRIMARY KEY)")
    conninfo = publisher.cluster.conninfo(tcp=True, password=SECRET)
    cluster.sql(f"CREATE SUBSCRIPTION items CONNECTION '{conninfo}' PUBLICATION items")
    ready = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate = 'r'"
    wait_for(lambda: cluster.value(ready) == 1 and publisher.holder() is not None, "the subscription streams")
    cluster.sql("CREATE DATABASE shop")
    cluster.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    cluster.sql("SELECT pg_create_logical_replication_slot('orders', 'test_decoding')", dbname="shop")
    return keeper


def test_a_restored_subscriber_leaves_its_publisher_alone(publisher: Watched, subscriber: Keeper) -> None:
    """From the backup to the end no second session reaches the publisher, and the restored server has its slots."""
    # Copying the tables took sessions of its own; they are all there by now.
    streams, sessions, holder = publisher.streams(), publisher.sessions(), publisher.holder()
    subscriber.backup("full", "local", *TRACKED)
    publisher.cluster.sql("INSERT INTO item VALUES (1)")
    wait_for(lambda: subscriber.cluster.value("SELECT count(*) FROM item") == 1, "the row has arrived")
    subscriber.backup("incremental", "local", *TRACKED)
    restored = subscriber.restore()
    lines = restored.outcome.lines
    assert "RESTORE PHASE 5/6 topology: 1 subscriptions disabled; 2 replication slots made" in lines
    assert (
        'subscription "items" of database "postgres" is detached from the publisher\'s slot "items", which the '
        "original may use"
    ) in lines
    assert any(line.startswith('slot "orders" of database "shop" is made: it begins at ') for line in lines)
    assert (
        "consumers of logical slots must resynchronise, or miss changes without a word: orders; "
        "their tables must be copied anew"
    ) in restored.outcome.warnings
    assert any(line.startswith('slot "standby_1" is made: it keeps WAL from ') for line in lines)
    assert restored.value("SELECT count(*) FROM item") == 1
    # By this an operator sees whether the publisher's slot has gone on since.
    reached = (
        "SELECT remote_lsn FROM pg_replication_origin_status s, pg_subscription u WHERE external_id = 'pg_' || u.oid"
    )
    assert restored.value(reached) is not None
    assert subscriptions_of(restored) == [("items", False, None)]
    assert slots_of(restored) == [("orders", "test_decoding", "shop"), ("standby_1", None, None)]
    # The fence is lifted: the launcher runs, and finds nothing to wake.
    launcher = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'"
    wait_for(lambda: restored.value(launcher) == 1, "the launcher runs")
    assert restored.value("SELECT current_setting('max_logical_replication_workers')") == "4"
    directory = restore_directory(restored)
    for name in (SLOTS, SUBSCRIPTIONS):
        assert (directory / name).stat().st_mode & 0o777 == 0o600
        assert SECRET not in (directory / name).read_text()
    script = (directory / SUBSCRIPTIONS).read_text()
    assert "--   ALTER SUBSCRIPTION \"items\" SET (slot_name = 'items');\n" in script
    assert SECRET not in (directory / "state.json").read_text()
    assert SECRET not in "".join([*lines, restored.log_text()])
    run_script(restored, directory / SLOTS)
    run_script(restored, directory / SUBSCRIPTIONS)
    assert subscriptions_of(restored) == [("items", False, None)]
    assert len(slots_of(restored)) == 2
    with restored.connect() as connection:
        connection.execute("DROP SUBSCRIPTION items")
    publisher.cluster.sql("INSERT INTO item VALUES (2)")
    wait_for(lambda: subscriber.cluster.value("SELECT count(*) FROM item") == 2, "the original still receives")
    assert (publisher.streams(), publisher.sessions(), publisher.holder()) == (streams, sessions, holder)


def run_script(restored: Restored, path: Path) -> None:
    """Run a staged script as an operator would; any error fails the test."""
    lines = restored.postmaster()
    psql = str(newest_installation().program("psql"))
    command = [psql, "-X", "-v", "ON_ERROR_STOP=1", "-h", lines[4], "-p", lines[3], "-U", "postgres", "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tracked(make_keeper: MakeKeeper) -> Keeper:
    """A cluster with a slot and an enabled subscription to nobody, and a backup of it."""
    keeper = make_keeper(settings={"wal_level": "logical"})
    keeper.cluster.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    keeper.cluster.sql(
        "CREATE SUBSCRIPTION items CONNECTION 'host=127.0.0.1 port=1' PUBLICATION items "
        "WITH (connect = false, slot_name = 'items')"
    )
    keeper.cluster.sql("ALTER SUBSCRIPTION items ENABLE")
    keeper.backup("full", "local", *TRACKED)
    return keeper


def test_switches(tracked: Keeper) -> None:
    """Without the state nothing is made and nothing staged; subscriptions are disabled in every case."""
    off = tracked.restore("--no-restore-replication-state")
    assert "RESTORE PHASE 5/6 topology: 1 subscriptions disabled" in off.outcome.lines
    assert [path.name for path in restore_directory(off).glob("recreate*")] == []
    plan = tracked.plan(f"--pgdata-dir={tracked.directory}/planned")
    assert "replication: 1 slots are made again, 1 subscriptions are staged; every subscription is disabled" in plan
    without = tracked.restore("--no-recreate-replication-slots", "--recreate-subscriptions=no")
    assert [path.name for path in restore_directory(without).glob("recreate*")] == []
    for restored in (off, without):
        assert subscriptions_of(restored) == [("items", False, None)]
        assert slots_of(restored) == []


def test_subscriptions_are_made_when_that_is_asked_for(tracked: Keeper) -> None:
    """With run, one that the data does not hold any more is made again: disabled, and without a slot in a copy."""
    tracked.cluster.sql("ALTER SUBSCRIPTION items DISABLE")
    tracked.cluster.sql("ALTER SUBSCRIPTION items SET (slot_name = NONE)")
    tracked.cluster.sql("DROP SUBSCRIPTION items")
    tracked.backup("incremental", "local")
    staged = tracked.restore()
    assert subscriptions_of(staged) == []
    assert 'CREATE SUBSCRIPTION "items"' in (restore_directory(staged) / SUBSCRIPTIONS).read_text()
    made = tracked.restore("--recreate-subscriptions=run")
    phase = "RESTORE PHASE 5/6 topology: no subscription was enabled; 1 replication slots made; 1 subscriptions made"
    assert f"{phase}, disabled" in made.outcome.lines
    assert subscriptions_of(made) == [("items", False, None)]


def test_an_original_in_its_place_keeps_the_names_of_its_slots(tracked: Keeper, lab_directory: Path) -> None:
    """Restored over itself, a subscriber is disabled and still knows its slot; who followed it is named."""
    with tracked.cluster.create_standby(lab_directory / "standby", slot="standby_1") as standby:
        standby.start()
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        wait_for(lambda: tracked.cluster.value(streaming) == 1, "the standby streams")
        tracked.backup("incremental", "local", *TRACKED)
    tracked.cluster.stop()
    restored = tracked.restore("--overwrite-existing", to=tracked.cluster.data_directory.name)
    assert subscriptions_of(restored) == [("items", False, "items")]
    assert not any("is detached" in line for line in restored.outcome.lines)
    follower = "servers that followed the original must be made anew from this one: walreceiver (slot standby_1)"
    assert follower in restored.outcome.lines
    assert slots_of(restored) == [("standby_1", None, None)]


def test_what_is_prepared_waits_with_its_scripts(tracked: Keeper) -> None:
    """A server that is not started has its scripts beside it, and pgkeep finish does phase 5."""
    restored = tracked.restore(start=False)
    directory = restore_directory(restored)
    assert sorted(path.name for path in directory.glob("recreate*")) == [SLOTS, SUBSCRIPTIONS]
    outcome = tracked.run("finish", f"--pgdata-dir={restored.data_directory}", name="")
    restored.guard()
    assert outcome.status == 0, outcome.lines
    assert "RESTORE PHASE 5/6 topology: 1 subscriptions disabled; 1 replication slots made" in outcome.lines
    assert slots_of(restored) == [("standby_1", None, None)]


def test_a_server_that_waits_at_its_target_keeps_its_subscriptions_asleep(tracked: Keeper) -> None:
    """At a pause no worker can run although the subscription is enabled; pgkeep finish promotes, then disables it."""
    restored = tracked.restore("--target-immediate", "--recovery-target-action=pause")
    assert "RESTORE PHASE 5/6 topology: waits for the promotion" in restored.outcome.lines
    assert subscriptions_of(restored) == [("items", True, "items")]
    assert restored.value("SELECT current_setting('max_logical_replication_workers')") == "0"
    outcome = tracked.run("finish", f"--pgdata-dir={restored.data_directory}", name="")
    assert outcome.status == 0, outcome.lines
    assert "RESTORE PHASE 5/6 topology: 1 subscriptions disabled; 1 replication slots made" in outcome.lines
    assert subscriptions_of(restored) == [("items", False, None)]


def state_of(cluster: Cluster, directory: Path) -> RestoreState:
    """Return the state of a restore into *directory* that stands before phase 5 of a copy of *cluster*."""
    texts = dict.fromkeys(("restore_id", "backup_id", "version_directory", "backup_label", "tablespace_map"), "")
    empty: dict[str, dict[str, str]] = {
        name: {} for name in ("tablespaces", "recovery_settings", "lasting", "minimums", "configuration")
    }
    return msgspec.convert(
        {
            **texts,
            **empty,
            **dict.fromkeys(("stop_lsn", "archived_end"), "0/1000000"),
            **dict.fromkeys(("vault", "cluster", "bin_directory", "wal_plan", "target_value"), ""),
            "system_identifier": "1",
            "data_directory": str(directory),
            "owner": None,
            "major": cluster.major,
            "superuser": "postgres",
            "timeline": 1,
            "target_kind": "latest",
            "target_inclusive": True,
            "target_action": "promote",
            "segment_size": 16 << 20,
            "has_hole": False,
            "timeout_seconds": 60,
            "is_copy": True,
        },
        RestoreState,
    )


class Killed(BaseException):
    """The process is gone."""


def test_a_kill_inside_the_phase_loses_no_name_of_a_slot(make_cluster: MakeCluster, lab_directory: Path) -> None:
    """Run again after a kill at any question to the server, the phase ends the same and the script has every slot."""
    cluster = make_cluster(settings={"wal_level": "logical", "max_logical_replication_workers": "0"})
    cluster.sql(
        "CREATE SUBSCRIPTION items CONNECTION 'host=127.0.0.1 port=1' PUBLICATION items "
        "WITH (connect = false, slot_name = 'items')"
    )
    for asked in range(3):
        cluster.sql("ALTER SUBSCRIPTION items SET (slot_name = 'items')")
        cluster.sql("ALTER SUBSCRIPTION items ENABLE")
        directory = RestoreDirectory(lab_directory / f"copy{asked}")
        with directory.held():
            run = RestoreRun(directory, state_of(cluster, lab_directory / f"copy{asked}"))
            with pytest.raises(Killed):
                restore_topology(run, _ask(cluster, dies_after=asked), say=lambda _: None, warn=pytest.fail)
            stored = directory.read()
            again = RestoreRun(directory, stored if stored is not None else run.state)
            said: list[str] = []
            text = restore_topology(again, _ask(cluster), say=said.append, warn=pytest.fail)
        assert text == "1 subscriptions disabled"
        assert cluster.sql(_SUBSCRIPTIONS) == [("items", False, None)]
        assert "SET (slot_name = 'items')" in (directory.path / SUBSCRIPTIONS).read_text()


def _ask(cluster: Cluster, *, dies_after: int = 1000) -> Callable[[str], Server]:
    left = dies_after

    def ask(database: str) -> Server:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return Server.open(ConnectionTarget(**cluster.connection_arguments(dbname=database or "postgres")))

    return ask
