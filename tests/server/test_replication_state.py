"""The replication state of real servers of every major: what is captured, and that it can be made again from that."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgkeep.pg.replication_sql import slots_script, subscriptions_script
from pgkeep.pg.replication_state import Follower, ReplicationState
from pgkeep.server.connection import Server
from pgkeep.server.replication_state import capture
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation

from .conftest import target_of

SECRET = "geheim-in-a-subscription"
# What a view says of one slot, but for what no two servers have in common.
_PLAIN = "jsonb_strip_nulls(to_jsonb(s)) - 'datoid' - 'active_pid'"


def state_of(cluster: Cluster, *hosts: str, warnings: list[str] | None = None, **more: Any) -> ReplicationState:
    """Return the state of *cluster*, captured over TCP when hosts are named; any warning fails the test."""
    found: list[str] = []
    with Server.open(target_of(cluster, tcp=bool(hosts), **more)) as server:
        state = capture(server, standby_hosts=hosts, warn=found.append)
    if warnings is None:
        assert found == []
    else:
        warnings += found
    return state


def psql(cluster: Cluster, script: str, *, dbname: str = "postgres") -> str:
    """Run *script* as an operator would, from a file, and return what psql said; an error fails the test."""
    path = cluster.socket_directory / "script.sql"
    path.write_text(script)
    server_user().own(path)
    done = subprocess.run(
        [
            *(newest_installation().program("psql"), "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"),
            *("-d", cluster.conninfo(dbname=dbname), "-f", str(path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def options_of(major: int) -> str:
    """Return the options of a subscription that is unlike the defaults in everything that *major* knows."""
    options = "connect = false, enabled = false, create_slot = false, slot_name = 'shop_slot', synchronous_commit = on"
    if major >= 14:
        options += ", binary = true, streaming = true"
    if major >= 15:
        options += ", two_phase = true, disable_on_error = true"
    if major >= 16:
        options += ", origin = none, run_as_owner = true, password_required = false"
    if major >= 17:
        options += ", failover = true"
    return options


@pytest.fixture
def logical(major: int, make_cluster: MakeCluster) -> Cluster:
    """A cluster that may decode its WAL, with a database of a name that needs quotes."""
    cluster = make_cluster(major=major, settings={"wal_level": "logical"})
    cluster.sql('CREATE DATABASE "my ""shop"""')
    return cluster


def test_slots_are_captured_with_every_column_and_made_again(logical: Cluster) -> None:
    """What the view says is in the state, and the script gives a server without slots the same ones, also twice."""
    two_phase = ", false, true" if logical.major >= 14 else ""
    failover = ", true" if logical.major >= 17 else ""
    logical.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    logical.sql("SELECT pg_create_physical_replication_slot('standby_2')")
    logical.sql(
        f"SELECT pg_create_logical_replication_slot('orders', 'pgoutput'{two_phase}{failover})", dbname='my "shop"'
    )
    logical.sql("SELECT pg_create_logical_replication_slot('plain', 'test_decoding')")
    query = f"SELECT {_PLAIN} FROM pg_replication_slots s ORDER BY slot_name"
    before = [row[0] for row in logical.sql(query)]
    with logical.connect() as session:
        session.execute("SELECT pg_create_physical_replication_slot('pgkeep_0123456789abcdef', true, true)")
        session.execute("SELECT pg_create_physical_replication_slot('somebodys', false, true)")
        state = state_of(logical)
    assert state.summary == "5 replication slots, 0 subscriptions"
    assert (state.major, state.server.word) == (logical.major, "primary")
    found = {slot.slot_name: slot for slot in state.slots}
    assert found["somebodys"].temporary
    for row in before:
        captured = msgspec.to_builtins(found[row["slot_name"]])
        shared = {name: value for name, value in row.items() if value is not False}
        shared.pop("inactive_since", None)
        captured.pop("inactive_since", None)
        assert captured == shared
    assert found["orders"].two_phase == bool(two_phase)
    assert found["orders"].failover == bool(failover)
    for row in before:
        logical.sql("SELECT pg_drop_replication_slot(%s)", [row["slot_name"]])
    made = [line for line in psql(logical, slots_script(state)).splitlines() if "/" in line]
    assert len(made) == 4
    assert [line for line in psql(logical, slots_script(state)).splitlines() if "/" in line] == []
    same = ("slot_name", "slot_type", "plugin", "database", "temporary", "two_phase", "failover")
    after = [row[0] for row in logical.sql(query)]
    assert [[row.get(name) for name in same] for row in after] == [[row.get(name) for name in same] for row in before]
    assert all(row["restart_lsn"] for row in after)


