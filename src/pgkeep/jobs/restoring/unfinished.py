"""Whether a restore that did not come to its end stands in the way of another, or is the same and goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgkeep.datadir.instance import PRIVATE_PREFIX
from pgkeep.datadir.target import MARKER
from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.directory import RestoreDirectory
from pgkeep.jobs.restoring.phase_log import PHASES
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.pg.data_directory import POSTMASTER_OPTIONS, RECOVERY_SIGNAL
from pgkeep.pg.recovery import RecoveryTarget


def asked_for(
    target: RecoveryTarget,
    *,
    tablespaces: Mapping[str, str] | Mapping[int, Path],
    port: int,
    is_wiped: bool,
    backup_id: str,
    standby_of: str = "",
    combine: str = "in_place",
    wal: str = "",
) -> dict[str, Any]:
    """
    Return what a restore was asked for, so that a second run of the same one is known.

    *wal* is the end of the WAL that comes, where the target is that and it comes but once: through Bacula.
    """
    return {
        "target": f"{target}, {target.action.value}",
        "inclusive": target.inclusive,
        "timeline": target.timeline,
        "tablespaces": {str(key): str(place) for key, place in sorted(tablespaces.items(), key=str)},
        "port": port,
        "wipe": is_wiped,
        "backup": backup_id,
        "standby": standby_of,
        # Where it is not the default: states of earlier versions know nothing of it.
        **({"combine": combine} if combine != "in_place" else {}),
        **({"wal": wal} if wal else {}),
    }


def unfinished_restore(data_directory: Path, asked: Mapping[str, Any]) -> RestoreState | None:
    """
    Return the restore into *data_directory* that a run with *asked* goes on with; None when it begins anew.

    Raises:
        RestoreRefused: One with other arguments did not come to its end, and something would be lost with it.
    """
    state = RestoreDirectory(data_directory).read()
    if state is None or not is_unfinished(state):
        return None
    if state.is_given_up:
        raise RestoreRefused(
            f"the rollback of the restore {state.restore_id} into {data_directory} was cut short",
            hint=f"bring it to its end first: pgkeep rollback --pgdata-dir={data_directory}",
        )
    other = ", ".join(
        f"{name} {state.asked.get(name)!r}, now {asked.get(name)!r}"
        for name in {**asked, **state.asked}
        if state.asked.get(name) != asked.get(name) and not (name == "wal" and _takes_wal(state))
    )
    if not other:
        return None if _is_gone(state) else state
    if not _is_at_stake(state):
        return None
    raise RestoreRefused(
        f"a restore of backup {state.backup_id} into {data_directory} stopped behind phase {state.phases_done} "
        f"({PHASES[state.phases_done - 1]}), and it was another one: {other}",
        hint=f"run it again as it was, or give it up first: pgkeep rollback --pgdata-dir={data_directory}",
    )


def is_unfinished(state: RestoreState) -> bool:
    """Tell whether somebody may go on with a restore; who started the server by hand has finished it."""
    if state.phases_done >= len(PHASES):
        return False
    if state.phases_done < 3 or state.is_given_up or state.is_lifting:
        return True
    if state.access and not ran_by_hand(state):
        return True
    return state.standby is not None or (state.directory / RECOVERY_SIGNAL).exists()


def _takes_wal(state: RestoreState) -> bool:
    """Tell whether a second run takes what WAL comes: none behind phase 2. Earlier versions did not remember it."""
    return state.phases_done < 2 or "wal" not in state.asked


def _is_gone(state: RestoreState) -> bool:
    """Tell whether what a restore moved away was put back by hand, and what it laid down is not there any more."""
    if not state.is_cleared or state.phases_done > 1:
        return False
    return not os.path.lexists(state.directory / MARKER) and not _is_at_stake(state)


def _is_at_stake(state: RestoreState) -> bool:
    return state.phases_done >= 3 or any(os.path.lexists(aside.new_path) for aside in state.moved)


def ran_by_hand(state: RestoreState) -> bool:
    """Tell whether somebody else than pgkeep has started the restored server, by what is remembered or seen."""
    if state.ran_by_hand:
        return True
    if state.phases_done < 3:
        return False
    try:
        # The server writes its command line into it at each start, and no backup holds it.
        last_start = (state.directory / POSTMASTER_OPTIONS).read_text(errors="replace")
    except FileNotFoundError:
        return False
    return f"unix_socket_directories=/tmp/{PRIVATE_PREFIX}" not in last_start
