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
from pgkeep.datadir.owner import Owner
from pgkeep.datadir.target import STATE_DIRECTORY, make_directories
from pgkeep.errors import PgkeepError, RestoreRefused
from pgkeep.jobs.audit_file import AUDIT_NAME
from pgkeep.jobs.restore_state import RestoreState

SUFFIX = ".pgkeep-restore"
STATE_FILE = "state.json"
_LOCK_FILE = "lock"


class RestoreDirectory:
    """Where the restore into one data directory keeps what it knows."""

    def __init__(self, data_directory: Path) -> None:
        """Touch nothing."""
        beside = data_directory.with_name(data_directory.name + SUFFIX)
        inside = data_directory / STATE_DIRECTORY
        is_inside = os.path.lexists(inside) or not os.access(data_directory.parent, os.W_OK | os.X_OK)
        self.path = inside if not os.path.lexists(beside) and data_directory.is_dir() and is_inside else beside
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
        try:
            descriptor = os.open(self.state_path, os.O_RDONLY | os.O_NOFOLLOW)
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
        return state if state.data_directory == str(self._data_directory) else None

    def write(self, state: RestoreState) -> None:
        """Replace the state, durably."""
        try:
            write_file(self.state_path, state.render())
        except OSError as error:
            raise PgkeepError(f"cannot write {self.state_path}: {error.strerror}") from error

    @contextlib.contextmanager
    def held(self, owner: Owner | None = None) -> Iterator[None]:
        """
        Make the directory for *owner* when it is missing, and hold it against other processes.

        Raises:
            RestoreRefused: Another process works on this restore, or the directory cannot be made.
        """
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
        # Without the state the rest of it means nothing, whatever ends this here.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.state_path)
        for path in self.path.iterdir():
            if not AUDIT_NAME.fullmatch(path.name):
                path.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()


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