def test_subscriptions_are_captured_whole_and_without_passwords(logical: Cluster) -> None:
    """Two databases with one subscription each give two; the script makes both anew, as they were, and disabled."""
    conninfo = f"host=publisher.invalid password={SECRET} application_name=shop"
    logical.sql("CREATE ROLE keeper SUPERUSER")
    for dbname in ("postgres", 'my "shop"'):
        logical.sql(
            f'CREATE SUBSCRIPTION "it\'s" CONNECTION \'{conninfo}\' PUBLICATION a, "B c" '
            f"WITH ({options_of(logical.major)})".replace("shop_slot", f"slot_{len(dbname)}"),
            dbname=dbname,
        )
    logical.sql('ALTER SUBSCRIPTION "it\'s" OWNER TO keeper')
    if logical.major >= 15:
        logical.sql("ALTER SUBSCRIPTION \"it's\" SKIP (lsn = '0/ABCDEF')")
    columns = "to_jsonb(s) - 'oid' - 'subdbid' - 'subowner' - 'subconninfo' - 'subskiplsn'"
    query = f"SELECT {columns}, subowner::regrole::text FROM pg_subscription s ORDER BY subslotname"
    before = logical.sql(query)
    state = state_of(logical)
    assert state.summary == "0 replication slots, 2 subscriptions"
    assert SECRET not in msgspec.json.encode(state).decode()
    shop, postgres = state.subscriptions
    assert (shop.database, postgres.database) == ('my "shop"', "postgres")
    assert postgres.conninfo == "host=publisher.invalid application_name=shop"
    assert postgres.has_password
    assert postgres.publications == ["a", "B c"]
    assert postgres.owner == "keeper"
    assert postgres.skip_lsn == ("0/ABCDEF" if logical.major >= 15 else "")
    script = subscriptions_script(state)
    assert SECRET not in script
    for dbname in ("postgres", 'my "shop"'):
        logical.sql('ALTER SUBSCRIPTION "it\'s" SET (slot_name = NONE)', dbname=dbname)
        logical.sql('DROP SUBSCRIPTION "it\'s"', dbname=dbname)
    psql(logical, script)
    assert logical.sql(query) == before
    assert {row[0] for row in logical.sql("SELECT subconninfo FROM pg_subscription")} == {postgres.conninfo}
    psql(logical, script)
    assert logical.sql(query) == before


def test_a_standby_and_its_primary_know_each_other(logical: Cluster, lab_directory: Path) -> None:
    """A primary's state names who streams from it, a standby's whom it follows, and hosts that are named are asked."""
    primary = logical
    primary.sql("CREATE DATABASE shop")
    primary.sql("CREATE PUBLICATION everything FOR ALL TABLES", dbname="shop")
    primary.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    with primary.create_standby(lab_directory / "standby") as standby:
        conninfo = primary.conninfo(tcp=True, application_name="walreceiver_1", password=SECRET)
        command = f"KEY={SECRET} /usr/bin/false --key={SECRET} %f %p"
        standby.configure({"primary_conninfo": conninfo, "primary_slot_name": "standby_1", "restore_command": command})
        auto = standby.data_directory / "postgresql.auto.conf"
        auto.write_text("")
        standby.start()
        query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        wait_for(lambda: primary.value(query) == 1, "the standby streams")
        warnings: list[str] = []
        state = state_of(
            primary, f"127.0.0.1:{standby.port}", f"127.0.0.1:{primary.port}", "127.0.0.1:1", warnings=warnings
        )
        assert state.followers == [
            Follower(
                application_name="walreceiver_1",
                client_addr="127.0.0.1",
                state="streaming",
                sync_state="async",
                slot_name="standby_1",
            )
        ]
        assert [(one.name, one.database, one.all_tables) for one in state.publications] == [
            ("everything", "shop", True)
        ]
        [role] = state.standbys
        assert (role.host, role.port, role.word) == ("127.0.0.1", standby.port, "standby")
        assert role.signal_files == ["standby.signal"]
        assert role.settings["primary_slot_name"] == "standby_1"
        assert role.settings["restore_command"] == "/usr/bin/false"
        assert "application_name=walreceiver_1" in role.settings["primary_conninfo"]
        assert role.has_password
        assert SECRET not in msgspec.json.encode(state).decode()
        [warning] = warnings
        assert warning.startswith("127.0.0.1:1 as postgres is not recorded as a standby: ")
        script = slots_script(state)
        assert "-- streamed from it: walreceiver_1, 127.0.0.1, async, slot standby_1\n" in script
        own = state_of(standby)
        assert own.server.is_standby
        assert own.server.lsn
        assert own.server.settings["primary_slot_name"] == "standby_1"


