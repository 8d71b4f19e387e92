"""
``global/pg_control``: the state of a cluster, read from the file.

The struct is ``ControlFileData`` of ``src/include/catalog/pg_control.h``. The server writes it as it lies in memory, so
the layouts below are those of a 64-bit little-endian host; a file from another kind of host is refused.
"""

from __future__ import annotations

import datetime as dt
import enum
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pgkeep.errors import FormatError
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline

CONTROL_FILE_BYTES = 8192
"""The file's size; the struct comes first, the rest is zeros."""

# Majors that share a PG_CONTROL_VERSION share the layout; CATALOG_VERSION_NO tells them apart.
_CONTROL_VERSIONS = (1201, 1300, 1700, 1800)
CATALOG_VERSION_BY_MAJOR = {
    12: 201909212,
    13: 202007201,
    14: 202107181,
    15: 202209061,
    16: 202307071,
    17: 202406281,
    18: 202506291,
}

_FLOAT_FORMAT = 1234567.0
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_Enum = TypeVar("_Enum", bound=enum.Enum)


class ClusterState(enum.Enum):
    """``DBState``; the text is what ``pg_controldata`` prints."""

    STARTUP = "starting up"
    SHUT_DOWN = "shut down"
    SHUT_DOWN_IN_RECOVERY = "shut down in recovery"
    SHUTTING_DOWN = "shutting down"
    IN_CRASH_RECOVERY = "in crash recovery"
    IN_ARCHIVE_RECOVERY = "in archive recovery"
    IN_PRODUCTION = "in production"

    @property
    def is_clean(self) -> bool:
        """Whether a server that was stopped in order left it so."""
        return self in (ClusterState.SHUT_DOWN, ClusterState.SHUT_DOWN_IN_RECOVERY)


class WalLevel(enum.Enum):
    """``wal_level``."""

    MINIMAL = "minimal"
    REPLICA = "replica"
    LOGICAL = "logical"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFile:
    """
    What ``pg_control`` says.

    Attributes:
        major: PostgreSQL's major version, told by the catalog version.
        update_time: When the file was written last; aware, UTC, whole seconds.
        checkpoint_lsn: Where the latest checkpoint's record starts.
        redo_lsn: Where replay from that checkpoint starts.
        timeline: The checkpoint's timeline.
        previous_timeline: Differs from *timeline* only when the checkpoint's record begins a new timeline.
        checkpoint_time: When that checkpoint was begun; aware, UTC, whole seconds.
        min_recovery_lsn: Replay must pass it before the data is consistent; 0/0 outside archive recovery.
        min_recovery_timeline: Its timeline; None outside archive recovery.
        backup_start_lsn: Redo LSN of the backup that is being recovered from; 0/0 once its end was reached.
        backup_end_lsn: For a backup from a standby, where it ends; 0/0 otherwise.
        backup_end_required: Whether an end-of-backup record must be seen before the server may start.
        blocks_per_segment: Blocks of one file of a relation.
        data_checksum_version: 0 without page checksums.
        max_connections: As of the latest checkpoint or parameter change, like the four settings after it: a server that
            recovers as a hot standby needs at least these.
    """

    system_identifier: SystemIdentifier
    control_version: int
    catalog_version: int
    major: int
    state: ClusterState
    update_time: dt.datetime
    checkpoint_lsn: Lsn
    redo_lsn: Lsn
    timeline: Timeline
    previous_timeline: Timeline
    full_page_writes: bool
    next_xid: int
    oldest_xid: int
    checkpoint_time: dt.datetime
    min_recovery_lsn: Lsn
    min_recovery_timeline: Timeline | None
    backup_start_lsn: Lsn
    backup_end_lsn: Lsn
    backup_end_required: bool
    wal_level: WalLevel
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    track_commit_timestamp: bool
    block_size: int
    blocks_per_segment: int
    wal_block_size: int
    wal_segment_size: int
    data_checksum_version: int

    @property
    def has_data_checksums(self) -> bool:
        """Whether pages carry checksums."""
        return self.data_checksum_version != 0


def parse_control_file(content: bytes | bytearray | memoryview) -> ControlFile:
    """
    Return what the bytes of ``global/pg_control`` say.

    Raises:
        FormatError: They are too few, of a version that is not supported, damaged, or from a host of another kind.
    """
    data = bytes(content)
    if len(data) < CONTROL_FILE_BYTES:
        raise FormatError(f"pg_control has {len(data)} bytes, expected {CONTROL_FILE_BYTES}")
    (control_version,) = struct.unpack_from("<I", data, 8)
    if control_version not in _CONTROL_VERSIONS:
        expected = ", ".join(map(str, _CONTROL_VERSIONS))
        raise FormatError(
            f"pg_control has version {control_version}, supported are {expected}",
            hint="pgkeep supports PostgreSQL 12 to 18 on 64-bit little-endian hosts",
        )
    offsets, crc_offset = _layout(control_version)
    (stored_crc,) = struct.unpack_from("<I", data, crc_offset)
    computed_crc = crc32c(data[:crc_offset])
    if stored_crc != computed_crc:
        raise FormatError(f"pg_control is damaged: its checksum is {stored_crc:08X}, computed {computed_crc:08X}")
    values: dict[str, Any] = {
        name: struct.unpack_from("<" + code, data, offset)[0] for name, (code, offset) in offsets.items()
    }
    if values["float_format"] != _FLOAT_FORMAT:
        raise FormatError("pg_control was written on a host with another floating-point format")
    return _from_values(values)


