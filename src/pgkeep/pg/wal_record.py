"""
What a WAL record says, for the few kinds that a restore wants to know of.

A record is a header, headers of its parts, then the parts; the main data is the last of them
(``src/include/access/xlogrecord.h``). The records understood here carry no blocks. Each class says which struct of
PostgreSQL's it is; their layouts are the same in 12 to 18 where nothing else is said.
"""

from __future__ import annotations

import datetime as dt
import struct
from dataclasses import dataclass
from typing import NamedTuple

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal_walk import DBASE_RMGR, RECORD_HEADER, TBLSPC_RMGR, XACT_RMGR, XLOG_RMGR

_POSTGRES_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_UNIX_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

MAX_RESTORE_POINT_BYTES = 63
"""Longest name of a restore point: MAXFNAMELEN without the zero at its end."""

# XLR_BLOCK_ID_*: what stands before each part.
_MAIN_DATA_SHORT, _MAIN_DATA_LONG, _ORIGIN, _TOPLEVEL_XID = 255, 254, 253, 252

# XLOG_XACT_* of src/include/access/xact.h.
_XACT_MASK, _HAS_INFO = 0x70, 0x80
XACT_COMMIT, XACT_ABORT, XACT_COMMIT_PREPARED, XACT_ABORT_PREPARED = 0x00, 0x20, 0x30, 0x40


class TransactionEnd(NamedTuple):
    """
    A commit or an abort: ``xl_xact_commit``, ``xl_xact_abort``.

    A tuple of plain numbers, since a segment has tens of thousands of them.

    Attributes:
        lsn: Where the record begins.
        xid: Of the transaction; of the prepared one when that was committed or aborted.
        microseconds: When, since the beginning of 2000 in UTC; recovery compares a target time with it.
        is_commit: False for an abort.
    """

    lsn: int
    xid: int
    microseconds: int
    is_commit: bool

    @property
    def time(self) -> dt.datetime:
        """When it ended; aware, UTC."""
        return time_of(self.microseconds)


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """``xl_restore_point``; recovery to it stops after the record, which begins at *lsn*."""

    lsn: Lsn
    time: dt.datetime
    name: str


@dataclass(frozen=True, slots=True)
class TablespaceCreated:
    """``xl_tblspc_create_rec``; *path* is empty for a tablespace in place."""

    lsn: Lsn
    oid: int
    path: str


@dataclass(frozen=True, slots=True)
class TablespaceDropped:
    """``xl_tblspc_drop_rec``."""

    lsn: Lsn
    oid: int


@dataclass(frozen=True, slots=True)
class DatabaseCreated:
    """
    ``xl_dbase_create_rec``; since 15 one of two, by the strategy.

    Attributes:
        lsn: Where the record begins.
        oid: Of the new database.
        tablespace_oid: Its default tablespace.
        copied_from: The database whose files replay copies; 0 when WAL has the blocks, ``xl_dbase_create_wal_log_rec``.
    """

    lsn: Lsn
    oid: int
    tablespace_oid: int
    copied_from: int


@dataclass(frozen=True, slots=True)
class DatabaseDropped:
    """``xl_dbase_drop_rec``."""

    lsn: Lsn
    oid: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """
    ``CheckPoint``.

    Attributes:
        lsn: Where the record begins.
        redo: Where replay from it starts.
        timeline: The timeline that it is on.
        previous_timeline: Another one only when the record begins a new timeline.
        time: When it was begun; aware, UTC, whole seconds.
        is_shutdown: Whether the server was shut down, or came out of recovery, with it.
    """

    lsn: Lsn
    redo: Lsn
    timeline: Timeline
    previous_timeline: Timeline
    time: dt.datetime
    is_shutdown: bool


@dataclass(frozen=True, slots=True)
class EndOfRecovery:
    """``xl_end_of_recovery``: a promotion that took no checkpoint."""

    lsn: Lsn
    time: dt.datetime
    timeline: Timeline
    previous_timeline: Timeline


@dataclass(frozen=True, slots=True)
class ParameterChange:
    """``xl_parameter_change``: what a hot standby must have at least as high from here on."""

    lsn: Lsn
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    wal_level: int


@dataclass(frozen=True, slots=True)
class BackupEnded:
    """``XLOG_BACKUP_END``: the backup that started at *start* is consistent from here on."""

    lsn: Lsn
    start: Lsn


Event = (
    TransactionEnd
    | RestorePoint
    | TablespaceCreated
    | TablespaceDropped
    | DatabaseCreated
    | DatabaseDropped
    | Checkpoint
    | EndOfRecovery
    | ParameterChange
    | BackupEnded
)


def time_of(microseconds: int) -> dt.datetime:
    """Return the moment that a TimestampTz means; raise FormatError for one that Python cannot hold."""
    try:
        return _POSTGRES_EPOCH + dt.timedelta(microseconds=microseconds)
    except OverflowError as error:
        raise FormatError(f"WAL carries a time out of range: {microseconds} microseconds since 2000") from error


def microseconds_of(time: dt.datetime) -> int:
    """Return the TimestampTz of *time*, which is aware."""
    return (time - _POSTGRES_EPOCH) // dt.timedelta(microseconds=1)


