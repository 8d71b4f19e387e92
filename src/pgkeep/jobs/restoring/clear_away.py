"""Phase 2 of a restore, first half: what stands in its way is moved, or removed when that was asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pgkeep.datadir.beneath import Beneath
from pgkeep.datadir.durable import sync_directory
from pgkeep.datadir.owner import Owner
from pgkeep.datadir.target import Target
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.directory import RestoreRun
from pgkeep.jobs.restoring.set_aside import Aside, directories_in_the_way, move_all, point_wal_link
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.jobs.restoring.wipe import wipe
from pgkeep.pg.data_directory import WAL_DIRECTORY

_COPIED_BYTES = 1 << 20


def clear_away(run: RestoreRun, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Empty the places of the restore; an earlier run that was cut short here is gone on with."""
    state = run.state
    if state.is_cleared:
        return
    move_all(state.moved)
    wal_aside = _wal_aside(state)
    if wal_aside is not None:
        try:
            point_wal_link(state.moved[0].new_path, str(wal_aside.new_path))
        except OSError as error:
            give_back(state)
            raise RestoreRefused(
                f"cannot let pg_wal of {state.moved[0].new_path} lead to {wal_aside.new_path}: {error.strerror}"
            ) from error
    for aside in state.moved:
        say(f"moved {aside}")
    wipe(run, say, warn)
    run.record(is_cleared=True)


def is_begun(state: RestoreState) -> bool:
    """Tell whether something is out of its place already, so that the server that was there cannot run."""
    return state.is_wiping or any(os.path.lexists(aside.new_path) for aside in state.moved)


def check_clear(target: Target, state: RestoreState) -> None:
    """
    Raise RestoreRefused when something stands in the places of *target* that this restore did not lay down.

    Phase 1 looked, but hours may have gone by since; and who mends a restore that was cut short by hand does not tell.
    """
    leftovers = {os.path.realpath(directory) for directory in target.own_leftovers()}
    if leftovers and state.wal_directory:
        leftovers.add(state.wal_directory)
    for directory in directories_in_the_way(target):
        if str(directory) not in leftovers:
            raise RestoreRefused(
                f"the restore was about to lay files down in {directory}, and something else is there now",
                hint="it was not touched: move it away yourself, and run the same restore again",
            )


def give_back(state: RestoreState) -> None:
    """
    Undo the moves of ``clear_away``, however far they got; what was laid down since is gone by now.

    Raises:
        PgkeepError: Something cannot be moved; calling this again goes on there.
    """
    wal_aside = _wal_aside(state)
    for aside in reversed(state.moved):
        with write_errors(f"put {aside.path} back", again="run pgkeep rollback again"):
            aside.move_back()
    if wal_aside is not None:
        with write_errors(f"put pg_wal of {state.moved[0].path} back", again="run pgkeep rollback again"):
            point_wal_link(state.moved[0].path, state.wal_link)


def _wal_aside(state: RestoreState) -> Aside | None:
    """Return the move of a separate pg_wal, when there is one."""
    return next(
        (aside for aside in state.moved if state.wal_directory and str(aside.path) == state.wal_directory), None
    )


def link_wal(state: RestoreState) -> None:
    """
    Let ``pg_wal`` of the restored cluster lie where that of the replaced one did.

    Raises:
        PgkeepError: It cannot be written there; calling this again goes on there.
    """
    if not state.wal_link:
        return
    with write_errors(f"move pg_wal to {state.wal_directory}"):
        _link_wal(state)


def _link_wal(state: RestoreState) -> None:
    data_directory, owner = state.directory, state.owner_of_files or Owner.of(state.directory)
    link = data_directory / WAL_DIRECTORY
    if link.is_symlink():
        return
    place = Path(state.wal_directory)
    if not place.is_dir():
        place.mkdir(mode=0o700)
        os.chown(place, owner.uid, owner.gid, follow_symlinks=False)
    link.mkdir(mode=0o700, exist_ok=True)
    # The directory is the server's account's, who may put links into it while root writes there.
    beneath = Beneath(place, owner=owner)
    try:
        for name in sorted(os.listdir(link)):
            _move_across(link / name, beneath, name)
    finally:
        beneath.close()
    sync_directory(place)
    link.rmdir()
    os.symlink(state.wal_link, link)
    os.chown(link, owner.uid, owner.gid, follow_symlinks=False)
    sync_directory(data_directory)


def _move_across(path: Path, beneath: Beneath, inside: str) -> None:
    """Move a file or a directory of files to another file system; what an earlier run moved in part is made anew."""
    if path.is_dir():
        beneath.make_directory(inside)
        for name in sorted(os.listdir(path)):
            _move_across(path / name, beneath, f"{inside}/{name}")
        sync_directory(beneath.root / inside)
        path.rmdir()
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file, os.fdopen(beneath.create_file(inside), "wb") as new_file:
        shutil.copyfileobj(file, new_file, _COPIED_BYTES)
        new_file.flush()
        os.fsync(new_file.fileno())
    path.unlink()