def _members(control_version: int) -> str:
    """Return the struct's members in their order, as name and struct code; those pgkeep never asks for included."""
    return (
        "system_identifier:Q control_version:I catalog_version:I state:I update_time:q checkpoint_lsn:Q "
        # CheckPoint
        "redo_lsn:Q timeline:I previous_timeline:I full_page_writes:? "
        + ("checkpoint_wal_level:i " if control_version >= 1700 else "")
        + "next_xid:Q next_oid:I next_multi:I next_multi_offset:I oldest_xid:I oldest_xid_database:I oldest_multi:I "
        "oldest_multi_database:I checkpoint_time:q oldest_commit_timestamp_xid:I newest_commit_timestamp_xid:I "
        # The struct inside the struct ends on a multiple of its own alignment, hence the 0q.
        "oldest_active_xid:I :0q "
        "unlogged_lsn:Q min_recovery_lsn:Q min_recovery_timeline:I backup_start_lsn:Q backup_end_lsn:Q "
        "backup_end_required:? "
        "wal_level:i wal_log_hints:? max_connections:i max_worker_processes:i max_wal_senders:i "
        "max_prepared_transactions:i max_locks_per_transaction:i track_commit_timestamp:? "
        "max_align:I float_format:d block_size:I blocks_per_segment:I wal_block_size:I wal_segment_size:I "
        "name_length:I index_keys:I toast_chunk_size:I large_object_block_size:I "
        + ("float4_by_value:? " if control_version < 1300 else "")
        + "float8_by_value:? data_checksum_version:I "
        + ("char_is_signed:? " if control_version >= 1800 else "")
        + "mock_authentication_nonce:32s crc:I"
    )


@cache
def _layout(control_version: int) -> tuple[dict[str, tuple[str, int]], int]:
    """Return code and offset of every member, and the offset of the CRC, placed as the C compiler places them."""
    offsets: dict[str, tuple[str, int]] = {}
    position = 0
    for member in _members(control_version).split():
        name, _, code = member.partition(":")
        alignment = struct.calcsize("<" + code[-1])
        position = (position + alignment - 1) // alignment * alignment
        if name:
            offsets[name] = (code, position)
        position += struct.calcsize("<" + code)
    return offsets, offsets["crc"][1]


def _from_values(values: dict[str, Any]) -> ControlFile:
    majors = {catalog: major for major, catalog in CATALOG_VERSION_BY_MAJOR.items()}
    major = majors.get(values["catalog_version"])
    if major is None:
        raise FormatError(
            f"pg_control has catalog version {values['catalog_version']}, which no release of PostgreSQL 12 to 18 has",
            hint="a beta, a release candidate or a fork; pgkeep does not guess what its files look like",
        )
    min_recovery_timeline = values["min_recovery_timeline"]
    return ControlFile(
        system_identifier=SystemIdentifier(values["system_identifier"]),
        control_version=values["control_version"],
        catalog_version=values["catalog_version"],
        major=major,
        state=_member(ClusterState, values["state"], "state"),
        update_time=_moment(values["update_time"]),
        checkpoint_lsn=Lsn(values["checkpoint_lsn"]),
        redo_lsn=Lsn(values["redo_lsn"]),
        timeline=Timeline(values["timeline"]),
        previous_timeline=Timeline(values["previous_timeline"]),
        full_page_writes=values["full_page_writes"],
        next_xid=values["next_xid"],
        oldest_xid=values["oldest_xid"],
        checkpoint_time=_moment(values["checkpoint_time"]),
        min_recovery_lsn=Lsn(values["min_recovery_lsn"]),
        min_recovery_timeline=Timeline(min_recovery_timeline) if min_recovery_timeline else None,
        backup_start_lsn=Lsn(values["backup_start_lsn"]),
        backup_end_lsn=Lsn(values["backup_end_lsn"]),
        backup_end_required=values["backup_end_required"],
        wal_level=_member(WalLevel, values["wal_level"], "wal_level"),
        wal_log_hints=values["wal_log_hints"],
        max_connections=values["max_connections"],
        max_worker_processes=values["max_worker_processes"],
        max_wal_senders=values["max_wal_senders"],
        max_prepared_transactions=values["max_prepared_transactions"],
        max_locks_per_transaction=values["max_locks_per_transaction"],
        track_commit_timestamp=values["track_commit_timestamp"],
        block_size=values["block_size"],
        blocks_per_segment=values["blocks_per_segment"],
        wal_block_size=values["wal_block_size"],
        wal_segment_size=values["wal_segment_size"],
        data_checksum_version=values["data_checksum_version"],
    )


def _member(kind: type[_Enum], number: int, name: str) -> _Enum:
    members = list(kind)
    if not 0 <= number < len(members):
        raise FormatError(f"pg_control has {name} {number}, expected 0 to {len(members) - 1}")
    return members[number]


def _moment(seconds: int) -> dt.datetime:
    try:
        return _EPOCH + dt.timedelta(seconds=seconds)
    except OverflowError:
        raise FormatError(f"pg_control has a time that no calendar has: {seconds} seconds since 1970") from None
