"""Move what stands in a restore's way aside, so that nothing of it is lost."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgkeep.datadir.durable import sync_directory
from pgkeep.datadir.target import Target
from pgkeep.errors import RestoreRefused


@dataclass(frozen=True, slots=True)
class Aside:
    """A directory and the name that it gets."""

    path: Path
    new_path: Path

    def move(self) -> None:
        """Rename it, durably."""
        os.rename(self.path, self.new_path)
        sync_directory(self.path.parent)


def move_all(asides: Sequence[Aside]) -> None:
    """Move all of them, or none: raise RestoreRefused when one cannot be moved, with the others back in place."""
    done: list[Aside] = []
    for aside in asides:
        try:
            aside.move()
        except OSError as error:
            for moved in reversed(done):
                os.rename(moved.new_path, moved.path)
            raise RestoreRefused(f"cannot rename {aside.path} out of the way: {error.strerror}") from error
        done.append(aside)


def set_aside(target: Target, *, now: dt.datetime, also: Iterable[Path] = ()) -> list[Aside]:
    """
    Return what must be renamed before *target* can be laid down: the data directory and the tablespaces' own.

    Args:
        target: Where the restore goes.
        now: Becomes part of the new names.
        also: More tablespaces, which the replay will make anew.

    Raises:
        RestoreRefused: A data directory is a mount point or a link, which a rename cannot move, or its parent is not
            ours to change.
    """
    suffix = f".old.{now.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}"
    found = []
    tablespaces = [*target.outside.values(), *also]
    directories = [target.data_directory, *(path / target.version_directory for path in tablespaces)]
    for directory in directories:
        if not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir())):
            continue
        if directory.is_symlink() or os.path.ismount(directory):
            kind = "a symbolic link" if directory.is_symlink() else "a mount point"
            raise RestoreRefused(
                f"{directory} is {kind}: it cannot be renamed out of the way",
                hint="empty it yourself, or restore into another directory",
            )
        if not os.access(directory.parent, os.W_OK | os.X_OK):
            raise RestoreRefused(
                f"{directory} cannot be renamed out of the way: no right to write in {directory.parent}",
                hint="run pgkeep as root, or empty the directory yourself",
            )
        found.append(Aside(directory, directory.with_name(directory.name + suffix)))
    return found
