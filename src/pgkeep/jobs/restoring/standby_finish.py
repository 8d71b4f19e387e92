"""A standby that was laid down earlier, perhaps before its primary was there: that is asked before the start."""

from __future__ import annotations

from typing import Any

import msgspec

from pgkeep.errors import RestoreRefused, ServerError
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.jobs.recovery.standby_plan import StandbyPlan
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.pg.lsn import SystemIdentifier, Timeline
from pgkeep.server.primary import ask_primary


def is_primary_to_be_asked(state: RestoreState) -> bool:
    """Tell whether *state* is that of a standby that was not started yet: what is known of its primary may be old."""
    return state.standby is not None and state.phases_done == 3 and not state.access


def learn_of_primary(state: RestoreState) -> dict[str, Any]:
    """
    Ask the primary, and return what changes in *state*; nothing does when it is as it was known.

    Raises:
        RestoreRefused: It cannot be asked, or a standby from this backup cannot follow it.
    """
    standby = state.standby
    assert standby is not None
    try:
        primary = ask_primary(standby.conninfo)
    except ServerError as error:
        raise RestoreRefused(
            f"the standby could not follow its primary: {error.message}",
            hint=f"{error.hint}; when it is there: pgkeep finish --pgdata-dir={state.directory}".removeprefix("; "),
        ) from error
    if primary.system_identifier != SystemIdentifier(int(state.system_identifier)):
        raise RestoreRefused(
            f"the primary at {standby.where} is another cluster: its system identifier is {primary.system_identifier}, "
            f"that of the backup {state.system_identifier}"
        )
    base_timeline = Timeline(standby.base_timeline or state.timeline)
    is_on = primary.history.contains(base_timeline, state.end_of_backup)
    if not is_on or state.end_of_backup > primary.flushed:
        raise RestoreRefused(
            f"backup {state.backup_id} ends at {state.end_of_backup} on timeline {base_timeline}, "
            f"which is not in the history of the primary at {standby.where}",
            hint=f"pgkeep rollback --pgdata-dir={state.directory}, then restore again: an older backup is taken",
        )
    plan = StandbyPlan(standby.conninfo, standby.where, primary)
    known = msgspec.structs.replace(plan.state, base_timeline=standby.base_timeline)
    if known == standby:
        return {}
    return {"standby": known, "wal_plan": plan.limit(WalPlan.parse(state.wal_plan)).render()}
