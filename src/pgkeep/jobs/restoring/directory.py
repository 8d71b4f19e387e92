"""
The directory in which a restore keeps its state: beside the data directory, for as long as somebody may go on from it.

It is there from the end of phase 1 on, before anything is touched, until the restore is rolled back or another one
takes its place. One process at a time works on a restore: it holds the lock in the directory. Where the directory above
the data directory is closed to pgkeep, and nothing can be renamed there either, it lies in the data directory itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pgkeep.datadir.durable import write_file
from pgkeep.datadir.owner import Owner, refuse_foreign_links
from pgkeep.datadir.target import STATE_DIRECTORY, make_directories
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.audit_file import AUDIT_NAME
from pgkeep.jobs.restoring.state import RestoreState

SUFFIX = ".pgkeep-restore"
STATE_FILE = "state.json"
_LOCK_FILE = "lock"


class RestoreDirectory:
    """Where the restore into one data directory keeps what it knows."""

    def __init__(self, data_directory: Path) -> None:
        """Touch nothing; raise RestoreRefused when it cannot be told where the state would be."""
        # Whoever names the directory by a link means the same restore.
        place = Path(os.path.realpath(data_directory))
        beside = place.with_name(place.name + SUFFIX)
        inside = place / STATE_DIRECTORY
        is_inside = not os.path.lexists(beside) and (
            _is_used(inside) or (place.is_dir() and not os.access(place.parent, os.W_OK | os.X_OK))
        )
        self.path = inside if is_inside else beside
        self.is_inside = self.path == inside
        self._data_directory = data_directory

    @property
    def state_path(self) -> Path:
        """The state file."""
        return self.path / STATE_FILE

    def read(self) -> RestoreState | None:
        """
        Return the state of the restore; None when there is none.

        Raises:
            RestoreRefused: Another account wrote it.
            FormatError: It is damaged.
        """
        self._check_place()
        try:
            descriptor = os.open(self.state_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RestoreRefused(
                f"cannot read {self.state_path}: {error.strerror}",
                hint="run pgkeep as the account that began the restore",
            ) from error
        with os.fdopen(descriptor, "rb") as file:
            # It names what is renamed and which programs are run: nobody may make root do that but root.
            writer = Owner(os.fstat(descriptor).st_uid, 0)
            if writer.uid != os.geteuid():
                raise RestoreRefused(
                    f'the restore into {self._data_directory} was begun by "{writer.user_name}"',
                    hint=f'run pgkeep as "{writer.user_name}"',
                )
            state = RestoreState.parse(file.read(), name=str(self.state_path))
        is_same = os.path.realpath(state.data_directory) == os.path.realpath(self._data_directory)
        return state if is_same else None

    def write(self, state: RestoreState) -> None:
        """Replace the state, durably."""
        with write_errors(f"write {self.state_path}", again="run the same command again"):
            write_file(self.state_path, state.render())

    @contextlib.contextmanager
    def held(self, owner: Owner | None = None) -> Iterator[None]:
        """
        Make the directory for *owner* when it is missing, and hold it against other processes.

        Raises:
            RestoreRefused: Another process works on this restore, or the directory cannot be made, or is another
                account's.
        """
        self._check_place()
        self._check_account(owner)
        try:
            if not self.path.is_dir():
                make_directories(self.path, owner)
            descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RestoreRefused(
                f"cannot keep the state of the restore in {self.path}: {error.strerror}",
                hint="run pgkeep as root or as the owner of the directory",
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RestoreRefused(
                    f"another pgkeep works on the restore into {self._data_directory}", hint="wait until it is through"
                ) from None
            yield
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the directory: there is nothing to go on with. An audit file in it stays, for who asks later."""
        # Whoever owns the directory above can put a link in its place: root would remove what that leads to.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            # Without the state the rest of it means nothing, whatever ends this here.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(STATE_FILE, dir_fd=descriptor)
            for name in os.listdir(descriptor):
                if not AUDIT_NAME.fullmatch(name):
                    os.unlink(name, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _check_place(self) -> None:
        """Raise RestoreRefused where a link has the place of the directory: none was ever made by a restore."""
        refuse_foreign_links(self._data_directory)
        if self.path.is_symlink():
            raise RestoreRefused(
                f"{self.path} is a link, expected the directory of a restore",
                hint="find out who made it, and remove it",
            )

    def _check_account(self, owner: Owner | None) -> None:
        """Raise RestoreRefused where the directory was made by an account that has no part in the restore."""
        if not os.path.lexists(self.path):
            return
        maker = Owner.of(self.path)
        if maker.uid not in (0, os.geteuid(), owner.uid if owner is not None else 0):
            raise RestoreRefused(
                f'{self.path} belongs to "{maker.user_name}", who has no part in this restore',
                hint="find out who made it, and remove it",
            )


class RestoreRun:
    """
    A restore that somebody works on, and how far it is.

    Attributes:
        directory: Held.
        state: As it stands in the file.
    """

    def __init__(self, directory: RestoreDirectory, state: RestoreState) -> None:
        self.directory = directory
        self.state = state

    def record(self, **changes: Any) -> None:
        """Change fields of the state; when this returns they are on disk."""
        self.state = msgspec.structs.replace(self.state, **changes)
        self.directory.write(self.state)


def _is_used(inside: Path) -> bool:
    """Tell whether a restore keeps its state *inside* the data directory."""
    try:
        # An empty one may be anybody's, and would be renamed with the rest.
        return inside.is_symlink() or (inside / STATE_FILE).is_symlink() or (inside / STATE_FILE).exists()
    except OSError as error:
        raise RestoreRefused(
            f"cannot look for the state of a restore in {inside.parent}: {error.strerror}",
            hint="run pgkeep as root or as the owner of the directory",
        ) from error
