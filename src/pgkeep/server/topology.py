"""A restored server among other servers: its subscriptions put to sleep, its slots made again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from pgkeep.errors import RecoveryFailed, ServerError
from pgkeep.pg.grants import identifier
from pgkeep.pg.replication_sql import create_slot, create_subscription
from pgkeep.pg.replication_state import Slot, Subscription
from pgkeep.server.connection import Server, fetch

SLOT_SECONDS = 60
"""A logical slot waits for all running transactions to end; behind the fence there should be none."""

Ask = Callable[[str], Server]
"""Connects as superuser to the database of that name; empty for whichever there is."""
Warn = Callable[[str], None]

_PREPARED = "transactions are prepared (pg_prepared_xacts); end them, then run recreate_slots.sql"

# The restored configuration, databases and roles may say that sessions only read; an event trigger may forbid DDL.
_SESSION = "SELECT set_config('default_transaction_read_only', 'off', false), set_config('session_replication_role', 'replica', false)"  # noqa: E501 - one statement


def disable_subscriptions(ask: Ask, subscriptions: Sequence[Subscription], *, is_detached: bool) -> int:
    """
    Disable every subscription, so that none takes its publisher's slot when the server is let go.

    Args:
        ask: Leads to the restored server, on which no worker runs.
        subscriptions: What it has.
        is_detached: Also take the slots' names away: then neither ENABLE nor DROP reaches a publisher.

    Returns:
        How many were enabled.

    Raises:
        RecoveryFailed: One is still enabled.
    """
    enabled = sum(subscription.enabled for subscription in subscriptions)
    for database in sorted({subscription.database for subscription in subscriptions}):
        # Where nobody may connect, the catalog is changed below: who opens the database again would wake what is there.
        with contextlib.suppress(ServerError), _session(ask, database) as server:
            for subscription in subscriptions:
                if subscription.database == database:
                    _disable(server, subscription, is_detached=is_detached)
    with _session(ask, "") as server:
        # The catalog is one for all databases, and no worker is there that would have to be told.
        server.rows("UPDATE pg_catalog.pg_subscription SET subenabled = false WHERE subenabled")
        if is_detached and server.capabilities.has_nullable_slot_name:
            server.rows("UPDATE pg_catalog.pg_subscription SET subslotname = NULL WHERE subslotname IS NOT NULL")
        left = server.value("SELECT count(*) FROM pg_catalog.pg_subscription WHERE subenabled")
    if left:
        raise RecoveryFailed(f"{left} subscriptions of the restored server cannot be disabled")
    return enabled


def create_slots(
    ask: Ask, slots: Sequence[Slot], *, major: int, say: Callable[[str], None], warn: Warn
) -> tuple[list[Slot], int]:
    """
    Make those of *slots* that are missing; return which were made, and how many could not be.

    What cannot be made is a warning: the data is whole, and the script can be run again.
    """
    made: list[Slot] = []
    failed = 0
    for database in sorted({slot.database for slot in slots}):
        of_database = [slot for slot in slots if slot.database == database]
        try:
            with _session(ask, database) as server:
                if database and server.value("SELECT count(*) FROM pg_catalog.pg_prepared_xacts"):
                    # It would wait for them, and they for somebody who knows what they are.
                    failed += len(of_database)
                    names = ", ".join(f'"{slot.slot_name}"' for slot in of_database)
                    warn(f'logical slots of database "{database}" are not made, {names}: {_PREPARED}')
                    continue
                server.rows("SELECT set_config('statement_timeout', %s, false)", [f"{SLOT_SECONDS}s"])
                for slot in of_database:
                    try:
                        rows = server.rows(create_slot(slot, major=major))
                    except ServerError as error:
                        failed += 1
                        warn(f'slot "{slot.slot_name}" is not made: {error.message}')
                        continue
                    for (lsn,) in rows:
                        made.append(slot)
                        say(_made_text(slot, str(lsn)))
        except ServerError as error:
            failed += len(of_database)
            warn(f'slots of database "{database}" are not made: {error.message}')
    return made, failed


def create_subscriptions(ask: Ask, subscriptions: Sequence[Subscription], *, major: int, warn: Warn) -> int:
    """Make those of *subscriptions* that are missing, disabled, and reach no publisher; return how many were made."""
    made = 0
    for subscription in subscriptions:
        name = f'subscription "{subscription.name}" of database "{subscription.database}"'
        if not subscription.conninfo:
            warn(f"{name} is not made: how it reached its publisher was not recorded")
            continue
        count = "SELECT count(*) FROM pg_catalog.pg_subscription"
        try:
            with _session(ask, subscription.database) as server:
                before = server.value(count)
                server.rows(create_subscription(subscription, major=major))
                made += server.value(count) - before
        except ServerError as error:
            warn(f"{name} is not made: {error.message}")
    return made


def keeps_wal_without_bound(ask: Ask) -> bool:
    """Tell whether a slot that nobody uses would fill the server's disk."""
    with _session(ask, "") as server:
        if not server.capabilities.has_slot_wal_status:
            return True
        return bool(server.value("SELECT current_setting('max_slot_wal_keep_size') = '-1'"))


def _disable(server: Server, subscription: Subscription, *, is_detached: bool) -> None:
    name = identifier(subscription.name)
    if subscription.enabled:
        fetch(server.sql, f"ALTER SUBSCRIPTION {name} DISABLE", where=server.where)
    if is_detached and subscription.slot_name:
        fetch(server.sql, f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)", where=server.where)


def _made_text(slot: Slot, lsn: str) -> str:
    if slot.is_physical:
        return f'slot "{slot.slot_name}" is made: it keeps WAL from {lsn} on'
    return f'slot "{slot.slot_name}" of database "{slot.database}" is made: it begins at {lsn}'


@contextlib.contextmanager
def _session(ask: Ask, database: str) -> Iterator[Server]:
    with ask(database) as server:
        server.rows(_SESSION)
        yield server