def read_record(record: bytes, lsn: int, *, major: int) -> Event | None:
    """
    Return what *record*, a whole one, says; None when it is of no interest.

    Args:
        record: From its header on, without page headers; its CRC is right.
        lsn: Where it begins.
        major: PostgreSQL's major version.

    Raises:
        FormatError: It is not what its kind promises.
    """
    _total, xid, _link, info, rmgr, _crc = RECORD_HEADER.unpack_from(record)
    try:
        if rmgr == XACT_RMGR:
            return _transaction_end(main_data(record), lsn, xid, info, major)
        if rmgr == XLOG_RMGR:
            return _xlog_event(main_data(record), Lsn(lsn), info & 0xF0)
        if rmgr == TBLSPC_RMGR:
            return _tablespace_event(main_data(record), Lsn(lsn), info & 0xF0)
        if rmgr == DBASE_RMGR:
            return _database_event(main_data(record), Lsn(lsn), info & 0xF0, major)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise FormatError(
            f"WAL record at {Lsn(lsn)} of resource manager {rmgr} and kind {info:02X} is not as PostgreSQL {major} "
            "writes it"
        ) from error
    return None


def main_data(record: bytes) -> bytes:
    """Return the main data of a record without blocks; empty when it has none."""
    position = RECORD_HEADER.size
    while position < len(record):
        part = record[position]
        if part == _MAIN_DATA_SHORT:
            return _last(record, record[position + 1])
        if part == _MAIN_DATA_LONG:
            (length,) = struct.unpack_from("<I", record, position + 1)
            return _last(record, length)
        if part not in (_ORIGIN, _TOPLEVEL_XID):
            raise struct.error(f"a part {part}")
        position += 3 if part == _ORIGIN else 5
    return b""


def _last(record: bytes, length: int) -> bytes:
    if length > len(record) - RECORD_HEADER.size:
        raise struct.error("longer than the record")
    return record[len(record) - length :]


def _transaction_end(data: bytes, lsn: int, xid: int, info: int, major: int) -> TransactionEnd | None:
    kind = info & _XACT_MASK
    if kind not in (XACT_COMMIT, XACT_ABORT, XACT_COMMIT_PREPARED, XACT_ABORT_PREPARED):
        return None
    (microseconds,) = struct.unpack_from("<q", data)
    if kind in (XACT_COMMIT_PREPARED, XACT_ABORT_PREPARED):
        xid = _prepared_xid(data, info, major) or xid
    return TransactionEnd(lsn, xid, microseconds, kind in (XACT_COMMIT, XACT_COMMIT_PREPARED))


# XACT_XINFO_HAS_*, in the order of the parts, with the bytes of each element of a part that is a counted list; None for
# a part of fixed length.
_DBINFO, _SUBXACTS, _RELATIONS, _INVALIDATIONS, _TWOPHASE, _DROPPED_STATS = 1, 2, 4, 8, 16, 256


def _prepared_xid(data: bytes, info: int, major: int) -> int:
    """Return the xid in ``xl_xact_twophase``; 0 when there is none."""
    if not info & _HAS_INFO:
        return 0
    (flags,) = struct.unpack_from("<I", data, 8)
    position = 12
    if flags & _DBINFO:
        position += 8
    # xl_xact_stats_item, since 15, got a second half of its object's id in 18.
    lists = ((_SUBXACTS, 4), (_RELATIONS, 12), (_DROPPED_STATS, 16 if major >= 18 else 12), (_INVALIDATIONS, 16))
    for flag, element_bytes in lists:
        if flags & flag:
            (count,) = struct.unpack_from("<I", data, position)
            position += 4 + count * element_bytes
    return int(struct.unpack_from("<I", data, position)[0]) if flags & _TWOPHASE else 0


def _xlog_event(data: bytes, lsn: Lsn, kind: int) -> Event | None:
    if kind in (0x00, 0x10):
        redo, timeline, previous = struct.unpack_from("<QII", data)
        # CheckPoint.time, after members that fill the same 48 bytes in every major.
        (seconds,) = struct.unpack_from("<q", data, 64)
        time = time_of(_microseconds_of_unix(seconds))
        return Checkpoint(lsn, Lsn(redo), Timeline(timeline), Timeline(previous), time, is_shutdown=kind == 0x00)
    if kind == 0x50:
        return BackupEnded(lsn, Lsn(*struct.unpack_from("<Q", data)))
    if kind == 0x60:
        return ParameterChange(lsn, *struct.unpack_from("<6i", data))
    if kind == 0x70:
        (microseconds,) = struct.unpack_from("<q", data)
        return RestorePoint(lsn, time_of(microseconds), _text(data[8:]))
    if kind == 0x90:
        microseconds, timeline, previous = struct.unpack_from("<qII", data)
        return EndOfRecovery(lsn, time_of(microseconds), Timeline(timeline), Timeline(previous))
    return None


def _microseconds_of_unix(seconds: int) -> int:
    return (seconds - int((_POSTGRES_EPOCH - _UNIX_EPOCH).total_seconds())) * 1_000_000


def _tablespace_event(data: bytes, lsn: Lsn, kind: int) -> Event | None:
    (oid,) = struct.unpack_from("<I", data)
    if kind == 0x00:
        return TablespaceCreated(lsn, oid, _text(data[4:]))
    return TablespaceDropped(lsn, oid) if kind == 0x10 else None


def _database_event(data: bytes, lsn: Lsn, kind: int, major: int) -> Event | None:
    oid, second = struct.unpack_from("<II", data)
    if kind == 0x00:
        return DatabaseCreated(lsn, oid, second, *struct.unpack_from("<I", data, 8))
    if kind == 0x10 and major >= 15:
        return DatabaseCreated(lsn, oid, second, 0)
    return DatabaseDropped(lsn, oid) if kind in (0x10, 0x20) else None


def _text(data: bytes) -> str:
    """Return a C string; names that are no UTF-8 keep their bytes, as ``os.fsdecode`` would."""
    return data[: data.index(b"\0")].decode("utf-8", "surrogateescape") if b"\0" in data else _unterminated()


def _unterminated() -> str:
    raise struct.error("no end of a string")
