"""The SQL that brings slots and subscriptions back: what it says, and what it leaves out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.pg.capabilities import SUPPORTED_MAJORS
from pgkeep.pg.replication_sql import (
    create_slot,
    create_subscription,
    enable_lines,
    slots_script,
    subscriptions_script,
    why_not_recreated,
)
from pgkeep.pg.replication_state import Follower, ReplicationState, ServerRole, Slot, Subscription
from pgkeep.streams.record import Level, RecordHead
from pgkeep.streams.record_io import parse_head, render_head

LOGICAL = Slot(slot_name="orders", slot_type="logical", plugin="pgoutput", database="shop", two_phase=True)
ITEMS = Subscription(name="items", database="shop", conninfo="host=db1", slot_name="items", publications=["items"])


@pytest.mark.parametrize(
    ("version", "call"),
    [
        (12, "('orders', 'pgoutput')"),
        (13, "('orders', 'pgoutput')"),
        (14, "('orders', 'pgoutput', false, true)"),
        (16, "('orders', 'pgoutput', false, true)"),
        (17, "('orders', 'pgoutput', false, true, false)"),
        (18, "('orders', 'pgoutput', false, true, false)"),
    ],
)
def test_a_logical_slot_is_made_with_what_its_major_knows(version: int, call: str) -> None:
    """An argument that a server does not have is not given."""
    assert create_slot(LOGICAL, major=version) == (
        f"SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot{call}\n"
        "WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = 'orders')"
    )


@pytest.mark.parametrize(
    ("version", "first", "absent"),
    [(12, "", "binary"), (14, "binary", "two_phase"), (15, "disable_on_error", "origin"), (16, "origin", "failover")],
)
def test_a_subscription_is_made_with_what_its_major_knows(version: int, first: str, absent: str) -> None:
    """Options appear with the major that brought them, and no subscription is made enabled or looks at a publisher."""
    statement = create_subscription(ITEMS, major=version)
    assert "connect = false, enabled = false, create_slot = false, slot_name = 'items'" in statement
    assert first in statement
    assert f"{absent} =" not in statement


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        ({"temporary": True}, "temporary: it ended with the session that made it"),
        ({"synced": True}, "a copy of one of the primary's: the server makes such copies itself"),
        ({"wal_status": "lost"}, "it was lost already when the backup was made: WAL removed"),
        ({"conflicting": True}, "it was lost already when the backup was made: conflict"),
        ({"invalidation_reason": "idle_timeout"}, "it was lost already when the backup was made: idle_timeout"),
        ({"wal_status": "extended", "failover": True}, ""),
    ],
)
def test_slots_that_nobody_wants_again(slot: dict[str, object], reason: str) -> None:
    """A slot that is temporary, a copy, or lost is in the script with the reason why it is not made."""
    found = msgspec.structs.replace(LOGICAL, **slot)
    assert why_not_recreated(found) == reason
    script = slots_script(ReplicationState(major=18, slots=[found]))
    assert ("pg_create_logical_replication_slot" in script) == (not reason)
    assert not reason or f"-- not made again: {reason}\n" in script


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1))
def test_no_name_leaves_its_quotes_or_its_comment(name: str) -> None:
    """Whatever stands in a name, no line of a script is anything but a comment, a connect or a statement of ours."""
    state = ReplicationState(
        major=18,
        slots=[msgspec.structs.replace(LOGICAL, database=name)],
        subscriptions=[msgspec.structs.replace(ITEMS, name=name, database=name, conninfo="")],
        followers=[Follower(application_name=name)],
        server=ServerRole(is_standby=True, settings={"primary_conninfo": name}),
    )
    allowed = ("--", r"\connect ", "SELECT lsn FROM pg_catalog.", "WHERE NOT EXISTS (SELECT FROM pg_catalog.")
    for script in (slots_script(state), subscriptions_script(state), enable_lines(state.subscriptions)):
        lines = [line for line in script.split("\n") if line]
        assert [line for line in lines if not line.startswith(allowed)] == []


def test_databases_are_named_as_psql_reads_them() -> None:
    """A plain name is given as it is, another one quoted as pg_dumpall does, and one with a line's end not at all."""
    slots = [msgspec.structs.replace(LOGICAL, database=name) for name in ("shop", 'it\'s "x"', "a\nb")]
    lines = slots_script(ReplicationState(major=18, slots=slots)).splitlines()
    assert r"\connect shop" in lines
    assert r"""\connect -reuse-previous=on "dbname='it\'s ""x""'" """.rstrip() in lines
    assert '-- in database "a b", whose name psql cannot read in a script:' in lines


def test_dollar_quotes_are_not_ended_from_inside() -> None:
    """A statement whose text holds the usual dollar quote gets another one."""
    statement = create_subscription(msgspec.structs.replace(ITEMS, name="$pgkeep$; DROP"), major=SUPPORTED_MAJORS[0])
    assert statement.startswith("DO $pgkeep1$ BEGIN")
    assert statement.endswith("END $pgkeep1$")


def test_records_hold_the_state_and_older_records_do_not() -> None:
    """A record gives back the state that went into it; one without the field is read as before."""
    state = ReplicationState(major=18, slots=[LOGICAL], subscriptions=[ITEMS], standbys=[ServerRole(host="db2")])
    head = RecordHead(backup_id="20260821T0300Z-F", cluster="main", mode="pitr", level=Level.FULL, replication=state)
    assert parse_head(render_head(head)).replication == state
    old = render_head(msgspec.structs.replace(head, replication=None)).replace(b'"replication":null,', b"")
    assert b"replication" not in old
    assert parse_head(old).replication is None
