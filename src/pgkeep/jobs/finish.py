"""Finish a restore whose server was not started, or that stopped on the way: phases 3 to 6, from its state alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.audit_file import AuditFile
from pgkeep.jobs.restoring.directory import RestoreDirectory, RestoreRun
from pgkeep.jobs.restoring.fenced_server import Voice
from pgkeep.jobs.restoring.phase_log import PHASES
from pgkeep.jobs.restoring.phases import run_phases
from pgkeep.jobs.restoring.replay import ReplayEnd
from pgkeep.jobs.restoring.state import RestoreState


@dataclass(frozen=True, slots=True)
class FinishResult:
    """What was finished; *end* is where the replay ended."""

    state: RestoreState
    end: ReplayEnd
    databases: tuple[str, ...]


def known_restore(data_directory: Path) -> RestoreState:
    """Return the state of the restore into *data_directory*; raise RestoreRefused when there is none."""
    directory = RestoreDirectory(data_directory)
    state = directory.read()
    if state is None:
        raise RestoreRefused(
            f"no restore into {data_directory} is known: there is no {directory.state_path}",
            hint="name the data directory that was restored with --pgdata-dir",
        )
    return state


def finish(
    data_directory: Path,
    audit: AuditFile,
    *,
    find_bin_directory: Callable[[int], Path],
    timeout_seconds: int | None = None,
    options: dict[str, Any] | None = None,
) -> FinishResult:
    """
    Do what is left of a restore: start the server behind its fence, watch the replay, check, and open it.

    A server that waits at its target, or was shut down there, is promoted: whoever calls this has looked.

    Args:
        data_directory: Of the restored cluster; absolute.
        audit: Is told what happens.
        find_bin_directory: Returns where the programs of a major version are, for a restore that knows none.
        timeout_seconds: How long to watch the replay; None for what the restore was given.
        options: For phases 5 and 6, over those of the restore.

    Raises:
        RestoreRefused: There is nothing to finish, or the files are not all there.
        PgkeepError: A phase failed; calling this again goes on there.
    """
    directory = RestoreDirectory(data_directory)
    with directory.held(known_restore(data_directory).owner_of_files):
        state = known_restore(data_directory)
        if state.phases_done == len(PHASES):
            raise RestoreRefused(f"the restore {state.restore_id} into {data_directory} is finished already")
        if state.is_given_up:
            raise RestoreRefused(
                f"the restore {state.restore_id} into {data_directory} was given up: its rollback was cut short",
                hint=f"pgkeep rollback --pgdata-dir={data_directory}",
            )
        if state.phases_done < 2:
            raise RestoreRefused(
                f"the files of the restore {state.restore_id} into {data_directory} are not all there",
                hint="run the same restore again, or put back what was there before: pgkeep rollback",
            )
        run = RestoreRun(directory, state)
        audit.begin(directory.path)
        changes: dict[str, Any] = {"options": state.options | (options or {}), "is_asked_to_start": True}
        if not state.bin_directory:
            changes["bin_directory"] = str(find_bin_directory(state.major))
        if timeout_seconds is not None:
            changes["timeout_seconds"] = timeout_seconds
        run.record(**changes)
        end, databases = run_phases(run, Voice(audit.say, audit.warn), is_started=True, is_opened=True)
        assert end is not None
        return FinishResult(run.state, end, databases)