@pytest.mark.pg(">=14")
def test_what_a_role_may_not_know_is_said(logical: Cluster) -> None:
    """An ordinary role captures slots and names; where a secret could stand it reads nothing, and says so."""
    logical.sql("CREATE ROLE keeper LOGIN")
    logical.sql(
        f"CREATE SUBSCRIPTION items CONNECTION 'password={SECRET}' PUBLICATION a "
        "WITH (connect = false, slot_name = NONE)"
    )
    warnings: list[str] = []
    state = state_of(logical, user="keeper", warnings=warnings)
    assert [(one.name, one.conninfo) for one in state.subscriptions] == [("items", "")]
    assert state.server.signal_files is None
    [warning] = warnings
    assert warning == (
        "how subscriptions reach their publishers is not recorded: the role may not read it; "
        "grant the role pg_read_all_data and pg_read_all_settings, or SELECT on pg_subscription"
    )
    script = subscriptions_script(state)
    assert r"\connect postgres" in script.splitlines()
    assert [line for line in script.splitlines() if line and not line.startswith(("--", r"\connect"))] == []
    psql(logical, script)


@pytest.mark.pg(">=17")
def test_copies_of_failover_slots_are_the_primarys(logical: Cluster, lab_directory: Path) -> None:
    """A standby's copy of a slot is captured as one and not made again; the primary's own slot is, for failover."""
    logical.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    logical.sql("SELECT pg_create_logical_replication_slot('orders', 'pgoutput', false, false, true)")
    settings = {
        "primary_conninfo": logical.conninfo(),
        "hot_standby_feedback": "on",
        "sync_replication_slots": "on",
    }
    with logical.create_standby(lab_directory / "standby", slot="standby_1", settings=settings) as standby:
        standby.start()
        copied = "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary"

        def is_copied() -> bool:
            # A copy lasts only when the standby has caught up with the slot, which a quiet primary does not move.
            logical.sql("SELECT pg_log_standby_snapshot()")
            logical.sql(
                "SELECT count(*) FROM pg_logical_slot_get_binary_changes('orders', NULL, NULL, "
                "'proto_version', '1', 'publication_names', 'none')"
            )
            return bool(standby.value(copied) == 1)

        logical.sql("CREATE PUBLICATION none")
        wait_for(is_copied, "the standby has a copy of the slot")
        [copy] = state_of(standby).slots
        own = {slot.slot_name: slot for slot in state_of(logical).slots}["orders"]
    assert (copy.slot_name, copy.synced, copy.failover) == ("orders", True, True)
    assert (own.synced, own.failover) == (False, True)
    script = slots_script(ReplicationState(major=logical.major, slots=[copy]))
    assert "-- not made again: a copy of one of the primary's: the server makes such copies itself\n" in script
    assert "SELECT lsn" not in script
    script = slots_script(ReplicationState(major=logical.major, slots=[own]))
    assert "pg_create_logical_replication_slot('orders', 'pgoutput', false, false, true)" in script


def test_names_that_are_not_utf_8_cost_only_themselves(make_cluster: MakeCluster) -> None:
    """A database of no encoding may hold any bytes: what cannot be told is a warning, and the slots are there."""
    cluster = make_cluster(settings={"wal_level": "logical"}, initdb_options=["--encoding=SQL_ASCII"])
    cluster.sql("SELECT pg_create_physical_replication_slot('standby_1')")
    cluster.sql("CREATE PUBLICATION fine", dbname="template1")
    with cluster.connect(client_encoding="SQL_ASCII") as session:
        session.execute(b'CREATE PUBLICATION "b\xe4d"')
    warnings: list[str] = []
    state = state_of(cluster, warnings=warnings)
    assert [slot.slot_name for slot in state.slots] == ["standby_1"]
    assert [(one.name, one.database) for one in state.publications] == [("fine", "template1")]
    [warning] = warnings
    assert warning.startswith('publications of database "postgres" are not recorded: ')
    assert "invalid byte sequence" in warning
