"""
Where a restore puts its files, and whether it may.

Until a restore is complete its target is marked: ``pgkeep.restoring`` stands in each of its directories, and
``global/pg_control``, without which no server starts, waits under another name. So whatever kills a restore, what it
leaves behind cannot be mistaken for a cluster, and the next restore may clear it away. The mark names the data
directory that the restore was for: a tablespace directory is cleared for that one only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.datadir.beneath import Beneath, safe_parts
from pgkeep.datadir.durable import sync_directory
from pgkeep.datadir.owner import Owner
from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.errors import BackupUnusable, FormatError, RestoreRefused
from pgkeep.pg import data_directory as names

MARKER = "pgkeep.restoring"
STATE_DIRECTORY = "pgkeep.restore"
"""What a restore knows, where it cannot be kept beside the data directory."""
OLD_CONTENTS = "pgkeep.old."
"""Begins the name of a directory in a mount point that holds what lay in the mount point before a restore."""
HELD_CONTROL_FILE = f"{names.CONTROL_FILE}.pgkeep"

_SINGLE = frozenset({names.BACKUP_LABEL, names.TABLESPACE_MAP, names.CONFIGURATION_DIRECTORY})

_SPACE_RESERVE_BYTES = 64 << 20
"""What must be left of each file system: recovery files, and the server's first steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """
    The directories of a restore.

    Attributes:
        data_directory: Absolute.
        version_directory: The directory inside each tablespace that belongs to the server's version: ``PG_18_…``.
        tablespaces: OID to absolute directory; None for a tablespace inside ``pg_tblspc`` itself.
        wal_directory: Absolute, where WAL of the backup goes; None for ``pg_wal``.
        owner: Who owns what is laid down; None for whoever runs pgkeep.
    """

    data_directory: Path
    version_directory: str
    tablespaces: Mapping[int, Path | None] = field(default_factory=dict)
    wal_directory: Path | None = None
    owner: Owner | None = None

    @property
    def outside(self) -> dict[int, Path]:
        """The tablespaces that have a directory of their own."""
        return {oid: path for oid, path in self.tablespaces.items() if path is not None}

    @property
    def directories(self) -> list[Path]:
        """Every directory that files are laid down in; the data directory is the first."""
        return [
            self.data_directory,
            *self.outside.values(),
            *([self.wal_directory] if self.wal_directory is not None else []),
        ]

    @property
    def is_marked(self) -> bool:
        """Whether what stands there is the leftover of a restore that did not end."""
        marked = os.path.lexists(self.data_directory / MARKER)
        return marked and not os.path.lexists(self.data_directory / names.CONTROL_FILE)

    def own_leftovers(self) -> list[Path]:
        """Return the directories that ``begin`` will clear: what a restore that did not end left in them."""
        if not self.is_marked:
            return []
        outside = [path for path in self.outside.values() if self._is_own_leftover(path)]
        return [self.data_directory, *(path / self.version_directory for path in outside)]

    def place(self, path: str) -> tuple[Path, str]:
        """
        Return in which of ``directories`` an item belongs, and its path beneath that.

        Args:
            path: Virtual path without what comes before ``pgdata/…``, ``tblspc/<oid>/…``, ``wal/…``, ``config/…``,
                ``backup_label`` or ``tablespace_map``.

        Raises:
            FormatError: It is none of these, or it leads out of its place.
            RestoreRefused: The target has no directory for its tablespace.
        """
        head, *rest = safe_parts(path)
        if head == "pgdata" and rest:
            inside = "/".join(rest)
            return self.data_directory, HELD_CONTROL_FILE if inside == names.CONTROL_FILE else inside
        if head == "tblspc" and len(rest) > 1 and rest[0].isascii() and rest[0].isdigit():
            oid = int(rest[0])
            if oid not in self.tablespaces:
                raise RestoreRefused(
                    f"the restore has no directory for tablespace {oid}", hint="name one in the tablespace map"
                )
            directory = self.tablespaces[oid]
            if directory is None:
                return self.data_directory, "/".join((names.TABLESPACES, *rest))
            return directory, "/".join(rest[1:])
        if head == "wal" and len(rest) == 1:
            if self.wal_directory is not None:
                return self.wal_directory, rest[0]
            return self.data_directory, f"{names.WAL_DIRECTORY}/{rest[0]}"
        if head == "config":
            # Files from outside the data directory; they wait within it until they are put back.
            head = names.CONFIGURATION_DIRECTORY
        if bool(rest) == (head == names.CONFIGURATION_DIRECTORY) and head in _SINGLE:
            return self.data_directory, "/".join((head, *rest))
        raise FormatError(f'item has no place in a data directory: "{path}"')

    def check(
        self,
        *,
        sizes: Mapping[Path, int] | None = None,
        is_overwritten: bool = False,
        may_stop: bool = False,
        is_resumed: bool = False,
    ) -> None:
        """
        Refuse the restore here, before anything is touched.

        Args:
            sizes: Bytes that will be written beneath each of ``directories``.
            is_overwritten: What stands there will be moved away by the caller: only emptiness is not asked for.
            may_stop: A server that runs there will be stopped by the caller.
            is_resumed: An earlier run may have renamed what a symbolic link leads to.

        Raises:
            RestoreRefused: A server runs there, something is in the way, or a file system has too little space.
        """
        self._check_paths()
        for directory in self.directories:
            _check_reach(directory)
            if is_resumed or not directory.is_symlink() or directory.exists():
                self._check_kind(Path(os.path.realpath(directory)))
            else:
                # The disk that it leads to may not be mounted.
                raise RestoreRefused(f"restore target is a link to nowhere: {directory}")
        postmaster = running_postmaster(self.data_directory) if self.data_directory.is_dir() else None
        if postmaster is not None and not may_stop:
            raise RestoreRefused(
                f"a server runs in {self.data_directory}: process {postmaster.pid}",
                hint="restore into another directory, or let overwrite_existing stop it and move its files away",
            )
        if not is_overwritten:
            self._check_emptiness()
        self._check_space(sizes or {})

    def begin(self) -> None:
        """
        Make the directories, marked; clear away what a restore that did not end left in them.

        Raises:
            RestoreRefused: Another restore has taken the directory of a tablespace since ``check``.
        """
        is_leftover = self.is_marked
        for directory in self.directories:
            is_own_leftover = is_leftover and self._is_own_leftover(directory)
            make_directories(directory, self.owner)
            beneath = Beneath(directory, owner=self.owner)
            try:
                # The mark comes first and goes last: a restore that is killed while it clears is found again.
                if not is_own_leftover:
                    self._claim(directory, beneath)
                if directory == self.data_directory:
                    if is_leftover:
                        beneath.clear(keep=kept_names(directory) | {MARKER})
                elif is_own_leftover and directory != self.wal_directory:
                    beneath.remove_tree(self.version_directory)
            finally:
                beneath.close()
            sync_directory(directory)

    def complete(self) -> None:
        """
        Give ``global/pg_control`` its name and remove the marks: from here on it is a cluster.

        To be called when everything, recovery files included, is durable. Calling it again is fine.

        Raises:
            BackupUnusable: No ``global/pg_control`` was laid down.
        """
        control_file, held = self.data_directory / names.CONTROL_FILE, self.data_directory / HELD_CONTROL_FILE
        if os.path.lexists(held):
            os.replace(held, control_file)
            sync_directory(control_file.parent)
        elif not os.path.lexists(control_file):
            raise BackupUnusable(f"the backup held no {names.CONTROL_FILE}: what was laid down is not a cluster")
        for directory in reversed(self.directories):
            (directory / MARKER).unlink(missing_ok=True)
            sync_directory(directory)

    def _check_paths(self) -> None:
        seen: dict[str, Path] = {}
        for directory in self.directories:
            if not directory.is_absolute():
                raise RestoreRefused(f"restore target must be an absolute path, found {directory}")
            real_path = os.path.realpath(directory)
            if real_path in seen:
                raise RestoreRefused(f"two parts of the restore have the same directory: {directory}")
            seen[real_path] = directory
        for real_path, directory in seen.items():
            for above in map(str, Path(real_path).parents):
                if above not in seen and os.path.lexists(f"{above}/{names.CONTROL_FILE}"):
                    raise RestoreRefused(
                        f"restore target lies within the data directory of a cluster: {directory} in {above}",
                        hint="name a directory beside it; to take its place name the data directory itself",
                    )

    def _check_kind(self, directory: Path) -> None:
        if os.path.lexists(directory) and not directory.is_dir():
            raise RestoreRefused(f"restore target is not a directory: {directory}")
        existing = _existing_ancestor(directory)
        if not os.access(existing, os.W_OK | os.X_OK):
            raise RestoreRefused(
                f"cannot restore into {directory}: no right to write in {existing}",
                hint="run pgkeep as root or as the owner of the directory",
            )

    def _claim(self, directory: Path, beneath: Beneath) -> None:
        """Mark *directory*, one restore at a time; that of a tablespace has its part of this version from then on."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if directory in self.outside.values():
                is_others = os.path.lexists(directory / MARKER) and not self._is_own_leftover(directory)
                # What was wiped is there, and empty.
                if is_others or _names_in(directory / self.version_directory):
                    self._check_free(
                        directory,
                        hint="another restore has taken it meanwhile, or was killed in it: name another directory in "
                        "the tablespace map, or remove what that one left, and run this one again",
                    )
                self._mark(beneath)
                beneath.make_directory(self.version_directory)
            else:
                self._mark(beneath)
        finally:
            os.close(descriptor)

    def _check_free(
        self,
        directory: Path,
        *,
        hint: str = "name another directory in the tablespace map, or allow the restore to overwrite",
    ) -> None:
        version_directory = directory / self.version_directory
        if os.path.lexists(version_directory):
            raise RestoreRefused(f"tablespace directory is in use: {version_directory} exists", hint=hint)

    def _mark(self, beneath: Beneath) -> None:
        descriptor = beneath.create_file(MARKER)
        try:
            os.write(descriptor, self._mark_content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @property
    def _mark_content(self) -> bytes:
        return _mark_of(self.data_directory)

    def _is_own_leftover(self, directory: Path) -> bool:
        return has_mark_of(directory, self.data_directory)

    def _check_emptiness(self) -> None:
        is_leftover = self.is_marked
        if not is_leftover:
            _check_empty(self.data_directory)
        for directory in self.outside.values():
            if not (is_leftover and self._is_own_leftover(directory)):
                self._check_free(directory)

    def _check_space(self, sizes: Mapping[Path, int]) -> None:
        for space in spaces(sizes):
            if space.free_bytes < space.needed_bytes:
                raise RestoreRefused(
                    f"not enough space for the restore on the file system of {space.place}: "
                    f"{space.needed_bytes} bytes are needed, {space.free_bytes} are free"
                )


@dataclass(frozen=True, slots=True)
class Space:
    """What a restore needs of the file system of *place*, with what must be left of it, and what is free there."""

    place: Path
    needed_bytes: int
    free_bytes: int


def spaces(sizes: Mapping[Path, int]) -> list[Space]:
    """Return one entry for each file system of *sizes*: how much goes beneath which directory, which may be absent."""
    needs: dict[int, int] = {}
    places: dict[int, Path] = {}
    for directory, size in sizes.items():
        existing = _existing_ancestor(directory)
        device = os.stat(existing).st_dev
        needs[device] = needs.get(device, 0) + size
        places.setdefault(device, existing)
    found = []
    for device, need in needs.items():
        status = os.statvfs(places[device])
        found.append(Space(places[device], need + _SPACE_RESERVE_BYTES, status.f_bavail * status.f_frsize))
    return found


def is_same_file_system(left: Path, right: Path) -> bool:
    """Tell whether *left* and *right*, which may be absent, take the room of one file system."""
    return os.stat(_existing_ancestor(left)).st_dev == os.stat(_existing_ancestor(right)).st_dev


def has_mark_of(directory: Path, data_directory: Path) -> bool:
    """Tell whether the mark in *directory* is that of a restore into *data_directory*."""
    try:
        descriptor = os.open(directory / MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    content = _mark_of(data_directory)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(len(content) + 1) == content


def _mark_of(data_directory: Path) -> bytes:
    return os.fsencode(os.path.realpath(data_directory)) + b"\n"


def _check_reach(directory: Path) -> None:
    """Refuse a directory of which it cannot even be told whether it is there."""
    try:
        os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise RestoreRefused(
            f"cannot look at restore target {directory}: {error.strerror}",
            hint="run pgkeep as root or as the owner of the directory",
        ) from error


def _check_empty(directory: Path) -> None:
    try:
        found: Iterable[str] = sorted(set(os.listdir(directory)) - kept_names(directory))[:3]
    except FileNotFoundError:
        return
    if found:
        raise RestoreRefused(
            f"restore target is not empty: {directory} holds {', '.join(found)}",
            hint="choose another directory, or allow the restore to overwrite",
        )


def kept_names(directory: Path) -> frozenset[str]:
    """Return which names in *directory* are no part of a cluster, and stay when a restore clears it."""
    own = {name for name in os.listdir(directory) if name.startswith(OLD_CONTENTS)}
    return frozenset({"lost+found", STATE_DIRECTORY, *own})


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _existing_ancestor(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def make_directories(directory: Path, owner: Owner | None) -> None:
    """Make *directory* with mode 0700 and those above it with 0755, so that the server's user can get there."""
    missing = []
    # Where a link leads: what it led to may have been renamed out of the way.
    directory = Path(os.path.realpath(directory))
    path = directory
    while not path.exists():
        missing.append(path)
        path = path.parent
    for path in reversed(missing):
        path.mkdir()
        if owner is not None:
            os.chown(path, owner.uid, owner.gid)
        path.chmod(0o700 if path == directory else 0o755)
        sync_directory(path.parent)
    if not missing and owner is not None and os.stat(directory).st_uid != owner.uid:
        os.chown(directory, owner.uid, owner.gid)
