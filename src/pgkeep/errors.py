"""
Every exception that pgkeep raises on purpose, by what the reader should do about it.

::

    PgkeepError                  1  a fault of pgkeep itself, or one with no better class
    ├── UsageError               2  call it differently: an argument is missing, unknown or contradictory
    ├── SettingsError            3  mend the configuration: a name, a value, a file's permission bits
    ├── ServerError              4  look at the PostgreSQL server: unreachable, refuses, lacks a right
    │   └── ToolError            4  one of PostgreSQL's own programs is missing or failed
    ├── ArchiveError             5  look at the WAL archive: a segment is missing, foreign or different
    ├── VaultError               6  look at the vault: absent, busy, full, damaged layout
    │   └── VaultBusy            6  try again when the named holder is done
    ├── BackupUnusable           7  this backup cannot be used: use another one
    ├── RestoreRefused           8  nothing was touched: change the target or say that it may be overwritten
    ├── RecoveryFailed           9  the restored server did not reach what was asked
    ├── BridgeError             10  the conversation with the Bacula plugin broke
    │   ├── WireError           10  a packet is not what the protocol allows here
    │   ├── ChannelClosed       10  the plugin is gone
    │   └── JobCancelled        10  the plugin, or a signal, ended the job
    ├── FormatError             11  bytes or text that are not what they claim to be
    └── CheckFailed             12  a named check or a verification failed; the report says which

The number is the exit status. ``archive-get`` maps everything but "not in the archive" above 125, because PostgreSQL
takes 1–125 for "no such file" and may end recovery early (``RestoreArchivedFile`` in ``xlogarchive.c``).
"""

from __future__ import annotations


class PgkeepError(Exception):
    """
    The base of all deliberate errors.

    Args:
        message: One lower-case line without a full stop, with what was expected and what was found.
        hint: What to do about it, as one line; empty when there is nothing to advise.
    """

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(PgkeepError):
    """The call itself is wrong."""

    exit_status = 2


class SettingsError(PgkeepError):
    """A setting is unknown, out of range, contradictory or not protected."""

    exit_status = 3


class ServerError(PgkeepError):
    """A PostgreSQL server cannot be reached, refuses, or is not in the state that the job needs."""

    exit_status = 4


class ToolError(ServerError):
    """A program of PostgreSQL's is missing, too old, or ended with an error."""


class ArchiveError(PgkeepError):
    """WAL is missing, foreign, or differs from what is archived under the same name."""

    exit_status = 5


class VaultError(PgkeepError):
    """The vault is absent, full, or not laid out as it should be."""

    exit_status = 6


class VaultBusy(VaultError):
    """Somebody else holds the lock that this job needs."""


class BackupUnusable(PgkeepError):
    """A backup is incomplete, damaged, or cannot serve the request."""

    exit_status = 7


class RestoreRefused(PgkeepError):
    """A restore was refused before anything was touched."""

    exit_status = 8


class RecoveryFailed(PgkeepError):
    """The restored server did not start, or did not reach the recovery target."""

    exit_status = 9


class BridgeError(PgkeepError):
    """The bridge and the backend did not understand each other."""

    exit_status = 10


class WireError(BridgeError):
    """A packet is malformed, or not one that the conversation allows at this point."""


class ChannelClosed(BridgeError):
    """The other side closed its end of the conversation, or died."""


class JobCancelled(BridgeError):
    """The job is to end at once: CANCEL, a signal, or the end of the daemon."""


class FormatError(PgkeepError):
    """A file, a message or a text is not what it claims to be."""

    exit_status = 11


class CheckFailed(PgkeepError):
    """At least one named check failed."""

    exit_status = 12


def error_text(error: BaseException) -> str:
    """Return *error* as one line. Of a fault of pgkeep itself: what kind and where; its words may hold a secret."""
    if isinstance(error, PgkeepError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    place, trace = "an unknown place", error.__traceback__
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"internal error: {type(error).__name__} in {place}"
