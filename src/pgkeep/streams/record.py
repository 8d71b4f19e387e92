"""
The record of a backup: what it is, what it holds, what it needs.

A record is one JSON document laid out in lines, so that a program with a JSON parser reads it whole and pgkeep reads
it line by line whatever the number of files::

    {"head": {...},
    "files": [
    {"path": "@postgresql/pitr/pgdata/PG_VERSION", "size": 3, ...},
    {"path": "@postgresql/pitr/pgdata/base/1/112", "size": 8192, ...}
    ],
    "tail": {"files": 2, "bytes": 8195, ...}}

The head is written first and the tail last; a record without its tail is not a record.
"""

from __future__ import annotations

import datetime as dt
import enum
from typing import Any

import msgspec

from pgkeep.pg.replication_state import ReplicationState

RECORD_FORMAT = 1


class Level(enum.Enum):
    """A backup's level; Bacula's three letters."""

    FULL = "F"
    DIFFERENTIAL = "D"
    INCREMENTAL = "I"

    @property
    def word(self) -> str:
        """The level as people write it: ``Full``, ``Differential``, ``Incremental``."""
        return {"F": "Full", "D": "Differential", "I": "Incremental"}[self.value]


_ID_TIME = "%Y%m%dT%H%M%S"
_ID_TIME_LENGTH = len("20261120T204800")


def new_backup_id(begin: dt.datetime, level: Level, *, newest: str = "") -> str:
    """
    Return the backup id of a backup that begins at *begin* (aware): ``20261120T204800Z-F``.

    Ids sort in the order in which backups were made, whatever the clock says: *newest* is the last id there is, empty
    for none, and where its second is not in the past the new one has the second after it. The level is no part of that
    order, so no two backups share a second.
    """
    moment = begin.astimezone(dt.UTC)
    if newest:
        taken = dt.datetime.strptime(newest[:_ID_TIME_LENGTH], _ID_TIME).replace(tzinfo=dt.UTC)
        moment = max(moment, taken + dt.timedelta(seconds=1))
    return f"{moment:{_ID_TIME}}Z-{level.value}"


class WalRange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    WAL that a backup carries or needs: from *start* up to but not including *stop*, gapless.

    Attributes:
        timeline: The timeline at *stop*; *history* says what came before.
        start: LSN as text.
        stop: LSN as text.
        segment_size: Bytes.
        first_segment: Name of the first segment; empty when the range is empty.
        last_segment: Name of the last segment.
        last_record: LSN of the record to which the first one in the segment after *stop* links, where *stop* is a
            segment's end; empty otherwise, and where it is not known.
    """

    timeline: int
    start: str
    stop: str
    segment_size: int
    first_segment: str = ""
    last_segment: str = ""
    last_record: str = ""


class Tablespace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A tablespace outside the data directory, or in place.

    Attributes:
        oid: Its OID.
        name: Its name; empty when it could not be asked for.
        location: Absolute path on the server; empty for an in-place tablespace.
        size_bytes: Bytes of its files in this backup.
    """

    oid: int
    name: str = ""
    location: str = ""
    size_bytes: int = 0


