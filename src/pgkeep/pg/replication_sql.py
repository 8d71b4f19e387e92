"""
The SQL that brings slots and subscriptions back: one statement each, and two scripts for psql.

Every statement can be run again, and none of them reaches another server: a slot waits for its consumer, a subscription
is made disabled and without a look at its publisher.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.grants import identifier, literal
from pgkeep.pg.replication_state import Follower, ReplicationState, ServerRole, Slot, Subscription

SLOTS_FILE = "recreate_slots.sql"
SUBSCRIPTIONS_FILE = "recreate_subscriptions.sql.DISABLED"
"""No program takes it for a script: whoever runs it has read it and given it another name, or names it to psql."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+", re.ASCII)


def why_not_recreated(slot: Slot) -> str:
    """Return why *slot* is not to be made again; empty when it is."""
    if slot.temporary:
        return "temporary: it ended with the session that made it"
    if slot.synced:
        return "a copy of one of the primary's: the server makes such copies itself"
    return f"it was lost already when the backup was made: {slot.loss}" if slot.loss else ""


def create_slot(slot: Slot, *, major: int) -> str:
    """
    Return the query that makes *slot* unless it exists, whose row is the LSN from which it keeps WAL.

    A logical one belongs into its database; it waits for all running transactions, prepared ones included.
    """
    name = literal(slot.slot_name)
    if slot.is_physical:
        call = f"pg_catalog.pg_create_physical_replication_slot({name}, true)"
    else:
        arguments = [name, literal(slot.plugin)]
        capabilities = Capabilities(major * 10000)
        if capabilities.has_two_phase_slots:
            arguments += ["false", _truth(slot.two_phase)]
        if capabilities.has_failover_slots:
            arguments.append(_truth(slot.failover))
        call = f"pg_catalog.pg_create_logical_replication_slot({', '.join(arguments)})"
    return (
        f"SELECT lsn FROM {call}\n"
        f"WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {name})"
    )


def create_subscription(subscription: Subscription, *, major: int) -> str:
    """Return the statement that makes *subscription*, disabled, unless its database has one of that name."""
    name = identifier(subscription.name)
    publications = ", ".join(map(identifier, subscription.publications))
    options = ", ".join(f"{option} = {value}" for option, value in _options(subscription, major))
    lines = [
        "BEGIN",
        "  IF NOT EXISTS (SELECT FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid",
        f"                 WHERE s.subname = {literal(subscription.name)} AND d.datname = current_database()) THEN",
        f"    CREATE SUBSCRIPTION {name}",
        f"      CONNECTION {literal(subscription.conninfo)}",
        f"      PUBLICATION {publications}",
        f"      WITH ({options});",
    ]
    if subscription.owner:
        lines += [
            f"    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal(subscription.owner)}) THEN",
            f"      ALTER SUBSCRIPTION {name} OWNER TO {identifier(subscription.owner)};",
            "    END IF;",
        ]
    lines += ["  END IF;", "END"]
    body = "\n".join(lines)
    return f"DO {_dollars(body)} {body} {_dollars(body)}"


def slots_script(state: ReplicationState) -> str:
    """Return the script ``recreate_slots.sql``."""
    lines = [
        f"-- The replication slots of a PostgreSQL {state.major} {state.server.word} as of {state.captured_at or '?'}.",
        "-- Run it on the server that takes its place, when that is promoted, as a superuser:",
        f"--   psql -X -d postgres -f {SLOTS_FILE}",
        "-- It can be run again: a slot that exists stays as it is.",
        "-- From then on the server keeps WAL for each of them until it is dropped, whether anybody streams or not.",
        "-- A logical slot begins where it is made. What its consumer has not received by then must be copied anew.",
    ]
    lines += [""]
    lines += [_comment(line) for line in _topology_lines(state)]
    for slot in (slot for slot in state.slots if slot.is_physical):
        lines += _slot_lines(slot, state.major)
    logical = sorted((slot for slot in state.slots if not slot.is_physical), key=lambda slot: slot.database)
    for database, slots in groupby(logical, key=lambda slot: slot.database):
        lines += _in_database(database, (line for slot in slots for line in _slot_lines(slot, state.major)))
    if not state.slots:
        lines += ["", "-- There was no slot."]
    return "\n".join(lines) + "\n"


def subscriptions_script(state: ReplicationState) -> str:
    """Return the script ``recreate_subscriptions.sql.DISABLED``."""
    lines = [
        f"-- The subscriptions of a PostgreSQL {state.major} {state.server.word} as of {state.captured_at or '?'}.",
        "-- Nobody runs this by itself. A subscription that is enabled takes the publisher's slot away from whoever",
        "-- uses it, and moves it on: read this first, and make sure that no other server subscribes by that slot.",
        "-- As it stands it makes the subscriptions that are missing, disabled; it can be run again:",
        f"--   psql -X -d postgres -f {SUBSCRIPTIONS_FILE}",
        "-- Passwords were not recorded: put them in, or a passfile.",
    ]
    for database, found in groupby(state.subscriptions, key=lambda subscription: subscription.database):
        lines += _in_database(
            database, (line for subscription in found for line in _subscription_lines(subscription, state.major))
        )
    if not state.subscriptions:
        lines += ["", "-- There was no subscription."]
    return "\n".join(lines) + "\n"


