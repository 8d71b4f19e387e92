"""Phases 3 to 6 of a restore, from wherever it stands: all that they need is its state."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec

from pgkeep.datadir.instance import PrivateAccess
from pgkeep.datadir.owner import Owner
from pgkeep.datadir.postmaster import PostmasterFile, read_control_file, running_postmaster
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import RestoreRefused, ToolError
from pgkeep.jobs.restoring.directory import RestoreRun
from pgkeep.jobs.restoring.fenced_server import FencedServer, Voice
from pgkeep.jobs.restoring.own_configuration import put_back_outside
from pgkeep.jobs.restoring.phase_log import PHASES, PhaseLog
from pgkeep.jobs.restoring.private_wal import remove_private_wal
from pgkeep.jobs.restoring.recovery_config import describe_target, settings_of_recovery, write_recovery_files
from pgkeep.jobs.restoring.replay import ReplayEnd
from pgkeep.jobs.restoring.restored_checks import WantedChecks
from pgkeep.jobs.restoring.standby_finish import is_primary_to_be_asked, learn_of_primary
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.jobs.restoring.unfinished import ran_by_hand
from pgkeep.pg.data_directory import CONTROL_FILE, POSTMASTER_OPTIONS
from pgkeep.pg.recovery import TargetKind

_STARTING_SECONDS = 10


def run_phases(
    run: RestoreRun, voice: Voice, *, is_started: bool, is_opened: bool = False
) -> tuple[ReplayEnd | None, tuple[str, ...]]:
    """
    Do what is left of phases 3 to 6.

    Args:
        run: Phase 2 is done.
        voice: Is told what happens.
        is_started: Whether phases 4 to 6 are run; otherwise what is left to do is said.
        is_opened: A server that waits at its target, or was shut down there, is promoted.

    Returns:
        Where the replay ended, None when it was not run, and the databases that answered.

    Raises:
        PgkeepError: A phase failed; what the state says is done stays done.
    """
    log = PhaseLog(voice.say, phases_done=run.state.phases_done)
    _check_is_ours(run)
    if run.state.phases_done < 3:
        _check_never_started(run)
        settings = settings_of_recovery(run.state, run.state.target, socket=None)
        put_back_outside(
            run.state.outside,
            run.state.directory,
            owner=run.state.owner_of_files,
            restore_id=run.state.restore_id,
            say=voice.say,
            warn=voice.warn,
        )
        write_recovery_files(run.state, settings, warn=voice.warn)
        run.record(phases_done=3)
        log.done(describe_target(settings))
    if not is_started:
        _say_what_is_left(run.state, voice)
        return None, ()
    if is_primary_to_be_asked(run.state):
        _learn_of_primary(run, voice)
    end, databases = _run_server(run, voice, log, is_opened=is_opened)
    if run.state.standby is not None and run.state.lasting.get("archive_mode") == "off":
        voice.say("archiving is off in this standby: ALTER SYSTEM RESET archive_mode before it may become the primary")
    if run.state.phases_done == len(PHASES):
        if run.state.private_wal:
            remove_private_wal(Path(run.state.private_wal))
        if run.directory.is_inside:
            # In a data directory that is in use it would be part of the next backup; and there is no way back from it.
            run.directory.remove()
    return end, databases


def _learn_of_primary(run: RestoreRun, voice: Voice) -> None:
    changes = learn_of_primary(run.state)
    if not changes:
        return
    state = msgspec.structs.replace(run.state, **changes)
    settings = settings_of_recovery(state, state.target, socket=None)
    # Recorded last: what is killed before that asks again.
    write_recovery_files(state, settings, warn=voice.warn)
    run.record(**changes)


def _check_is_ours(run: RestoreRun) -> None:
    """Refuse to touch another cluster that somebody has put there since: the state names a path only."""
    state = run.state
    if not (state.directory / CONTROL_FILE).exists():
        # It has its name when phase 3 is done.
        return
    found = str(int(read_control_file(state.directory).system_identifier))
    if found != state.system_identifier:
        raise RestoreRefused(
            f"{state.directory} holds another cluster than the restore {state.restore_id} laid down: its system "
            f"identifier is {found}, expected {state.system_identifier}",
            hint=f"nothing was touched; if that cluster is to stay, remove {run.directory.path}",
        )


def _check_never_started(run: RestoreRun) -> None:
    """Refuse to write a backup_label into a cluster that has run: its next start would undo what was written since."""
    directory = run.state.directory
    if (directory / POSTMASTER_OPTIONS).exists():
        raise RestoreRefused(
            f"the restored cluster in {directory} was started before its recovery files were known to be complete",
            hint=f"if it is to stay, remove {run.directory.path}; otherwise move {directory} away, and pgkeep rollback",
        )


def _run_server(run: RestoreRun, voice: Voice, log: PhaseLog, *, is_opened: bool) -> tuple[ReplayEnd, tuple[str, ...]]:
    if not run.state.bin_directory:
        raise ToolError(
            f"no programs of PostgreSQL {run.state.major} are known to this restore",
            hint=f"install PostgreSQL {run.state.major}, or name its directory with bin_dir, and run pgkeep finish",
        )
    state = run.state
    owner = state.owner_of_files or Owner.of(state.directory)
    WantedChecks.of_options(state.options).check(bin_directory=Path(state.bin_directory), owner_uid=owner.uid)
    if ran_by_hand(state):
        # The next start writes over what tells so, and a rollback must still ask before it removes what was written.
        run.record(ran_by_hand=True)
    access = _access(run)
    try:
        return FencedServer(run, access, voice).run(log, is_opened=is_opened)
    finally:
        if not (access.directory / f".s.PGSQL.{access.port}").exists():
            access.remove()


def _access(run: RestoreRun) -> PrivateAccess:
    """
    Return the way into the fenced server: the old one when it still runs, or a new one.

    Raises:
        RestoreRefused: A server runs in the data directory that this restore did not start.
    """
    state = run.state
    postmaster = _settled_postmaster(state.directory)
    known = PrivateAccess(Path(state.access)) if state.access else None
    is_ours = postmaster is None or postmaster.socket_directory == state.access or state.is_lifting
    if not is_ours:
        raise RestoreRefused(
            f"a server runs in {state.directory} that this restore did not start",
            hint="stop it, then run pgkeep finish",
        )
    if known is not None and known.directory.is_dir():
        return known
    with write_errors("make a private directory for the socket in /tmp"):
        access = PrivateAccess.make(state.owner_of_files or Owner.of(state.directory))
    run.record(access=str(access.directory))
    return access


def _settled_postmaster(data_directory: Path) -> PostmasterFile | None:
    """Return the postmaster, if there is one, with its socket: one that is starting has none yet."""
    deadline = time.monotonic() + _STARTING_SECONDS
    pause = threading.Event()
    while True:
        postmaster = running_postmaster(data_directory)
        if postmaster is None or postmaster.socket_directory or time.monotonic() > deadline:
            return postmaster
        pause.wait(0.05)


def _say_what_is_left(state: RestoreState, voice: Voice) -> None:
    if state.standby is not None:
        voice.say("the standby was not started: its next start replays the WAL held and follows its primary")
        voice.say(f"pgkeep does that, and checks the server: pgkeep finish --pgdata-dir={state.directory}")
        return
    voice.say("the server was not started: its next start replays to the target")
    if state.target.kind is TargetKind.TIME:
        voice.say("if no commit follows that time, the server stops there: start it without recovery_target_time then")
    if state.lasting.get("archive_mode") == "off":
        voice.say("archiving is off in this copy; ALTER SYSTEM RESET archive_mode brings it back")
    voice.say("logical replication is off until ALTER SYSTEM RESET max_logical_replication_workers")
    voice.say(f"pgkeep does all of that, and checks the server: pgkeep finish --pgdata-dir={state.directory}")
