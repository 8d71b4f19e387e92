"""
``wipe_pgdata``: what stands in a restore's way is removed for ever, and nothing else is.

Phase 1 looked at it, but stopping a server may take an hour. So everything is looked at once more before the first file
goes: the same directories, with nothing mounted in them, of the same cluster, and no server in it. A server that is
started later than that does not find its control file, without which none starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pgkeep.datadir.beneath import Beneath
from pgkeep.datadir.durable import sync_directory
from pgkeep.datadir.mounts import mounts_beneath
from pgkeep.datadir.postmaster import read_control_file, running_postmaster
from pgkeep.datadir.target import kept_names
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import PgkeepError, RestoreRefused
from pgkeep.jobs.restoring.directory import RestoreRun
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.pg.data_directory import CONTROL_FILE

_HIDDEN_CONTROL_FILE = f"{CONTROL_FILE}.pgkeep-wiped"


def identity_of(directory: Path) -> str:
    """Return by what *directory* is told from any other that gets its name; empty when there is none."""
    try:
        status = os.stat(directory)
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}"


def check_nothing_mounted(directories: Iterable[Path]) -> None:
    """Raise RestoreRefused where another file system is mounted within one of *directories*."""
    for directory in directories:
        mounted = mounts_beneath(directory)
        if mounted:
            raise RestoreRefused(
                f"{mounted[0]} is a mount point within {directory}: wipe_pgdata would remove what is in it",
                hint="unmount it, or leave wipe_pgdata out, so that the directory is renamed",
            )


def wipe(run: RestoreRun, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """
    Remove what phase 1 decided to remove; an earlier run that was cut short here is gone on with.

    Raises:
        RestoreRefused: Something else is there now; nothing was removed.
        PgkeepError: Something could not be removed.
    """
    state = run.state
    places = dict(zip(map(Path, state.wiped), state.wiped_identities, strict=True))
    if not places:
        return
    for path, identity in places.items():
        _check_is_the_same(path, identity)
    check_nothing_mounted(places)
    with _without_server(state, warn):
        run.record(is_wiping=True)
    for path, identity in places.items():
        remove_contents(path, identity=identity)
        say(f"removed what was in {path}")


def remove_contents(directory: Path, *, identity: str = "") -> None:
    """
    Remove everything in *directory* but what is no part of a cluster; no link is followed.

    Args:
        directory: Nothing there is fine.
        identity: What it must be; empty when that was never looked at.

    Raises:
        RestoreRefused: It is another directory.
        PgkeepError: Something in it cannot be removed.
    """
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise RestoreRefused(f"not a directory: {directory}")
    with write_errors(f"remove what is in {directory}", again="run the same command again"):
        beneath = Beneath(directory)
        try:
            if identity and beneath.identity != identity:
                raise _changed(directory)
            beneath.clear(keep=kept_names(directory))
        finally:
            beneath.close()
        sync_directory(directory)


def _check_is_the_same(path: Path, identity: str) -> None:
    if path.is_symlink() or identity_of(path) != identity:
        raise _changed(path)


def _changed(path: Path) -> RestoreRefused:
    return RestoreRefused(
        f"{path} was about to be emptied, and it is not the directory any more that this restore looked at",
        hint="nothing in it was touched: find out what is there, and run the same restore again",
    )


@contextmanager
def _without_server(state: RestoreState, warn: Callable[[str], None]) -> Iterator[None]:
    """Take care that no server starts in the data directory from now on, or raise RestoreRefused when one runs."""
    control_file, hidden = state.directory / CONTROL_FILE, state.directory / _HIDDEN_CONTROL_FILE
    _check_is_ours(state)
    _check_no_server(state.directory)
    is_hidden = str(os.path.realpath(state.directory)) in state.wiped and control_file.is_file()
    if is_hidden:
        with write_errors(f"rename {control_file}"):
            os.rename(control_file, hidden)
    try:
        # A server takes its lock file before it reads the control file: one that is not seen here never gets further.
        _check_no_server(state.directory)
        yield
    except BaseException:
        if is_hidden:
            try:
                os.rename(hidden, control_file)
            except OSError as error:
                # Why nothing is wiped is what counts.
                warn(f"cannot rename {hidden} to {control_file}: {error.strerror}; without it no server starts there")
        raise


def _check_no_server(data_directory: Path) -> None:
    if data_directory.is_dir() and running_postmaster(data_directory) is not None:
        raise RestoreRefused(
            f"a server was started in {data_directory}, which was about to be emptied",
            hint="nothing was removed: stop it, and what starts it, and restore again",
        )


def _check_is_ours(state: RestoreState) -> None:
    if not (state.directory / CONTROL_FILE).is_file():
        return
    try:
        found = str(int(read_control_file(state.directory).system_identifier))
    except PgkeepError:
        # Damaged is what one restores from; phase 1 took it as well.
        return
    if found != state.system_identifier:
        raise RestoreRefused(
            f"{state.directory} was about to be emptied, and it holds another cluster now: its system identifier is "
            f"{found}, expected {state.system_identifier}",
            hint="nothing was removed: move that cluster away yourself, and run the same restore again",
        )
