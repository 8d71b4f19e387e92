"""
BASE_BACKUP: a copy of all files of a running cluster through the replication protocol, taken apart into files.

From 15 on one COPY carries all archives, with messages that begin them; before, each tablespace is a COPY of its own.
Tablespaces come first and the data directory last, ``backup_label`` at its beginning and ``pg_control`` at its end.

Source:
    PostgreSQL manual, "Streaming Replication Protocol", BASE_BACKUP; ``src/backend/backup/basebackup.c``,
    ``basebackup_copy.c``.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from psycopg.pq import ExecStatus

from pgkeep.errors import FormatError, ServerError
from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.data_directory import BACKUP_MANIFEST, TABLESPACES
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server.base_backup_command import BaseBackupOptions, base_backup_command
from pgkeep.server.checksum_notices import ChecksumNotices, DamagedFile
from pgkeep.server.copy_answer import CopyAnswer, ask
from pgkeep.server.refusals import DATA_CORRUPTED, Refused
from pgkeep.server.replication import AnswerRow, Replication
from pgkeep.streams.item import UNKNOWN_SIZE, Buffer, ItemKind
from pgkeep.streams.tar import TarMember, UstarReader

_NEW_ARCHIVE, _DATA, _MANIFEST, _PROGRESS = b"ndmp"

_UNIT_BYTES = 32 << 10
"""What a server reads of a file, and sends, at once: ``SINK_BUFFER_LENGTH``; up to 14 ``TAR_SEND_SIZE``."""


@dataclass(frozen=True, slots=True)
class BackupTablespace:
    """
    A tablespace in a base backup.

    Attributes:
        oid: Its OID; 0 for the data directory itself.
        location: Absolute path on the server; empty for the data directory and for an in-place tablespace.
        size_bytes: The server's estimate; None when it was not asked for.
    """

    oid: int
    location: str
    size_bytes: int | None

    @property
    def prefix(self) -> str:
        """What stands before its paths: ``pg_tblspc/16385/``, or nothing."""
        return f"{TABLESPACES}/{self.oid}/" if self.oid else ""


@dataclass(frozen=True, slots=True)
class BaseBackupStart:
    """
    What the server says first.

    Attributes:
        start_lsn: Where replay starts.
        timeline: The timeline at the start.
        tablespaces: In the order in which they come, the data directory last.
    """

    start_lsn: Lsn
    timeline: Timeline
    tablespaces: tuple[BackupTablespace, ...]

    @property
    def size_bytes(self) -> int | None:
        """The estimate of all that is to come; None when it was not asked for."""
        sizes = [tablespace.size_bytes for tablespace in self.tablespaces]
        return None if None in sizes else sum(size or 0 for size in sizes)


@dataclass(frozen=True, slots=True)
class BaseBackupEnd:
    """
    What the server says last.

    Attributes:
        stop_lsn: Replay must reach this; exclusive.
        timeline: The timeline at the stop.
        damaged: Files with pages whose checksum was wrong; empty when all were right or none were checked.
        notices: What else the server remarked, in order.
    """

    stop_lsn: Lsn
    timeline: Timeline
    damaged: tuple[DamagedFile, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """
    A file, directory or symbolic link as it arrives.

    Attributes:
        path: Relative to the data directory; a tablespace's files are below ``pg_tblspc/<oid>/``.
        tablespace: Which archive it is from.
        kind: What it is.
        size: Bytes of content; ``UNKNOWN_SIZE`` for ``backup_manifest`` alone.
        mtime: Seconds since the epoch.
        file_mode: Permission bits.
        link: Target of a symbolic link; empty otherwise.
        chunks: Yields the content as it arrives, mostly 32 KiB at a time; to be called once, before the next file is
            asked for. Each is valid until the next is asked for. What is not read is passed over.
        fill: Puts what comes next at the beginning of a buffer, between two chunks; returns how many bytes, 0 when the
            next chunk must be asked for.
    """

    path: str
    tablespace: BackupTablespace
    kind: ItemKind
    size: int
    mtime: int
    file_mode: int
    link: str
    chunks: Callable[[], Iterator[memoryview]] = field(repr=False)
    fill: Callable[[memoryview], int] = field(repr=False)


class _Mark(enum.Enum):
    MANIFEST = enum.auto()
    """What follows is the manifest, to the end of the backup."""


_Event = TarMember | memoryview | BackupTablespace | _Mark


class _Content:
    """The content of a file, out of the events that follow it; what *copy_into* takes of it makes no event."""

    __slots__ = ("_copy_into", "_events", "_left")

    def __init__(self, size: int, events: Iterator[_Event], copy_into: Callable[[memoryview], int]) -> None:
        self._left = size
        self._events = events
        self._copy_into = copy_into

    def chunks(self) -> Iterator[memoryview]:
        """Yield the content."""
        while self._left:
            # The manifest has no size: it goes to the end of all events.
            data = next(self._events, None)
            if data is None:
                return
            assert isinstance(data, memoryview)
            self._left -= len(data)
            yield data

    def fill(self, buffer: memoryview) -> int:
        """Put what comes next at the beginning of *buffer*."""
        taken = self._copy_into(buffer)
        self._left -= taken
        return taken


class BaseBackup:
    """
    One base backup: ``start``, then ``files`` to its end, then ``end``.

    The conversation can be used again after the end, and after a refusal of ``start``; not when it is left in between.

    Args:
        replication: A conversation.
        options: How.
    """

    def __init__(self, replication: Replication, options: BaseBackupOptions) -> None:
        self._replication = replication
        self._options = options
        self._capabilities = Capabilities(replication.version)
        self._notices = ChecksumNotices()
        self._answer: CopyAnswer
        self._reader = UstarReader()
        self._data_prefix = bytes((_DATA,)) if self._capabilities.has_base_backup_messages else b""
        self._start: BaseBackupStart | None = None
        self._end: BaseBackupEnd | None = None
        self.received_bytes = 0
        """Bytes of archives that have arrived, for progress."""
        replication.on_notice(self._notices.take)

    def start(self, *, incremental_from: Iterable[Buffer] | None = None) -> BaseBackupStart:
        """
        Ask for the backup; return when the server has made its checkpoint.

        Args:
            incremental_from: Content of the ``backup_manifest`` of the backup to build on; PostgreSQL 17 and later.

        Raises:
            ServerError: The server refuses.
        """
        if incremental_from is not None:
            self._upload_manifest(incremental_from)
        command = base_backup_command(self._options, self._capabilities, is_incremental=incremental_from is not None)
        self._answer = ask(self._replication, command, notice=self._notices.take)
        position, tablespaces = self._answer.rows(), self._answer.rows()
        self._start = BaseBackupStart(*_position(position), tuple(_tablespace(row) for row in tablespaces))
        return self._start

    def files(self) -> Iterator[ReceivedFile]:
        """
        Yield everything that the server sends, as it arrives; called once, after ``start``.

        Raises:
            ServerError: The server gave up, or the line was cut.
            FormatError: What arrives is not an archive.
        """
        assert self._start is not None, "the backup was not started"
        if self._capabilities.has_base_backup_messages:
            events = self._messages(self._start)
        else:
            events = self._copies(self._start)
        tablespace = self._start.tablespaces[-1]
        for event in events:
            if isinstance(event, TarMember):
                yield self._received(event, tablespace, events)
            elif isinstance(event, BackupTablespace):
                tablespace = event
            elif event is _Mark.MANIFEST:
                manifest = TarMember(BACKUP_MANIFEST, size=UNKNOWN_SIZE)
                yield self._received(manifest, self._start.tablespaces[-1], events)

    @property
    def end(self) -> BaseBackupEnd:
        """What the server said last; only after ``files`` has come to its end."""
        assert self._end is not None, "the backup has not ended"
        return self._end

    def _upload_manifest(self, manifest: Iterable[Buffer]) -> None:
        if not self._capabilities.has_incremental_backup:
            raise ServerError(
                f"PostgreSQL {self._capabilities.major} at {self._replication.where} "
                "makes no incremental backups, 17 and later do"
            )
        self._replication.send("UPLOAD_MANIFEST")
        self._replication.expect(ExecStatus.COPY_IN, doing="UPLOAD_MANIFEST")
        self._replication.copy_in(manifest)
        self._replication.drain()

    def _messages(self, start: BaseBackupStart) -> Iterator[_Event]:
        """Yield what the single COPY of 15 and later carries."""
        self._answer.begin_copy()
        by_oid = {tablespace.oid: tablespace for tablespace in start.tablespaces}
        reader = self._reader
        in_manifest = False
        for message in self._answer.copy_data():
            kind = message[0]
            if kind == _DATA and not in_manifest:
                data = message[1:]
                self.received_bytes += len(data)
                if reader.take_content(len(data)):
                    yield data
                else:
                    yield from reader.feed(data)
            elif kind == _DATA:
                yield message[1:]
            elif kind == _NEW_ARCHIVE:
                reader.finish()
                yield by_oid[_archive_oid(message)]
            elif kind == _MANIFEST:
                reader.finish()
                in_manifest = True
                yield _Mark.MANIFEST
            elif kind != _PROGRESS:
                raise FormatError(f"BASE_BACKUP sent a message of the unknown type {bytes(message[:1])!r}")
        # The server's own reason for an early end comes before our complaint about it.
        self._end = self._read_end()
        reader.finish()

    def _copies(self, start: BaseBackupStart) -> Iterator[_Event]:
        """Yield what the COPY of each tablespace, and that of the manifest, carries up to 14."""
        reader = self._reader
        for tablespace in start.tablespaces:
            self._answer.begin_copy()
            reader.finish()
            yield tablespace
            for data in self._answer.copy_data():
                self.received_bytes += len(data)
                if reader.take_content(len(data)):
                    yield data
                else:
                    yield from reader.feed(data)
        if self._options.manifest and self._capabilities.has_manifest:
            self._answer.begin_copy()
            reader.finish()
            yield _Mark.MANIFEST
            yield from self._answer.copy_data()
        self._end = self._read_end()
        reader.finish()

    def _received(self, member: TarMember, tablespace: BackupTablespace, events: Iterator[_Event]) -> ReceivedFile:
        content = _Content(member.size, events, self._copy_into)
        return ReceivedFile(
            # The server calls directories whose content it leaves out, such as pg_wal, by "./" and their name.
            path=tablespace.prefix + member.name.removeprefix("./"),
            tablespace=tablespace,
            kind=member.kind,
            size=member.size,
            mtime=member.mtime,
            file_mode=member.file_mode,
            link=member.link,
            chunks=content.chunks,
            fill=content.fill,
        )

    def _copy_into(self, buffer: memoryview) -> int:
        """Take content of the member at hand past the reader, into *buffer*; the end of a file has another form."""
        whole = min(self._reader.content_left, len(buffer))
        if whole < _UNIT_BYTES:
            return 0
        taken = self._answer.copy_into(buffer[:whole], prefix=self._data_prefix, unit=_UNIT_BYTES)
        self._reader.take_content(taken)
        self.received_bytes += taken
        return taken

    def _read_end(self) -> BaseBackupEnd:
        rows: list[AnswerRow] = []
        try:
            for part in self._answer.last_rows():
                rows += part
        except Refused as error:
            # With this the server says at the very end that pages were damaged; all data and the position came before.
            if error.state != DATA_CORRUPTED or not rows:
                raise
        if len(rows) != 1:
            raise ServerError(f"PostgreSQL at {self._replication.where} ended BASE_BACKUP without a stop position")
        assert self._start is not None
        locations = {tablespace.location: tablespace.oid for tablespace in self._start.tablespaces}
        return BaseBackupEnd(*_position(rows), self._notices.damaged(locations), self._notices.others())


def _position(rows: list[AnswerRow]) -> tuple[Lsn, Timeline]:
    lsn, timeline = rows[0][:2]
    return Lsn.parse(bytes(lsn or b"").decode()), Timeline(int(bytes(timeline or b"0")))


def _tablespace(row: AnswerRow) -> BackupTablespace:
    oid, location, size = row
    path = bytes(location or b"").decode("utf-8", "surrogateescape")
    return BackupTablespace(
        oid=int(bytes(oid)) if oid else 0,
        # An in-place tablespace has a path relative to the data directory.
        location=path if path.startswith("/") else "",
        size_bytes=int(bytes(size)) * 1024 if size else None,
    )


def _archive_oid(message: memoryview) -> int:
    """Return the OID in the name of an archive, ``16385.tar``; 0 for ``base.tar``."""
    name = bytes(message[1:]).partition(b"\0")[0]
    oid, _, suffix = name.partition(b".")
    if suffix != b"tar" or not (oid == b"base" or oid.isdigit()):
        raise FormatError(f"BASE_BACKUP sent an archive of the unknown name {name!r}")
    return 0 if oid == b"base" else int(oid)