def enable_lines(subscriptions: Sequence[Subscription]) -> str:
    """Return a part of that script, all of it comments: what wakes the subscriptions that a restored server has."""
    lines = [
        "",
        "-- What the restored server has, and the statements that wake it. Where the publisher's slot has gone on",
        "-- since the moment that was restored, changes are missing that do not come again. It has not, where",
        "--   publisher:  SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots;",
        "-- is not beyond",
        "--   here:       SELECT external_id, remote_lsn FROM pg_replication_origin_status;",
        "-- Otherwise drop subscription and slot, empty the tables, and make both anew, which copies them.",
    ]
    for subscription in subscriptions:
        name = identifier(subscription.name)
        lines += ["--", _comment(f"database {identifier(subscription.database)}:")]
        if subscription.slot_name:
            lines.append(_comment(f"  ALTER SUBSCRIPTION {name} SET (slot_name = {literal(subscription.slot_name)});"))
        lines.append(_comment(f"  ALTER SUBSCRIPTION {name} ENABLE;"))
    return "\n".join(lines) + "\n"


def _options(subscription: Subscription, major: int) -> Iterator[tuple[str, str]]:
    capabilities = Capabilities(major * 10000)
    yield "connect", "false"
    yield "enabled", "false"
    yield "create_slot", "false"
    yield "slot_name", literal(subscription.slot_name) if subscription.slot_name else "NONE"
    yield "synchronous_commit", literal(subscription.synchronous_commit)
    if capabilities.has_binary_subscriptions:
        yield "binary", _truth(subscription.binary)
        yield "streaming", literal(subscription.streaming)
    if capabilities.has_two_phase_subscriptions:
        yield "two_phase", _truth(subscription.two_phase)
        yield "disable_on_error", _truth(subscription.disable_on_error)
    if capabilities.has_subscription_origin:
        yield "password_required", _truth(subscription.password_required)
        yield "run_as_owner", _truth(subscription.run_as_owner)
        yield "origin", literal(subscription.origin)
    if capabilities.has_failover_slots:
        yield "failover", _truth(subscription.failover)


def _slot_lines(slot: Slot, major: int) -> Iterator[str]:
    facts = [slot.slot_type]
    if slot.plugin:
        facts.append(f"plugin {slot.plugin}")
    facts.append("in use" if slot.active else "not in use")
    facts += [f"kept WAL from {slot.restart_lsn}"] if slot.restart_lsn else []
    facts += [f"confirmed to {slot.confirmed_flush_lsn}"] if slot.confirmed_flush_lsn else []
    facts += [word for word, holds in (("two_phase", slot.two_phase), ("failover", slot.failover)) if holds]
    yield ""
    yield _comment(f"{slot.slot_name}: {', '.join(facts)}")
    reason = why_not_recreated(slot)
    if reason:
        yield _comment(f"not made again: {reason}")
    else:
        yield f"{create_slot(slot, major=major)};"


def _subscription_lines(subscription: Subscription, major: int) -> Iterator[str]:
    name = identifier(subscription.name)
    yield ""
    state = "enabled" if subscription.enabled else "disabled"
    missing = "; its password is not here" if subscription.has_password else ""
    yield _comment(f"{name}: was {state}, slot {subscription.slot_name or 'none'}{missing}")
    if subscription.skip_lsn:
        yield _comment(f"  was to skip the transaction that ends at {subscription.skip_lsn}")
    statement = f"{create_subscription(subscription, major=major)};"
    if not subscription.conninfo:
        yield _comment("  how it reached its publisher could not be recorded: fill in the empty CONNECTION")
        statement = "\n".join(map(_comment, statement.splitlines()))
    yield statement
    yield "-- To wake it, when no other server uses its slot; made anew, it knows no table before it is refreshed:"
    yield _comment(f"  ALTER SUBSCRIPTION {name} ENABLE;")
    yield _comment(f"  ALTER SUBSCRIPTION {name} REFRESH PUBLICATION WITH (copy_data = false);")


def _topology_lines(state: ReplicationState) -> Iterator[str]:
    for follower in state.followers:
        yield f"streamed from it: {_follower_text(follower)}"
    for role in (state.server, *state.standbys):
        if role.is_standby:
            yield _standby_text(role)


def _follower_text(follower: Follower) -> str:
    facts = [follower.application_name or "no name", follower.client_addr or "local", follower.sync_state]
    return ", ".join(fact for fact in facts if fact) + (f", slot {follower.slot_name}" if follower.slot_name else "")


def _standby_text(role: ServerRole) -> str:
    names = ("primary_conninfo", "primary_slot_name")
    settings = [f"{name} = {literal(role.settings[name])}" for name in names if role.settings.get(name)]
    return f"standby {role.host or 'on a local socket'}: {', '.join(settings) or 'its settings are not known'}"


def _in_database(database: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield *lines* for psql in *database*, or as comments where psql cannot be told to go there."""
    yield ""
    if "\n" in database or "\r" in database:
        yield _comment(f"in database {identifier(database)}, whose name psql cannot read in a script:")
        yield from (_comment(part) for line in lines for part in line.splitlines())
        return
    yield rf"\connect {_connect_argument(database)}"
    yield from lines


def _connect_argument(database: str) -> str:
    # As pg_dumpall writes it: appendPsqlMetaConnect in src/fe_utils/string_utils.c.
    if _PLAIN_NAME.fullmatch(database):
        return database
    escaped = database.replace("\\", "\\\\").replace("'", "\\'")
    place = f"dbname='{escaped}'"
    return f"-reuse-previous=on {identifier(place)}"


def _comment(text: str) -> str:
    # A name may hold a line's end, and what follows that would be run.
    return f"-- {' '.join(text.splitlines())}"


def _dollars(body: str) -> str:
    number = 0
    while (quote := f"$pgkeep{number or ''}$") in body:
        number += 1
    return quote


def _truth(value: bool) -> str:  # noqa: FBT001 - the value is all there is
    return "true" if value else "false"
