"""
Phase 5 of a restore: what the restored server is to other servers, before anybody can reach it.

Whatever is asked for, no subscription stays enabled: the first worker that woke would take the publisher's slot away
from the server that uses it, and move it on. Slots are made again, since no backup brings them back; subscriptions that
are missing only where that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from pgkeep.datadir.durable import write_file
from pgkeep.datadir.write_errors import write_errors
from pgkeep.jobs.restoring.directory import RestoreRun
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.pg.replication_sql import (
    SLOTS_FILE,
    SUBSCRIPTIONS_FILE,
    enable_lines,
    slots_script,
    subscriptions_script,
    why_not_recreated,
)
from pgkeep.pg.replication_state import Follower, ReplicationState, Slot, Subscription
from pgkeep.server.replication_state import subscriptions as list_subscriptions
from pgkeep.server.topology import (
    Ask,
    create_slots,
    create_subscriptions,
    disable_subscriptions,
    keeps_wal_without_bound,
)

Say = Callable[[str], None]


def stage_scripts(run: RestoreRun) -> None:
    """
    Write the scripts into the restore directory, as far as they are wanted; doing it again gives the same.

    Raises:
        PgkeepError: One cannot be written.
    """
    state, recorded = run.state, _recorded(run.state)
    texts = {}
    if recorded is not None and _wants_slots(state.options):
        texts[SLOTS_FILE] = slots_script(recorded)
    found = _found(state)
    if _subscriptions_wanted(state.options) != "no" and (recorded is not None or found):
        texts[SUBSCRIPTIONS_FILE] = subscriptions_script(recorded or ReplicationState(major=state.major))
        texts[SUBSCRIPTIONS_FILE] += enable_lines(found) if found else ""
    for name, text in texts.items():
        path = run.directory.path / name
        with write_errors(f"write {path}", again="run the same command again"):
            write_file(path, text.encode("utf-8", "surrogateescape"), owner=state.owner_of_files)


def plan_line(recorded: ReplicationState | None, options: Mapping[str, Any]) -> str:
    """Return what phase 5 would do, for people; empty where nothing is known of slots and subscriptions."""
    if recorded is None:
        return ""
    wanted = sum(not why_not_recreated(slot) for slot in recorded.slots) if _wants_slots(options) else 0
    script = {"no": "not staged", "stage": "staged", "run": "made where they are missing"}
    return (
        f"replication: {wanted} slots are made again, {len(recorded.subscriptions)} subscriptions are "
        f"{script[_subscriptions_wanted(options)]}; every subscription is disabled"
    )


def restore_topology(run: RestoreRun, ask: Ask, *, say: Say, warn: Say) -> str:
    """
    Run phase 5 on a server that is promoted and still behind its fence, and return what to say of it.

    Args:
        run: The restore.
        ask: Leads to the server.
        say: Takes one line for the log.
        warn: Takes one warning.

    Raises:
        RecoveryFailed: A subscription cannot be disabled: the server must not be let go.
        ServerError: The server does not answer.
    """
    parts = [_silence(run, ask, say=say, warn=warn)]
    recorded = _recorded(run.state)
    if recorded is not None and _wants_slots(run.state.options):
        parts += _make_slots(recorded.slots, ask, major=run.state.major, say=say, warn=warn)
    if recorded is not None and _subscriptions_wanted(run.state.options) == "run":
        parts.append(_make_subscriptions(run.state, recorded.subscriptions, ask, warn=warn))
    if recorded is not None and recorded.followers and not run.state.is_copy:
        followers = ", ".join(map(_follower_text, recorded.followers))
        say(f"servers that followed the original must be made anew from this one: {followers}")
    return "; ".join(parts)


def _silence(run: RestoreRun, ask: Ask, *, say: Say, warn: Say) -> str:
    """Disable every subscription, and remember how each was: an earlier process may have been killed on the way."""
    if not run.state.subscriptions:
        with ask("") as server:
            found = list_subscriptions(server, warn=warn)
        if found:
            run.record(subscriptions=msgspec.to_builtins(found))
    found = _found(run.state)
    stage_scripts(run)
    is_detached = run.state.is_copy
    disabled = disable_subscriptions(ask, found, is_detached=is_detached)
    for subscription in found:
        if is_detached and subscription.slot_name:
            say(
                f'subscription "{subscription.name}" of database "{subscription.database}" is detached from the '
                f'publisher\'s slot "{subscription.slot_name}", which the original may use'
            )
    # Inside the data directory the scripts go with the state, when the restore is over.
    if found and _subscriptions_wanted(run.state.options) != "no" and not run.directory.is_inside:
        say(f"how to wake the subscriptions: {run.directory.path / SUBSCRIPTIONS_FILE}")
    return f"{disabled} subscriptions disabled" if disabled else "no subscription was enabled"


def _make_slots(slots: list[Slot], ask: Ask, *, major: int, say: Say, warn: Say) -> Iterator[str]:
    wanted = [slot for slot in slots if not why_not_recreated(slot)]
    for slot in slots:
        reason = why_not_recreated(slot)
        if reason and not slot.temporary:
            say(f'slot "{slot.slot_name}" is not made again: {reason}')
    if not wanted:
        return
    made, failed = create_slots(ask, wanted, major=major, say=say, warn=warn)
    yield f"{len(made)} replication slots made" + (f", {failed} could not be made" if failed else "")
    logical = [slot.slot_name for slot in made if not slot.is_physical]
    if logical:
        # A consumer asks to go on where it was, and that may lie ahead: what is written up to there it never gets, and
        # neither side says so (CreateDecodingContext in src/backend/replication/logical/logical.c).
        warn(
            f"consumers of logical slots must resynchronise, or miss changes without a word: {', '.join(logical)}; "
            "their tables must be copied anew"
        )
    if made and keeps_wal_without_bound(ask):
        warn(
            "the server keeps all WAL for a slot that nobody uses, until its disk is full: drop those whose consumers "
            "do not come back, or set max_slot_wal_keep_size"
        )


def _make_subscriptions(state: RestoreState, recorded: list[Subscription], ask: Ask, *, warn: Say) -> str:
    if state.is_copy:
        recorded = [msgspec.structs.replace(subscription, slot_name="") for subscription in recorded]
    made = create_subscriptions(ask, recorded, major=state.major, warn=warn)
    return f"{made} subscriptions made, disabled"


def _follower_text(follower: Follower) -> str:
    facts = [follower.client_addr, f"slot {follower.slot_name}" if follower.slot_name else ""]
    return f"{follower.application_name or 'one without a name'} ({', '.join(filter(None, facts)) or 'local'})"


def _recorded(state: RestoreState) -> ReplicationState | None:
    return msgspec.convert(state.replication, ReplicationState) if state.replication else None


def _found(state: RestoreState) -> list[Subscription]:
    return msgspec.convert(state.subscriptions, list[Subscription])


def _is_wanted(options: Mapping[str, Any]) -> bool:
    return bool(_option(options, "restore_replication_state", default=True))


def _wants_slots(options: Mapping[str, Any]) -> bool:
    return _is_wanted(options) and bool(_option(options, "recreate_replication_slots", default=True))


def _subscriptions_wanted(options: Mapping[str, Any]) -> str:
    return str(_option(options, "recreate_subscriptions", default="stage")) if _is_wanted(options) else "no"


def _option(options: Mapping[str, Any], name: str, *, default: Any) -> Any:
    value = options.get(name)
    return default if value is None else value
