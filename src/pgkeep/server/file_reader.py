"""
Small files of the server's host: read here, or by the server itself where they are not on this host.

The contract: ``look`` returns None for what is not there; ``read`` and ``names`` are asked only of what ``look``
found. All raise PgkeepError, with the reason, for what cannot be read.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from typing import Protocol

from pgkeep.errors import ServerError
from pgkeep.server.connection import Server

MAX_FILE_BYTES = 4 << 20
"""Larger than any configuration file: what is larger is not one, and not read into memory."""

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FoundFile:
    """What is known of a file or directory; *owner* and *group* are empty and *file_mode* 0600 where nobody says."""

    is_directory: bool
    size: int
    mtime_ns: int
    file_mode: int = 0o600
    owner: str = ""
    group: str = ""


class FileReader(Protocol):
    """A way to read files of the server's host; paths are absolute."""

    def look(self, path: str) -> FoundFile | None:
        """Return what is at *path*, links followed; None when there is nothing."""
        ...

    def read(self, path: str) -> bytes:
        """Return the content of the file at *path*."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the sorted names in the directory at *path*."""
        ...


class LocalReader:
    """Files of this host."""

    def look(self, path: str) -> FoundFile | None:
        """Return what is at *path*; see the protocol."""
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ServerError(f"cannot read {path}: {error.strerror}") from error
        is_directory = stat.S_ISDIR(status.st_mode)
        if not is_directory and not stat.S_ISREG(status.st_mode):
            raise ServerError(f"cannot read {path}: it is neither a file nor a directory")
        return FoundFile(
            is_directory,
            0 if is_directory else _checked_size(path, status.st_size),
            status.st_mtime_ns,
            stat.S_IMODE(status.st_mode),
            _user_name(status.st_uid),
            _group_name(status.st_gid),
        )

    def read(self, path: str) -> bytes:
        """Return the content; see the protocol."""
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ServerError(f"cannot read {path}: {error.strerror}") from error
        _checked_size(path, len(content))
        return content

    def names(self, path: str) -> list[str]:
        """Return the names; see the protocol."""
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            raise ServerError(f"cannot read {path}: {error.strerror}") from error


class RemoteReader:
    """Files that the server reads for us: a superuser's right, or one that is granted."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def look(self, path: str) -> FoundFile | None:
        """Return what is at *path*; see the protocol."""
        rows = self._server.rows(
            "SELECT isdir, size, extract(epoch FROM modification)::int8 FROM pg_stat_file(%s, true) "
            "WHERE size IS NOT NULL",
            [path],
        )
        if not rows:
            return None
        is_directory, size, seconds = rows[0]
        size = 0 if is_directory else _checked_size(path, size)
        return FoundFile(is_directory, size, seconds * NANOSECONDS, 0o700 if is_directory else 0o600)

    def read(self, path: str) -> bytes:
        """Return the content; see the protocol."""
        return bytes(self._server.value("SELECT pg_read_binary_file(%s)", [path]))

    def names(self, path: str) -> list[str]:
        """Return the names; see the protocol."""
        return sorted(name for (name,) in self._server.rows("SELECT pg_ls_dir(%s)", [path]))


def _checked_size(path: str, size: int) -> int:
    if size > MAX_FILE_BYTES:
        raise ServerError(f"cannot read {path}: {size} bytes are too many for a configuration file")
    return size


@functools.lru_cache(maxsize=16)
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@functools.lru_cache(maxsize=16)
def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
