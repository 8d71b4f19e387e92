"""
Removing what a backup's record does not name.

A restore from several jobs lays down the files of each; those that were gone when the last one was made must go, or a
dropped table's files stay for ever and a truncated relation gets back an old segment. The names to keep are held in a
temporary database of SQLite's, most of it on disk, so that their number does not matter.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing

from pgkeep.datadir.target import HELD_CONTROL_FILE, MARKER, Target
from pgkeep.pg import data_directory as names

_KEPT_FILES = frozenset(
    {
        MARKER,
        HELD_CONTROL_FILE,
        names.CONTROL_FILE,
        names.BACKUP_LABEL,
        names.TABLESPACE_MAP,
        names.RECOVERY_SIGNAL,
        names.STANDBY_SIGNAL,
    }
)
_KEPT_DIRECTORIES = frozenset({*names.REQUIRED_DIRECTORIES, "lost+found"})
_PATHS_PER_INSERT = 1_000


def remove_unlisted(target: Target, listed: Iterable[str], *, root: str) -> int:
    """
    Remove from *target* every file and directory that is not listed, and return how many files went.

    The WAL in ``pg_wal``, the links in ``pg_tblspc``, recovery files and the directories that every cluster has stay.
    To be called after the lay-down and before ``Target.complete``, which makes it durable; calling it again is fine.

    Args:
        target: Laid down, marked.
        listed: Virtual paths of the record that decides, of any kind and in any order.
        root: What they begin with.

    Raises:
        FormatError: A listed path has no place in a data directory.
    """
    # An empty name is a temporary database that spills to disk; its cache stays within a few MiB.
    with closing(sqlite3.connect("")) as database:
        database.execute("CREATE TABLE listed (path TEXT PRIMARY KEY) WITHOUT ROWID")
        database.execute("PRAGMA journal_mode = OFF")
        places = _places(target, listed, root)
        while batch := [(place,) for _, place in zip(range(_PATHS_PER_INSERT), places, strict=False)]:
            database.executemany("INSERT OR IGNORE INTO listed VALUES (?)", batch)
        removal = _Removal(database)
        inside = frozenset(
            f"{names.TABLESPACES}/{oid}" for oid, directory in target.tablespaces.items() if directory is None
        )
        removal.sweep(str(target.data_directory), inside="", walked=inside)
        for directory in target.outside.values():
            version_directory = directory / target.version_directory
            if version_directory.is_dir():
                removal.sweep(str(version_directory), inside=None, walked=frozenset())
        return removal.files


def _places(target: Target, listed: Iterable[str], root: str) -> Iterator[str]:
    for path in listed:
        directory, inside = target.place(path.removeprefix(f"{root}/"))
        yield f"{directory}/{inside}"


class _Removal:
    """A walk that removes; directories are opened without following links."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.files = 0
        self._database = database

    def sweep(self, directory: str, *, inside: str | None, walked: frozenset[str]) -> None:
        """
        Remove what is not listed in *directory*.

        Args:
            directory: Absolute.
            inside: Its path relative to the data directory; None in a tablespace.
            walked: In-place tablespaces.
        """
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._sweep(descriptor, directory, inside=inside, walked=walked)
        finally:
            os.close(descriptor)

    def _sweep(self, descriptor: int, directory: str, *, inside: str | None, walked: frozenset[str]) -> None:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                child = None if inside is None else f"{inside}/{entry.name}".lstrip("/")
                if child in _KEPT_FILES:
                    continue
                if inside == names.TABLESPACES and child not in walked:
                    continue
                path = f"{directory}/{entry.name}"
                if not entry.is_dir(follow_symlinks=False):
                    if not self._is_listed(path):
                        os.unlink(entry.name, dir_fd=descriptor)
                        self.files += 1
                elif child not in {names.WAL_DIRECTORY, "lost+found"}:
                    self._sweep_child(descriptor, entry.name, path, inside=child, walked=walked)

    def _sweep_child(self, parent: int, name: str, path: str, *, inside: str | None, walked: frozenset[str]) -> None:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            self._sweep(descriptor, path, inside=inside, walked=walked)
            is_empty = not os.listdir(descriptor)
        finally:
            os.close(descriptor)
        if is_empty and inside not in _KEPT_DIRECTORIES and inside not in walked and not self._is_listed(path):
            os.rmdir(name, dir_fd=parent)

    def _is_listed(self, path: str) -> bool:
        found = self._database.execute("SELECT 1 FROM listed WHERE path = ?", (path,)).fetchone()
        return found is not None
