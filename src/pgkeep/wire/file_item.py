"""
The lines that announce a file: FNAME, STAT, TSTAMP, LSTAT.

::

    FNAME:<name>                                                     directories end with a slash
    STAT:<type> <size> <uid> <gid> <mode, octal> <links> [<index>]
    TSTAMP:<atime> <mtime> <ctime>                                   seconds since the epoch
    LSTAT:<target>                                                   of a symbolic link
"""

from __future__ import annotations

import enum
import re
import stat
from dataclasses import dataclass

from pgkeep.errors import WireError
from pgkeep.wire.packet import PacketKind, encode, encode_text

_STAT = re.compile(
    r"([A-Z]) (-?[0-9]{1,19}) ([0-9]{1,10}) ([0-9]{1,10}) ([0-7]{1,7}) ([0-9]{1,10})(?: (-?[0-9]{1,10}))?"
)
_TSTAMP = re.compile(r"(-?[0-9]{1,19}) (-?[0-9]{1,19}) (-?[0-9]{1,19})")


class FileKind(enum.StrEnum):
    """The letter of STAT."""

    REGULAR = "F"
    EMPTY = "E"
    DIRECTORY = "D"
    SYMLINK = "S"
    HARD_LINK = "L"
    UNKNOWN = "X"


_FORMATS = {FileKind.DIRECTORY: stat.S_IFDIR, FileKind.SYMLINK: stat.S_IFLNK}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """
    What STAT, TSTAMP and LSTAT say of a file.

    Attributes:
        kind: What it is.
        size: Bytes; -1 when unknown.
        uid: Number of the owning user.
        gid: Number of the owning group.
        file_mode: Permission bits.
        atime: Seconds.
        mtime: Seconds.
        ctime: Seconds.
        link: Target of a symbolic link; empty otherwise.
    """

    kind: FileKind = FileKind.REGULAR
    size: int = 0
    uid: int = 0
    gid: int = 0
    file_mode: int = 0o600
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    link: str = ""

    @property
    def stat_text(self) -> str:
        """The STAT line."""
        mode = _FORMATS.get(self.kind, stat.S_IFREG) | self.file_mode & 0o7777
        return f"STAT:{self.kind.value} {self.size} {self.uid} {self.gid} {mode:06o} 1"

    @property
    def time_text(self) -> str:
        """The TSTAMP line."""
        return f"TSTAMP:{self.atime} {self.mtime} {self.ctime}"


def encode_file(name: str, status: FileStatus) -> bytes:
    """Return the packets that announce a file, with the F that ends its attributes."""
    link = encode_text(PacketKind.COMMAND, f"LSTAT:{status.link}") if status.link else b""
    return b"".join(
        (
            encode_text(PacketKind.COMMAND, f"FNAME:{name}"),
            encode_text(PacketKind.COMMAND, status.stat_text),
            encode_text(PacketKind.COMMAND, status.time_text),
            link,
            encode(PacketKind.END),
        )
    )


def parse_stat(text: str) -> FileStatus:
    """Return what a STAT line, with its keyword, says; raise WireError when it is none."""
    found = _STAT.fullmatch(text.removeprefix("STAT:")) if text.startswith("STAT:") else None
    if found is None or found[1] not in tuple(FileKind):
        raise WireError(f'expected "STAT:<type> <size> <uid> <gid> <mode> <links>", found "{text[:80]}"')
    return FileStatus(
        kind=FileKind(found[1]),
        size=int(found[2]),
        uid=int(found[3]),
        gid=int(found[4]),
        file_mode=int(found[5], 8) & 0o7777,
    )


def parse_times(text: str) -> tuple[int, int, int]:
    """Return access, modification and change time of a TSTAMP line, with its keyword."""
    found = _TSTAMP.fullmatch(text.removeprefix("TSTAMP:")) if text.startswith("TSTAMP:") else None
    if found is None:
        raise WireError(f'expected "TSTAMP:<atime> <mtime> <ctime>", found "{text[:80]}"')
    return int(found[1]), int(found[2]), int(found[3])
