"""
The walk of a live data directory and its tablespaces: which files a base backup holds, by the rules of BASE_BACKUP.

The walk holds one directory's handle per level and sorts names in batches, so that its memory does not grow with the
number of files. The server goes on working meanwhile: what disappears between its listing and its look is counted and
left out, because replay removes it too. ``global/pg_control`` is never yielded; it is read after everything else.

Links: a tablespace's link leads to the server version's own directory there. ``pg_wal`` and the directories that are
held empty become plain directories. A linked file, and a linked directory that the server made, are taken with the
content that they lead to; other linked directories are named in a warning and left out.
"""

from __future__ import annotations

import functools
import grp
import itertools
import os
import pwd
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import ServerError
from pgkeep.pg import data_directory as names
from pgkeep.streams.item import ItemHeader, ItemKind

NAMES_PER_BATCH = 65_536
"""How many names of one directory are sorted, and held, at a time."""

_SERVER_DIRECTORIES = frozenset(path.partition("/")[0] for path in names.REQUIRED_DIRECTORIES)
_WAL_SUBDIRECTORIES = ("archive_status", "summaries")


@dataclass(frozen=True, slots=True)
class FoundTablespace:
    """A tablespace that the walk found; *location* is absolute, or empty for one inside ``pg_tblspc`` itself."""

    oid: int
    location: str


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """
    A file or directory as the walk saw it.

    Attributes:
        path: Virtual path.
        inside: Path as the server knows it, relative to the data directory: ``pg_tblspc/<oid>/PG_…/5/16384``.
        real_path: Absolute path in the file system.
        status: Result of ``stat``, links followed; taken before the content is read.
    """

    path: str
    inside: str
    real_path: str
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    def header(self, status: os.stat_result | None = None) -> ItemHeader:
        """Return the item header, from *status* when the file was looked at again since."""
        status = status or self.status
        directory = stat.S_ISDIR(status.st_mode)
        return ItemHeader(
            path=self.path,
            kind=ItemKind.DIRECTORY if directory else ItemKind.FILE,
            size=0 if directory else status.st_size,
            mtime_ns=status.st_mtime_ns,
            file_mode=stat.S_IMODE(status.st_mode),
            owner=_user_name(status.st_uid),
            group=_group_name(status.st_gid),
        )


def listed_tablespaces(data_directory: Path) -> frozenset[int]:
    """Return the OIDs of the tablespaces that ``pg_tblspc`` names now; raise ServerError when it cannot be read."""
    return frozenset(_entries_of(str(data_directory / names.TABLESPACES))[0])


def _entries_of(directory: str) -> tuple[dict[int, bool], set[str]]:
    """Return what ``pg_tblspc`` names: OIDs, each with whether it is a link, and what else is there."""
    try:
        with os.scandir(directory) as entries:
            found = {entry.name: entry.is_symlink() for entry in entries}
    except OSError as error:
        raise _unreadable(directory, error) from error
    oids = {int(name): is_link for name, is_link in found.items() if name.isascii() and name.isdigit()}
    return oids, found.keys() - {str(oid) for oid in oids}


