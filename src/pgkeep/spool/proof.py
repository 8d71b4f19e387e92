"""
Until when all commits are in a spool: ``complete.json``, written by the receiver after what it speaks of is durable.

The time of a file says when something was received. While the receiver catches up, that is long after the server wrote
it, and commits in between are missing. The server says of all it sends how far its WAL reached at which time: when that
is received, every commit before that time is.

Who reads WAL from the spool reads this first: what comes into the spool in between makes it no less true.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pgkeep.pg.lsn import Timeline

PROOF_FILE = "complete.json"

_NEW_FILE = ".complete.json.new"


class Proof(msgspec.Struct, frozen=True):
    """
    What is known.

    Attributes:
        timeline: Of the WAL.
        time_ns: By the server's clock, in nanoseconds of the epoch: every commit before that was received.
    """

    timeline: int
    time_ns: int

    def time_of(self, timeline: Timeline) -> int | None:
        """Return the time for the end of what is there of *timeline*; None when it is another one's."""
        return self.time_ns if self.timeline == timeline else None


def write_proof(spool: Path, proof: Proof) -> None:
    """Write *proof* in place of what was there, in one step; raise OSError where the disk has no room."""
    new = spool / _NEW_FILE
    # Bacula's jobs may run as another user.
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.encode(proof))
    os.rename(new, spool / PROOF_FILE)


def read_proof(spool: Path) -> Proof | None:
    """Return what is known; None where nothing is."""
    try:
        return msgspec.json.decode((spool / PROOF_FILE).read_bytes(), type=Proof)
    except (OSError, msgspec.DecodeError):
        return None
