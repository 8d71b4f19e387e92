"""
How a receiver stands: ``state.json`` in its spool, written anew every few seconds, read by ``check`` and ``info``.

It is for telling people, never for deciding what was received: the segments in the spool say that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

import msgspec

from pgkeep.errors import VaultError
from pgkeep.pg.wal import is_partial_name, is_segment_name
from pgkeep.spool.directory import LOCK_FILE

STATE_FILE = "state.json"

VAULT, BACULA = "the vault", "a job of Bacula's"
"""Where WAL gets from a spool."""

_NEW_FILE = ".state.json.new"


class ReceiverState(msgspec.Struct, frozen=True, kw_only=True):
    """
    How far one receiver is. All times are ISO-8601, UTC; LSNs and times are empty where nothing is known.

    Attributes:
        time: When this was written.
        window_seconds: How old unshipped WAL may be.
        ships_to: Where WAL gets from the spool: ``VAULT`` or ``BACULA``.
        is_streaming: Whether the server sends WAL.
        slot: Name of its slot.
        timeline: The timeline that is received; 0 before anything was.
        server_lsn: End of the server's WAL.
        received_lsn: Up to where WAL is durable in the spool.
        shipped_lsn: Up to where it is in the vault; or a job of mode cdp has sent it.
        unreceived_since: Since when the server has WAL that was not received; empty when there is none.
        unshipped_since: Since when the spool has WAL that did not get there; empty when there is none.
        spool_bytes: What the spool takes.
        spool_max_bytes: What it may take.
        slot_is_active: Whether the server says that somebody streams from the slot; None when it is not known.
        slot_wal_status: As the server calls it; empty when it is not known.
        slot_kept_bytes: WAL that the server keeps for the slot; None when it is not known.
        slot_safe_bytes: WAL that may yet be written before the slot loses some; None for no bound, or not known.
        troubles: What is wrong now: a message by the name of each trouble.
    """

    time: str
    window_seconds: float
    is_streaming: bool
    slot: str
    timeline: int = 0
    server_lsn: str = ""
    received_lsn: str = ""
    shipped_lsn: str = ""
    unreceived_since: str = ""
    unshipped_since: str = ""
    spool_bytes: int = 0
    spool_max_bytes: int = 0
    slot_is_active: bool | None = None
    slot_wal_status: str = ""
    slot_kept_bytes: int | None = None
    slot_safe_bytes: int | None = None
    troubles: dict[str, str] = {}
    ships_to: str = VAULT


def write_state(spool: Path, state: ReceiverState) -> None:
    """Write *state* in place of what was there, in one step; raise OSError where the disk has no room."""
    new = spool / _NEW_FILE
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    os.rename(new, spool / STATE_FILE)


def read_state(spool: Path) -> ReceiverState | None:
    """
    Return what the receiver of *spool* wrote last; None when none ever did.

    Raises:
        VaultError: It cannot be read, or is damaged.
    """
    path = spool / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReceiverState)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise VaultError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VaultError(
            f"{path} is damaged: {error}", hint="the receiver writes it anew; it may be removed"
        ) from error


def has_state(spool: Path) -> bool:
    """Tell whether a receiver ever wrote how it stands into *spool*; False where one may not look."""
    with contextlib.suppress(OSError):
        return (spool / STATE_FILE).exists()
    return False


def is_in_use(spool: Path) -> bool:
    """Tell whether a receiver holds *spool* now."""
    try:
        fd = os.open(spool / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def spooled_names(spool: Path) -> list[str]:
    """Return the names of the segments in *spool*, sorted; nothing where there is no spool or it may not be read."""
    with contextlib.suppress(OSError):
        return sorted(name for name in os.listdir(spool) if is_segment_name(name) or is_partial_name(name))
    return []
