"""
Undo a restore: what was moved away for it comes back under its own name, and what was restored goes.

It can be called after every phase, and again when it was cut short itself. What was restored is renamed first and
removed last, so that the server that was there before can run again as soon as that is possible at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pgkeep.datadir.instance import Instance, PrivateAccess
from pgkeep.datadir.owner import refuse_foreign_links
from pgkeep.datadir.postmaster import read_control_file, running_postmaster
from pgkeep.datadir.service import stop_server
from pgkeep.datadir.service_search import find_service
from pgkeep.datadir.staging import remove_staging
from pgkeep.datadir.target import MARKER, has_mark_of, kept_names
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import RestoreRefused
from pgkeep.jobs.finish import known_restore
from pgkeep.jobs.restoring.audit_file import AuditFile
from pgkeep.jobs.restoring.clear_away import give_back
from pgkeep.jobs.restoring.directory import RestoreDirectory, RestoreRun
from pgkeep.jobs.restoring.old_server import STOP_SECONDS, start_old_server
from pgkeep.jobs.restoring.own_configuration import take_back_outside
from pgkeep.jobs.restoring.phase_log import PHASES
from pgkeep.jobs.restoring.private_wal import remove_private_wal
from pgkeep.jobs.restoring.set_aside import STAMP_LENGTH
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.jobs.restoring.unfinished import ran_by_hand
from pgkeep.jobs.restoring.wipe import remove_contents
from pgkeep.pg.data_directory import BACKUP_LABEL, CONTROL_FILE


def rollback(data_directory: Path, audit: AuditFile, *, is_discarded: bool = False) -> RestoreState:
    """
    Put back what stood in *data_directory* before the restore, and remove what was restored.

    Args:
        data_directory: Of the restore; absolute.
        audit: Is told what happens.
        is_discarded: Remove the restored cluster even when it ran on its own since.

    Returns:
        The state of the restore, which is known no more.

    Raises:
        RestoreRefused: No restore is known, something would be lost that was not given up, or there is no way back.
    """
    directory = RestoreDirectory(data_directory)
    with directory.held(known_restore(data_directory).owner_of_files):
        run = RestoreRun(directory, known_restore(data_directory))
        state = run.state
        _check(state, is_discarded=is_discarded)
        audit.begin(Path(state.audit_file).parent if state.audit_file else None)
        audit.note(f"rollback of the restore {state.restore_id} of backup {state.backup_id}")
        if not state.is_emptied:
            # Also when an earlier run did: the host may have started its services since.
            _stop(state, audit)
            if not state.is_given_up:
                run.record(is_given_up=True, others=_others(state))
            if state.is_cleared:
                _remove_restored(run.state, audit)
            run.record(is_emptied=True)
        give_back(state)
        take_back_outside(state.outside, restore_id=state.restore_id, say=audit.say)
        for aside in state.moved:
            audit.say(f"put back {aside.path}")
        start_old_server(state, say=audit.say, warn=audit.warn)
        for place in _discarded(state).values():
            shutil.rmtree(place, ignore_errors=True)
        if state.private_wal:
            remove_private_wal(Path(state.private_wal))
        remove_staging(state.directory)
        if state.access:
            PrivateAccess(Path(state.access)).remove()
        directory.remove()
    return state


def _check(state: RestoreState, *, is_discarded: bool) -> None:
    for place in _places(state):
        refuse_foreign_links(place)
    if state.is_given_up:
        return
    _check_what_is_there(state)
    for aside in state.moved:
        if state.is_cleared and not os.path.lexists(aside.new_path):
            raise RestoreRefused(
                f"{aside.new_path}, which was moved away from {aside.path}, is not there any more",
                hint="what was restored stays; if that is not wanted, remove it yourself",
            )
    if is_discarded:
        return
    if state.wiped and (state.is_wiping or state.is_cleared):
        raise RestoreRefused(
            f"there is nothing to put back: wipe_pgdata had what stood in {state.directory} removed",
            hint="pgkeep rollback --discard removes what was restored, and leaves nothing",
        )
    if state.phases_done == len(PHASES) or state.is_lifting or ran_by_hand(state):
        raise RestoreRefused(
            f"the restored cluster in {state.directory} has run on its own: what was written since would be lost",
            hint="pgkeep rollback --discard gives that up",
        )


def _check_what_is_there(state: RestoreState) -> None:
    """Refuse to remove anything but what the restore laid down."""
    if not state.is_cleared or not state.directory.is_dir():
        return
    if not (state.directory / CONTROL_FILE).exists():
        names = set(os.listdir(state.directory)) - kept_names(state.directory)
        if names and MARKER not in names:
            raise _not_ours(state)
        return
    found = int(read_control_file(state.directory).system_identifier)
    is_untouched = state.phases_done > 2 or (state.directory / BACKUP_LABEL).exists()
    if str(found) != state.system_identifier or not is_untouched:
        raise _not_ours(state)


def _not_ours(state: RestoreState) -> RestoreRefused:
    return RestoreRefused(
        f"{state.directory} does not hold what the restore {state.restore_id} laid down",
        hint=f"move it away yourself; {RestoreDirectory(state.directory).path} has the state of the restore",
    )


def _stop(state: RestoreState, audit: AuditFile) -> None:
    postmaster = running_postmaster(state.directory) if state.directory.is_dir() else None
    if postmaster is None or not state.is_cleared:
        return
    if state.access and postmaster.socket_directory == state.access:
        Instance(state.directory, bin_directory=Path(state.bin_directory), log_path=state.log_path).stop()
        return
    # Not what ran the old one: the restored server may have been given a unit since, which would start it again.
    service = find_service(state.directory)
    audit.say(f"stopping the server in {state.directory}: process {postmaster.pid}, {service}")
    try:
        stop_server(service, state.directory, timeout_seconds=STOP_SECONDS)
    except RestoreRefused as refused:
        refused.hint = "nothing was touched: stop it yourself, and roll back again"
        raise


def _discarded(state: RestoreState) -> dict[Path, Path]:
    """Return the places whose own directory was renamed by the restore, and the names that the restored ones get."""
    stamped = [(aside.path, aside.new_path.name[-STAMP_LENGTH:]) for aside in state.moved if not aside.is_contents]
    return {path: path.with_name(f"{path.name}.discarded.{stamp}") for path, stamp in stamped}


def _places(state: RestoreState) -> list[Path]:
    """Return the directories that the restore has laid down."""
    own = (place for place in state.places.values() if str(place) not in state.others)
    versions = [place / state.version_directory for place in own]
    return [state.directory, *versions, *([Path(state.wal_directory)] if state.wal_directory else [])]


def _others(state: RestoreState) -> list[str]:
    """
    Return the places of tablespaces that this restore never had: another one was quicker.

    Raises:
        RestoreRefused: What stood there before the restore cannot be put back while the other one's files are there.
    """
    # The mark is there until all is laid down; this is asked before anything is removed.
    if not state.is_cleared or state.phases_done > 1 or (state.directory / CONTROL_FILE).exists():
        return []
    others = [place for place in state.places.values() if not has_mark_of(place, state.directory)]
    for place in others:
        version_directory = place / state.version_directory
        if version_directory in _discarded(state) and os.path.lexists(version_directory):
            raise RestoreRefused(
                f"{version_directory} does not hold what the restore {state.restore_id} laid down",
                hint="another restore has taken its place: roll that one back first",
            )
    return [str(place) for place in others]


def _remove_restored(state: RestoreState, audit: AuditFile) -> None:
    """Take everything that was restored out of the way; of what is renamed only the name is changed here."""
    renamed = _discarded(state)
    for path, discarded in renamed.items():
        if not os.path.lexists(discarded) and os.path.lexists(path):
            with write_errors(f"rename {path}", again="run pgkeep rollback again"):
                os.rename(path, discarded)
            if running_postmaster(discarded) is not None:
                # It would go on in the tablespaces, which are another cluster's in a moment.
                os.rename(discarded, path)
                raise RestoreRefused(
                    f"a server was started in {path} during the rollback",
                    hint="stop it, and what starts it, and roll back again",
                )
            audit.say(f"removed what was restored into {path}")
    for path in (Path(os.path.realpath(place)) for place in _places(state)):
        if path not in renamed and path.is_dir():
            remove_contents(path)
            audit.say(f"removed what was restored into {path}")
            if path.name == state.version_directory:
                path.rmdir()
    for place in state.places.values():
        if has_mark_of(place, state.directory):
            (place / MARKER).unlink()