class Scan:
    """
    One walk.

    Attributes:
        data_directory: Absolute, links resolved.
        tablespaces: What ``pg_tblspc`` holds, by OID.
        listed: The OIDs of all that it names, also of those that are left out or have no directory.
        vanished: Files and directories that disappeared under the walk; complete when the walk is over.
    """

    def __init__(
        self,
        data_directory: Path,
        *,
        root: str,
        version_directory: str,
        required_tablespaces: Collection[int] = (),
        left_out: Collection[int] = (),
        emptied: frozenset[str] = names.EMPTIED_DIRECTORIES,
        warn: Callable[[str], None],
    ) -> None:
        """
        Look at ``pg_tblspc``; nothing else is touched before ``files``.

        Args:
            data_directory: The server's data directory.
            root: Where the virtual paths begin, ``@postgresql/pitr``: files get ``<root>/pgdata/…`` and
                ``<root>/tblspc/<oid>/…``.
            version_directory: The directory inside each tablespace that belongs to this server.
            required_tablespaces: OIDs that the catalog lists; one that is not on disk ends the walk.
            left_out: OIDs of tablespaces that shall not be in the backup.
            emptied: Names of directories that the backup holds empty.
            warn: Takes one line about what the backup cannot hold.

        Raises:
            ServerError: The directory cannot be read, or a required tablespace is not there.
        """
        self.data_directory = Path(os.path.realpath(data_directory))
        self.vanished = 0
        self._root = root
        self._version_directory = version_directory
        self._emptied = emptied
        self._warn = warn
        self.listed: frozenset[int] = frozenset()
        found = self._find_tablespaces(frozenset(required_tablespaces))
        self.tablespaces = tuple(tablespace for tablespace in found if tablespace.oid not in left_out)
        self._elsewhere = self._tablespace_identities()

    def files(self) -> Iterator[ScannedFile]:
        """Yield every file and directory that a backup holds, a directory before its content; call it once."""
        yield from self._walk(str(self.data_directory), inside="", path=f"{self._root}/pgdata", above=())
        for tablespace in self.tablespaces:
            inside = f"{names.TABLESPACES}/{tablespace.oid}/{self._version_directory}"
            path = f"{self._root}/tblspc/{tablespace.oid}/{self._version_directory}"
            place = tablespace.location or str(self.data_directory / names.TABLESPACES / str(tablespace.oid))
            real_path = os.path.join(place, self._version_directory)
            status = self._status(real_path)
            if status is not None:
                yield ScannedFile(path, inside, real_path, status)
                yield from self._walk(real_path, inside=inside, path=path, above=())

    def control_file(self) -> ScannedFile:
        """Return ``global/pg_control``, to be read when everything else has been."""
        real_path = str(self.data_directory / names.CONTROL_FILE)
        try:
            status = os.stat(real_path)
        except OSError as error:
            raise _unreadable(real_path, error) from error
        return ScannedFile(f"{self._root}/pgdata/{names.CONTROL_FILE}", names.CONTROL_FILE, real_path, status)

    def _find_tablespaces(self, required: frozenset[int]) -> Iterator[FoundTablespace]:
        directory = str(self.data_directory / names.TABLESPACES)
        oids, others = _entries_of(directory)
        self.listed = frozenset(oids)
        for name in sorted(others):
            self._warn(f"not in the backup: {names.TABLESPACES}/{name} is not a tablespace")
        for oid in sorted(oids.keys() | required):
            location = os.path.realpath(os.path.join(directory, str(oid))) if oids.get(oid) else ""
            version_directory = os.path.join(location or os.path.join(directory, str(oid)), self._version_directory)
            if os.path.isdir(version_directory):
                yield FoundTablespace(oid, location)
            elif oid in required:
                # BASE_BACKUP would leave it out without a word; an unmounted file system looks just like this.
                raise ServerError(
                    f"tablespace {oid} is not on disk: expected the directory {version_directory}",
                    hint="mount the file system of the tablespace, or drop the tablespace",
                )
            else:
                self._warn(f"not in the backup: tablespace {oid} has no directory {version_directory}")

    def _tablespace_identities(self) -> frozenset[tuple[int, int]]:
        found = set()
        for tablespace in self.tablespaces:
            if tablespace.location:
                status = self._status(tablespace.location)
                if status is not None:
                    found.add((status.st_dev, status.st_ino))
        return frozenset(found)

    def _walk(
        self, directory: str, *, inside: str, path: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[ScannedFile]:
        for name in self._kept_names(directory, inside):
            child = f"{inside}/{name}" if inside else name
            if child == names.CONTROL_FILE:
                continue
            found = self._look(f"{directory}/{name}", inside=child, path=f"{path}/{name}")
            if found is None:
                continue
            yield found
            if not found.is_directory or child == names.TABLESPACES or name in self._emptied:
                continue
            identity = (found.status.st_dev, found.status.st_ino)
            if child == names.WAL_DIRECTORY:
                yield from self._wal_subdirectories(found)
            elif identity in above:
                raise ServerError(f"data directory contains itself: {found.real_path} leads back to a directory above")
            elif identity not in self._elsewhere:
                yield from self._walk(found.real_path, inside=child, path=found.path, above=(*above, identity))

    def _kept_names(self, directory: str, inside: str) -> Iterator[str]:
        unlogged: frozenset[int] = frozenset()
        if names.is_database_directory(inside):
            unlogged = names.unlogged_numbers(self._list(directory))
        listed = self._list(directory)
        prefix = f"{inside}/" if inside else ""
        while batch := sorted(itertools.islice(listed, NAMES_PER_BATCH)):
            for name in batch:
                if names.is_excluded(prefix + name, emptied=self._emptied):
                    continue
                if not names.is_unlogged_content(name, unlogged):
                    yield name

    def _list(self, directory: str) -> Iterator[str]:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    yield entry.name
        except FileNotFoundError:
            self.vanished += 1
        except OSError as error:
            raise _unreadable(directory, error) from error

    def _look(self, real_path: str, *, inside: str, path: str) -> ScannedFile | None:
        try:
            path.encode()
        except UnicodeEncodeError:
            self._warn(f"not in the backup: the name of {os.fsencode(real_path)!r} is not UTF-8")
            return None
        status = self._status(real_path, follow=False)
        if status is not None and stat.S_ISLNK(status.st_mode):
            status = self._follow(real_path, inside)
        if status is None:
            return None
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            self._warn(f"not in the backup: {inside} is neither a file nor a directory")
            return None
        return ScannedFile(path, inside, real_path, status)

    def _follow(self, real_path: str, inside: str) -> os.stat_result | None:
        try:
            status = os.stat(real_path)
        except OSError as error:
            self._warn(f"not in the backup: {inside} is a link that leads nowhere: {error.strerror}")
            return None
        if stat.S_ISDIR(status.st_mode) and inside.partition("/")[0] not in _SERVER_DIRECTORIES:
            self._warn(f"not in the backup: {inside} is a link to the directory {os.path.realpath(real_path)}")
            return None
        return status

    def _wal_subdirectories(self, wal: ScannedFile) -> Iterator[ScannedFile]:
        for name in _WAL_SUBDIRECTORIES:
            status = self._status(f"{wal.real_path}/{name}", count=False)
            if status is not None:
                yield ScannedFile(f"{wal.path}/{name}", f"{wal.inside}/{name}", f"{wal.real_path}/{name}", status)

    def _status(self, real_path: str, *, follow: bool = True, count: bool = True) -> os.stat_result | None:
        try:
            return os.stat(real_path, follow_symlinks=follow)
        except FileNotFoundError:
            self.vanished += count
            return None
        except OSError as error:
            raise _unreadable(real_path, error) from error


def _unreadable(path: str, error: OSError) -> ServerError:
    return ServerError(
        f"cannot read {path}: {error.strerror}",
        hint="run pgkeep as the user that owns the data directory" if isinstance(error, PermissionError) else "",
    )


@functools.lru_cache(maxsize=64)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@functools.lru_cache(maxsize=64)
def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
