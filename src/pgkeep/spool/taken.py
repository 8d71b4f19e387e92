"""
Up to where jobs of Bacula's have taken WAL from a spool: ``taken.json``, which a job writes when the daemon has all.

It tells people that the jobs run. That a job succeeded, and that its WAL may leave the spool, is known to the next one
only, and by other means.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition

TAKEN_FILE = "taken.json"

_NEW_FILE = ".taken.json.new"


class _Taken(msgspec.Struct, frozen=True):
    """A position, as text."""

    timeline: int
    lsn: str


def write_taken(spool: Path, position: WalPosition) -> None:
    """Write down that the daemon has what is before *position*; raise OSError where that cannot be written."""
    new = spool / _NEW_FILE
    # The receiver, which reads it, may be another user than Bacula's daemon.
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(_Taken(int(position.timeline), str(position.lsn))) + b"\n")
    os.rename(new, spool / TAKEN_FILE)


def read_taken(spool: Path) -> WalPosition | None:
    """Return up to where a job has sent WAL; None where none ever has, or nobody can read what it wrote."""
    try:
        taken = msgspec.json.decode((spool / TAKEN_FILE).read_bytes(), type=_Taken)
        return WalPosition(Timeline(taken.timeline), Lsn.parse(taken.lsn))
    except (OSError, msgspec.DecodeError, FormatError, ValueError):
        return None
