"""The scripts that lie beside a backup's record: SQL for people, made from what the record holds."""

from __future__ import annotations

from pgkeep.pg.replication_sql import SLOTS_FILE, SUBSCRIPTIONS_FILE, slots_script, subscriptions_script
from pgkeep.streams.record import RecordHead

SCRIPT_NAMES = frozenset({SLOTS_FILE, SUBSCRIPTIONS_FILE})


def scripts_of(head: RecordHead) -> dict[str, bytes]:
    """Return name and content of each script of the backup with *head*; none without a replication state."""
    state = head.replication
    if state is None:
        return {}
    return {
        SLOTS_FILE: slots_script(state).encode("utf-8", "surrogateescape"),
        SUBSCRIPTIONS_FILE: subscriptions_script(state).encode("utf-8", "surrogateescape"),
    }


def is_script(path: str, root: str) -> bool:
    """Tell whether virtual *path* is that of a script: it stands beside a record, beneath *root*."""
    inside = path.removeprefix(f"{root}/")
    _, slash, name = inside.partition("/")
    return inside != path and bool(slash) and name in SCRIPT_NAMES