class Database(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A database as it stood at the backup; *size_bytes* is ``pg_database_size``, 0 when it could not be asked for."""

    name: str
    oid: int = 0
    size_bytes: int = 0
    path: str = ""
    """Virtual path of its dump, for the dump modes."""


class DamagedPages(msgspec.Struct, frozen=True, kw_only=True):
    """Pages of one file whose checksum was wrong when the backup read them."""

    path: str
    blocks: list[int]
    """Block numbers within the relation fork, as the server counts them; at most 1,000 are listed."""
    count: int


class RecordHead(msgspec.Struct, kw_only=True):
    """
    What is known of a backup without its list of files. Times are ISO-8601 in UTC, LSNs are text.

    Attributes:
        backup_id: Unique within the cluster.
        base: ``backup_id`` of the backup that this one builds on; empty for a Full.
        files_from: ``backup_id`` of the record whose file list is restored with this backup: itself when it has one.
        start_lsn: Where the base backup starts, for one that holds files; empty otherwise.
        stop_lsn: Where the base backup, or the WAL that it carries, ends.
        checkpoint_time: Server time of the checkpoint that the base backup started with, for the two-condition rule.
        references: ``backup_id`` of each other backup whose volumes hold content that the file list names; sorted.
        wal: The WAL that it carries, from the end of the job before; None for the dump modes.
        wal_gaps: LSN ranges that were known to be missing when the backup was made.
        settings: Server settings that matter for recovery, as ``SHOW`` prints them.
        backup_label: Content of ``backup_label``, as the server gave it.
        tablespace_map: Content of ``tablespace_map``; empty when there is none.
        history: Content of the timeline's history file; empty on timeline 1.
        libraries: Versions of what collation depends on: ``libc``, ``icu``.
        data_checksums: Whether the cluster has page checksums.
        pages_checked: Pages whose checksum was computed.
        pages_after_start: Pages whose checksum was wrong but whose LSN is past the start LSN: replay mends them.
        damaged: Pages that are truly bad.
        replication: What the server was to other servers; None where that was not asked for.
        warnings: What the job warned of, in order.
        details: What only the mode reads.
    """

    backup_id: str
    cluster: str
    mode: str
    level: Level
    format: int = RECORD_FORMAT
    base: str = ""
    files_from: str = ""
    pgkeep_version: str = ""
    server_version: int = 0
    server_version_text: str = ""
    system_identifier: str = ""
    timeline: int = 0
    begin_time: str = ""
    end_time: str = ""
    start_time: str = ""
    stop_time: str = ""
    start_lsn: str = ""
    stop_lsn: str = ""
    checkpoint_lsn: str = ""
    checkpoint_time: str = ""
    references: list[str] = msgspec.field(default_factory=list)
    wal: WalRange | None = None
    wal_gaps: list[WalRange] = msgspec.field(default_factory=list)
    host: str = ""
    data_directory: str = ""
    transport: str = ""
    from_standby: bool = False
    data_checksums: bool = False
    pages_checked: int = 0
    pages_after_start: int = 0
    damaged: list[DamagedPages] = msgspec.field(default_factory=list)
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    tablespaces: list[Tablespace] = msgspec.field(default_factory=list)
    databases: list[Database] = msgspec.field(default_factory=list)
    backup_label: str = ""
    tablespace_map: str = ""
    history: str = ""
    libraries: dict[str, str] = msgspec.field(default_factory=dict)
    replication: ReplicationState | None = None
    warnings: list[str] = msgspec.field(default_factory=list)
    details: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def is_damaged(self) -> bool:
        """Whether a truly bad page was found."""
        return bool(self.damaged)

    @property
    def has_files(self) -> bool:
        """Whether this record has a file list of its own."""
        return self.files_from == self.backup_id


class StoredAt(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    Where the vault keeps a file's content.

    Attributes:
        backup_id: The backup whose volume it is in.
        volume: Number of the volume.
        offset: Offset of the member's first frame (its tar header), bytes.
        header_length: Compressed length of the header frames, bytes.
        frames: Compressed length of each extent's frame, in order, bytes.
        padding_length: Compressed length of the frame that fills the last tar block, bytes; 0 when none is needed.
        stored_digest: BLAKE3 of the member's stored bytes, first 32 hexadecimal digits: content frames, padding frame,
            and last the header frames, since a stream's size is known only at its end.
    """

    backup_id: str
    volume: int
    offset: int
    header_length: int
    frames: list[int]
    padding_length: int
    stored_digest: str


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One line of the file list.

    Attributes:
        path: Virtual path.
        kind: ``file``, ``directory`` or ``symlink``.
        size: Bytes of content.
        mtime_ns: Nanoseconds since the epoch.
        file_mode: Permission bits.
        digest: BLAKE3 of the content, 64 hexadecimal digits; empty for what is not a file.
        link: Target of a symbolic link.
        at: Where the vault keeps it; None outside the vault.
    """

    path: str
    kind: str = "file"
    size: int = 0
    mtime_ns: int = 0
    file_mode: int = 0o600
    owner: str = ""
    group: str = ""
    digest: str = ""
    link: str = ""
    at: StoredAt | None = None


class VolumeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """
    One volume of the vault.

    Attributes:
        name: Its file name.
        size: Bytes.
        digest: BLAKE3, 64 hexadecimal digits, of its members' stored digests (16 bytes each, by offset) and of the
            bytes after the last member.
    """

    name: str
    size: int
    digest: str


class RecordTail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What is known only at the end.

    Attributes:
        files: Number of lines in the file list.
        bytes: Sum of their sizes.
        sent_files: How many of them this backup itself holds.
        sent_bytes: Sum of the sizes of those.
        stored_bytes: Bytes that they take in the vault.
        volumes: This backup's volumes, in order.
        attachments: File name to BLAKE3, for other files of the backup's directory.
    """

    files: int = 0
    bytes: int = 0
    sent_files: int = 0
    sent_bytes: int = 0
    stored_bytes: int = 0
    volumes: list[VolumeEntry] = msgspec.field(default_factory=list)
    attachments: dict[str, str] = msgspec.field(default_factory=dict)
