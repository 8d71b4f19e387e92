"""
Move what stands in a restore's way aside, so that nothing of it is lost, and back again when the restore is given up.

A directory is renamed. What cannot be renamed, a mount point, stays and its contents are moved into a directory within
it, which is a rename each. Links on the way are followed: what they lead to is moved, they stay. Every step looks at
what is there first, so that a move which was cut short goes on where it stood.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgkeep.datadir.durable import sync_directory
from pgkeep.datadir.owner import refuse_foreign_links
from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.datadir.target import OLD_CONTENTS, Target, kept_names
from pgkeep.errors import RestoreRefused
from pgkeep.pg.data_directory import WAL_DIRECTORY

OLD_SUFFIX = ".old."
STAMP_LENGTH = len("20261121T081500Z")


@dataclass(frozen=True, slots=True)
class Aside:
    """
    A directory and the name that it gets.

    Attributes:
        path: Of the directory itself, no link.
        new_path: Its name afterwards; in *path* when that is a mount point.
        is_contents: Whether *path* stays, and what is in it moves.
    """

    path: Path
    new_path: Path
    is_contents: bool = False

    @property
    def is_moved(self) -> bool:
        """Whether nothing of it is left to move."""
        if self.is_contents:
            return self.new_path.is_dir() and not _movable(self.path)
        return os.path.lexists(self.new_path) and not os.path.lexists(self.path)

    def move(self) -> None:
        """Move it, durably; what was moved by an earlier run stays moved."""
        if self.is_moved:
            return
        if not self.is_contents:
            # A rename onto an empty directory would replace it without a word.
            if os.path.lexists(self.new_path):
                raise FileExistsError(17, f"{self.new_path} exists")
            os.rename(self.path, self.new_path)
            sync_directory(self.path.parent)
            return
        if not self.new_path.exists():
            status = os.stat(self.path)
            self.new_path.mkdir(mode=0o700)
            os.chown(self.new_path, status.st_uid, status.st_gid)
            self.new_path.chmod(status.st_mode & 0o7777)
        for name in _movable(self.path):
            os.rename(self.path / name, self.new_path / name)
        sync_directory(self.new_path)
        sync_directory(self.path)

    def move_back(self) -> None:
        """Undo ``move``, however far it got; *path* is empty or gone by now."""
        if self.is_contents:
            if self.new_path.is_dir():
                for name in sorted(os.listdir(self.new_path)):
                    os.rename(self.new_path / name, self.path / name)
                self.new_path.rmdir()
                sync_directory(self.path)
        elif os.path.lexists(self.new_path):
            if os.path.lexists(self.path):
                # Only when it is empty.
                self.path.rmdir()
            os.rename(self.new_path, self.path)
            sync_directory(self.path.parent)

    def __str__(self) -> str:
        what = f"what is in {self.path}" if self.is_contents else str(self.path)
        return f"{what} to {self.new_path}"


def _movable(directory: Path) -> list[str]:
    return sorted(set(os.listdir(directory)) - kept_names(directory))


def move_all(asides: Sequence[Aside]) -> None:
    """Move all of them, or none: raise RestoreRefused when one cannot be moved, with the others back in place."""
    done: list[Aside] = []
    for aside in asides:
        try:
            if aside.is_contents:
                # It may fail in the middle.
                done.append(aside)
            was_moved = aside.is_moved
            aside.move()
        except OSError as error:
            _move_back(done)
            raise RestoreRefused(f"cannot rename {aside.path} out of the way: {error.strerror}") from error
        done.append(aside)
        if not was_moved and running_postmaster(aside.new_path) is not None:
            # It would go on under the other name, and in the tablespaces, which are another cluster's in a moment.
            _move_back(done)
            raise RestoreRefused(
                f"a server was started in {aside.path} while it was renamed out of the way",
                hint="stop it, and what starts it, and restore again",
            )


def _move_back(asides: Sequence[Aside]) -> None:
    for aside in reversed(asides):
        aside.move_back()


def point_wal_link(data_directory: Path, to: str) -> None:
    """Let ``pg_wal`` of *data_directory*, which is a link, lead *to* another place."""
    link = data_directory / WAL_DIRECTORY
    temporary = data_directory / f"{WAL_DIRECTORY}.pgkeep"
    if not link.is_symlink() or os.readlink(link) == to:
        return
    status = os.lstat(link)
    temporary.unlink(missing_ok=True)
    os.symlink(to, temporary)
    os.chown(temporary, status.st_uid, status.st_gid, follow_symlinks=False)
    os.replace(temporary, link)
    sync_directory(data_directory)


def directories_in_the_way(target: Target, also: Iterable[Path] = ()) -> list[Path]:
    """
    Return what must go before *target* can be laid down: the data directory, the tablespaces' own, a separate pg_wal.

    Args:
        target: Where the restore goes.
        also: More tablespaces, which the replay will make anew.

    Returns:
        Real paths, no links among them; only those that hold something.

    Raises:
        RestoreRefused: A link leads to what is another account's.
    """
    tablespaces = [*target.outside.values(), *also]
    directories = [target.data_directory, *(path / target.version_directory for path in tablespaces)]
    wal_directory = separate_wal_directory(target.data_directory)
    if wal_directory is not None:
        directories.append(target.data_directory / WAL_DIRECTORY)
    found = []
    for directory in directories:
        refuse_foreign_links(directory)
    for directory in dict.fromkeys(Path(os.path.realpath(path)) for path in directories):
        is_filled = not directory.is_dir() or bool(_movable(directory))
        if os.path.lexists(directory) and is_filled:
            found.append(directory)
    return found


def separate_wal_directory(data_directory: Path) -> Path | None:
    """Return where ``pg_wal`` of *data_directory* leads to; None when it is no link."""
    link = data_directory / WAL_DIRECTORY
    return Path(os.path.realpath(link)) if link.is_symlink() else None


def set_aside(directories: Iterable[Path], *, now: dt.datetime) -> list[Aside]:
    """
    Return how *directories* are moved away.

    Args:
        directories: Real paths.
        now: Becomes part of the new names.

    Raises:
        RestoreRefused: A directory above is not ours to change.
    """
    stamp = f"{now.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}"
    found = []
    for directory in directories:
        if os.path.ismount(directory):
            found.append(Aside(directory, directory / f"{OLD_CONTENTS}{stamp}", is_contents=True))
            continue
        if not os.access(directory.parent, os.W_OK | os.X_OK):
            raise RestoreRefused(
                f"{directory} cannot be renamed out of the way: no right to write in {directory.parent}",
                hint="run pgkeep as root, or empty the directory yourself",
            )
        found.append(Aside(directory, directory.with_name(f"{directory.name}{OLD_SUFFIX}{stamp}")))
    return found
