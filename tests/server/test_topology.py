"""A server that was restored, seen by its slots and subscriptions: asleep, made again, and never in anybody's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pgkeep.pg.replication_state import Slot, Subscription
from pgkeep.server import topology
from pgkeep.server.connection import Server
from pgkeep.server.replication_state import subscriptions
from pgkeep.server.topology import create_slots, create_subscriptions, disable_subscriptions, keeps_wal_without_bound
from tests.lab.cluster import Cluster, MakeCluster

from .conftest import target_of

PHYSICAL = Slot(slot_name="standby_1", slot_type="physical")
LOGICAL = Slot(slot_name="orders", slot_type="logical", plugin="test_decoding", database="shop")


@pytest.fixture
def fenced(major: int, make_cluster: MakeCluster) -> Cluster:
    """A cluster that starts no logical worker, as behind the fence, with a database beside the usual one."""
    settings = {"wal_level": "logical", "max_logical_replication_workers": "0", "max_prepared_transactions": "2"}
    cluster = make_cluster(major=major, settings=settings)
    cluster.sql("CREATE DATABASE shop")
    return cluster


def ask_of(cluster: Cluster) -> Callable[[str], Server]:
    """Return what leads to the databases of *cluster*."""
    return lambda database: Server.open(target_of(cluster, dbname=database or "postgres"))


def found_in(cluster: Cluster) -> list[Subscription]:
    """Return the subscriptions of *cluster*."""
    with Server.open(target_of(cluster)) as server:
        return subscriptions(server, warn=pytest.fail)


def subscribe(cluster: Cluster, name: str, dbname: str) -> None:
    """Make an enabled subscription to a publisher that is not there."""
    cluster.sql(
        f"CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION items "
        f"WITH (connect = false, slot_name = '{name}')",
        dbname=dbname,
    )
    cluster.sql(f"ALTER SUBSCRIPTION {name} ENABLE", dbname=dbname)


def test_every_subscription_is_put_to_sleep(fenced: Cluster) -> None:
    """Neither sessions that only read, nor an event trigger, nor a database that is closed keeps one awake."""
    for dbname in ("postgres", "shop"):
        subscribe(fenced, f"items_{dbname}", dbname)
    fenced.sql(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no DDL here'; END $$",
    )
    fenced.sql("CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()")
    fenced.sql("ALTER ROLE postgres SET default_transaction_read_only = on")
    with fenced.connect("postgres", options="-c default_transaction_read_only=off") as session:
        session.execute("ALTER DATABASE shop ALLOW_CONNECTIONS false")
    found = found_in(fenced)
    assert [one.enabled for one in found] == [True, True]
    assert disable_subscriptions(ask_of(fenced), found, is_detached=False) == 2
    assert [(one.enabled, one.slot_name) for one in found_in(fenced)] == [
        (False, "items_postgres"),
        (False, "items_shop"),
    ]
    # Once more, as after a kill: nothing is left to do, and what it was like is remembered by the caller.
    assert disable_subscriptions(ask_of(fenced), found_in(fenced), is_detached=True) == 0
    # Of a database that nobody may enter, 12 does not let the slot's name go.
    closed = "items_shop" if fenced.major == 12 else ""
    assert [(one.enabled, one.slot_name) for one in found_in(fenced)] == [(False, ""), (False, closed)]


def test_a_detached_subscription_reaches_no_publisher(fenced: Cluster) -> None:
    """Without its slot's name a subscription can be dropped, and not be enabled, while its publisher is away."""
    subscribe(fenced, "items", "shop")
    disable_subscriptions(ask_of(fenced), found_in(fenced), is_detached=True)
    with pytest.raises(Exception, match="cannot enable subscription that does not have a slot name"):
        fenced.sql("ALTER SUBSCRIPTION items ENABLE", dbname="shop")
    fenced.sql("DROP SUBSCRIPTION items", dbname="shop")
    assert found_in(fenced) == []


def test_slots_are_made_where_they_can_be(fenced: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be made is made once; what would wait for a transaction or lacks its database is a warning."""
    monkeypatch.setattr(topology, "SLOT_SECONDS", 1)
    said: list[str] = []
    warned: list[str] = []
    gone = Slot(slot_name="gone", slot_type="logical", plugin="test_decoding", database="dropped")

    def make(*slots: Slot) -> tuple[int, int]:
        made, failed = create_slots(ask_of(fenced), slots, major=fenced.major, say=said.append, warn=warned.append)
        return len(made), failed

    with fenced.connect() as session:
        session.execute("BEGIN")
        session.execute("CREATE TABLE t AS SELECT 1")
        session.execute("PREPARE TRANSACTION 'left over'")
    assert make(PHYSICAL, LOGICAL, gone) == (1, 2)
    assert [line.partition(" on")[0].rpartition(" ")[0] for line in said] == [
        'slot "standby_1" is made: it keeps WAL from'
    ]
    assert len(warned) == 2
    assert 'database "dropped" does not exist' in warned[0]
    assert warned[1] == (
        'logical slots of database "shop" are not made, "orders": transactions are prepared (pg_prepared_xacts); '
        "end them, then run recreate_slots.sql"
    )
    fenced.sql("ROLLBACK PREPARED 'left over'")
    warned.clear()
    with fenced.connect() as session, session.transaction():
        session.execute("CREATE TABLE t AS SELECT 1")
        assert make(LOGICAL) == (0, 1)
    [warning] = warned
    assert warning.startswith('slot "orders" is not made: ')
    assert "canceling statement due to statement timeout" in warning
    said.clear()
    assert make(PHYSICAL, LOGICAL) == (1, 0)
    row: Any = fenced.sql("SELECT plugin, database, restart_lsn FROM pg_replication_slots WHERE slot_name = 'orders'")
    assert row[0][:2] == ("test_decoding", "shop")
    [line] = said
    assert line.startswith('slot "orders" of database "shop" is made: it begins at ')
    assert make(PHYSICAL, LOGICAL) == (0, 0)
    assert keeps_wal_without_bound(ask_of(fenced))


def test_missing_subscriptions_are_made_asleep(fenced: Cluster) -> None:
    """Those that are there stay as they are; one whose way is not known is a warning."""
    subscribe(fenced, "items", "shop")
    there = found_in(fenced)
    new = Subscription(name="more", database="postgres", conninfo="host=127.0.0.1 port=1", publications=["a"])
    unknown = Subscription(name="other", database="postgres", publications=["a"])
    warned: list[str] = []
    made = create_subscriptions(ask_of(fenced), [*there, new, unknown], major=fenced.major, warn=warned.append)
    assert made == 1
    assert warned == [
        'subscription "other" of database "postgres" is not made: how it reached its publisher was not recorded'
    ]
    assert [(one.name, one.enabled) for one in found_in(fenced)] == [("more", False), ("items", True)]
