"""
Configuration files whose place is outside the data directory: put back there, or left lying where a restore put them.

A restore lays them down in ``pgkeep.configuration`` in the data directory, each below its absolute path. From there a
file goes to its place when nothing is there. A file that is there and says the same is left as it is; one that says
something else is left as well, unless the restore may overwrite and it is older than the backup's: then it is renamed.

As root nothing is written where the cluster's owner could not have put it: a backup is no way to become root. The one
place that is made for him is ``/etc/postgresql``, as Debian's pg_createcluster does.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.datadir.beneath import Beneath
from pgkeep.datadir.durable import sync_directory
from pgkeep.datadir.owner import Owner
from pgkeep.errors import PgkeepError
from pgkeep.pg.data_directory import CONFIGURATION_DIRECTORY

_DEBIAN_DIRECTORY = Path("/etc/postgresql")
_TEMPORARY_SUFFIX = ".pgkeep-new"


@dataclass
class PutBack:
    """
    What became of the configuration files.

    Attributes:
        placed: Files that were put where nothing was, or where an older file was.
        same: Files that were there already.
        kept: Files that lie in ``pgkeep.configuration`` still, with the reason.
    """

    placed: list[Path] = field(default_factory=list)
    same: list[Path] = field(default_factory=list)
    kept: dict[Path, str] = field(default_factory=dict)


def put_back(data_directory: Path, *, owner: Owner | None, may_replace: bool, suffix: str) -> PutBack:
    """
    Put the configuration files that were laid down in *data_directory* to their places; doing it again is fine.

    Args:
        data_directory: Of the restored cluster.
        owner: Who owns the cluster; None for whoever runs pgkeep.
        may_replace: Whether an older file may be renamed out of the way.
        suffix: What its name then gets.

    Raises:
        PgkeepError: The laid down files cannot be read.
    """
    result = PutBack()
    top = data_directory / CONFIGURATION_DIRECTORY
    for laid in _laid_down(top):
        place = Path("/") / laid.relative_to(top)
        if laid.is_dir():
            if not place.exists():
                _try_directory(place, laid, owner)
            continue
        why = _place_file(laid, place, owner, suffix=suffix if may_replace else "", result=result)
        if why:
            result.kept[place] = why
    for place in [*result.placed, *result.same]:
        (top / place.relative_to("/")).unlink()
    _remove_empty(top)
    return result


def take_back(paths: list[str], absent: list[str], *, suffix: str) -> list[tuple[Path, Path]]:
    """
    Undo ``put_back``, and return what was renamed: from where, to where.

    Args:
        paths: The absolute paths of all configuration files of the backup.
        absent: Those of them where nothing was before the restore.
        suffix: As it was given to ``put_back``.
    """
    renamed = []
    for text in paths:
        place, aside = Path(text), Path(f"{text}{suffix}")
        restored = Path(f"{text}{suffix}.rolled-back")
        was_replaced = os.path.lexists(aside)
        if not was_replaced and text not in absent:
            continue
        if os.path.lexists(place):
            os.replace(place, restored)
        if was_replaced:
            os.replace(aside, place)
        sync_directory(place.parent)
        renamed.append((place, restored))
    return renamed


def _laid_down(top: Path) -> Iterator[Path]:
    """Yield what lies below *top*, a directory before its content; no links."""
    for directory, directories, files in os.walk(top):
        for name in sorted(directories) + sorted(files):
            path = Path(directory, name)
            if not path.is_symlink():
                yield path


def _place_file(laid: Path, place: Path, owner: Owner | None, *, suffix: str, result: PutBack) -> str:
    """Put one file to its place; return why it stays where it is, empty when it does not."""
    try:
        content, status = _read_own(laid, owner)
        found = place.lstat() if os.path.lexists(place) else None
        if found is not None and place.is_file() and place.read_bytes() == content:
            result.same.append(place)
            return ""
        why = _why_not_over(found, status, may_replace=bool(suffix)) or _why_not_in(place.parent, owner, place)
        if not why:
            _write(place, content, status, owner, aside=place.name + suffix if found is not None else "")
            result.placed.append(place)
    except OSError as error:
        why = error.strerror or str(error)
    except PgkeepError as error:
        why = error.message
    return why


def _read_own(laid: Path, owner: Owner | None) -> tuple[bytes, os.stat_result]:
    """Return what was laid down; raise OSError for what somebody has put in its place."""
    descriptor = os.open(laid, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (owner is not None and status.st_uid != owner.uid):
            raise PermissionError(errno.EPERM, f"{laid} is not what the restore laid down")
        return file.read(), status


def _why_not_over(found: os.stat_result | None, status: os.stat_result, *, may_replace: bool) -> str:
    if found is None:
        return ""
    if not stat.S_ISREG(found.st_mode):
        return "something that is not a file has its name"
    if found.st_mtime_ns >= status.st_mtime_ns:
        return "the file there is newer"
    return "" if may_replace else "another file is there"


def _write(place: Path, content: bytes, status: os.stat_result, owner: Owner | None, *, aside: str) -> None:
    """Write a file whole or not at all; no link is followed on the way, whoever makes one meanwhile."""
    parent = Path(os.path.realpath(place.parent))
    beneath = Beneath(Path("/"), owner=owner)
    inside = str(parent.relative_to("/") / place.name)
    try:
        descriptor = beneath.create_file(inside + _TEMPORARY_SUFFIX)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)
            os.utime(descriptor, ns=(status.st_mtime_ns, status.st_mtime_ns))
            os.fsync(descriptor)
        if aside:
            beneath.rename(inside, aside)
        beneath.rename(inside + _TEMPORARY_SUFFIX, place.name)
    finally:
        beneath.close()
    sync_directory(parent)


def _try_directory(place: Path, laid: Path, owner: Owner | None) -> None:
    """Make a directory with the permission bits of the one that was laid down, where that is possible."""
    ancestor = place.parent
    missing = [place]
    while not ancestor.exists():
        missing.append(ancestor)
        ancestor = ancestor.parent
    if _why_not_in(ancestor, owner, place):
        return
    for path in reversed(missing):
        try:
            path.mkdir()
            if owner is not None:
                os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
            path.chmod(stat.S_IMODE(laid.stat().st_mode) & 0o777 if path == place else 0o755)
            sync_directory(path.parent)
        except OSError:
            return


def _why_not_in(directory: Path, owner: Owner | None, place: Path) -> str:
    """Return why *place* may not be made in *directory*, which is above it; empty when it may."""
    if not directory.is_dir():
        return f"there is no directory {directory}"
    if os.geteuid() != 0 or owner is None or owner.uid == 0:
        return "" if os.access(directory, os.W_OK | os.X_OK) else f"no right to write in {directory}"
    real = Path(os.path.realpath(directory))
    is_debian = real == directory and _DEBIAN_DIRECTORY in (place, *place.parents)
    if real.stat().st_uid == owner.uid or is_debian:
        return ""
    return f'{directory} does not belong to "{owner.user_name}"'


def _remove_empty(top: Path) -> None:
    """Remove *top* when no file is left in it."""
    if top.is_dir() and not any(files for _, _, files in os.walk(top)):
        shutil.rmtree(top)
        sync_directory(top.parent)
