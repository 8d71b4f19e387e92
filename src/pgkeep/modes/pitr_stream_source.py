"""Mode pitr, stream transport: BASE_BACKUP of the replication protocol, its files as items while they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from pgkeep.errors import FormatError, ServerError
from pgkeep.modes.pitr import PitrPlan
from pgkeep.modes.pitr_source import PitrSource, iso
from pgkeep.pg import data_directory as names
from pgkeep.pg.backup_label import parse_backup_label
from pgkeep.pg.control_file import parse_control_file
from pgkeep.pg.lsn import WalPosition
from pgkeep.server import queries
from pgkeep.server.base_backup import BaseBackup, BaseBackupEnd, BaseBackupStart, ReceivedFile
from pgkeep.server.base_backup_command import BaseBackupOptions
from pgkeep.server.checksum_notices import DamagedFile
from pgkeep.server.connection import Server
from pgkeep.streams.item import Buffer, BytesItem, Item, ItemHeader, ItemKind, ItemRole
from pgkeep.streams.record import DamagedPages, RecordHead

NANOSECONDS = 1_000_000_000
MAX_LABEL_BYTES = 16 << 20

# What the record needs of the backup itself passes through memory.
_KEPT = frozenset({names.BACKUP_LABEL, names.TABLESPACE_MAP, names.CONTROL_FILE})


@dataclass(frozen=True, slots=True)
class _ReceivedItem:
    """A file as it arrives, as an item."""

    header: ItemHeader
    chunks: Callable[[], Iterator[Buffer]]
    fill: Callable[[memoryview], int]


class StreamSource(PitrSource):
    """A base backup over the replication protocol."""

    def __init__(self, plan: PitrPlan, server: Server) -> None:
        super().__init__(plan, server)
        self._replication = server.replication()
        self._kept: dict[str, bytes] = {}
        self._files = 0
        self._bytes = 0

    def close(self) -> None:
        """End the conversation; a backup that is under way ends with it."""
        self._replication.close()
        super().close()

    def items(self) -> Iterator[Item]:
        """Yield the files as they arrive, then the WAL."""
        plan, request = self._plan, self._plan.request
        before_start = queries.server_time(self._server)
        options = BaseBackupOptions(
            label=plan.label,
            fast=plan.options.start_fast,
            verify_checksums=plan.options.verify_checksum,
            estimate_size=False,
        )
        self._note_oldest_transaction()
        backup = BaseBackup(self._replication, options)
        start = self._start(backup)
        request.say(f"backup start label='{plan.label}' LSN={start.start_lsn}")
        queries.check_stream_is_complete(self._server)
        self._note_tablespaces({one.oid: one.location for one in start.tablespaces if one.oid})
        self._head = msgspec.structs.replace(
            self._head,
            start_time=iso(before_start),
            checkpoint_time=iso(min(before_start, queries.last_checkpoint(self._server).time)),
        )
        for file in backup.files():
            yield from self._items_of(file)
        self._note_end(start, backup.end)
        request.say(f"base backup received: {self._files:,} files, {self._bytes / (1 << 20):,.1f} MiB")
        request.say(f"backup stop LSN={backup.end.stop_lsn}")
        yield from self._configuration_items()
        yield from self._wal.items(
            start=WalPosition(start.timeline, start.start_lsn),
            stop=WalPosition(backup.end.timeline, backup.end.stop_lsn),
        )

    def finish(self) -> RecordHead:
        """Return the record's head."""
        return self._finish()

    def _start(self, backup: BaseBackup) -> BaseBackupStart:
        return backup.start()

    def _role_of(self, file: ReceivedFile) -> ItemRole:  # noqa: ARG002 - for those who build on the manifest
        return ItemRole.DATA

    def _items_of(self, file: ReceivedFile) -> Iterator[Item]:
        if names.is_excluded(file.path) and file.path not in {*_KEPT, names.BACKUP_MANIFEST}:
            return
        if file.tablespace.oid in self._plan.left_out and file.tablespace.oid:
            return
        if file.kind is ItemKind.SYMLINK and file.path.startswith(f"{names.TABLESPACES}/"):
            # A link to a tablespace; the restore makes its own.
            return
        header = ItemHeader(
            path=self._virtual_path(file.path),
            kind=file.kind,
            size=file.size if file.kind is ItemKind.FILE else 0,
            mtime_ns=file.mtime * NANOSECONDS,
            file_mode=file.file_mode,
            link=file.link,
            role=self._role_of(file),
        )
        self._files += 1
        self._bytes += max(0, file.size)
        if file.path in _KEPT:
            content = b"".join(bytes(chunk) for chunk in file.chunks())
            self._kept[file.path] = content
            yield BytesItem(header, content)
        elif file.kind is ItemKind.FILE:
            yield _ReceivedItem(header, file.chunks, file.fill)
        else:
            yield BytesItem(header, b"")

    def _virtual_path(self, path: str) -> str:
        root = self._plan.files_root
        if path in (names.BACKUP_LABEL, names.TABLESPACE_MAP):
            return f"{root}/{path}"
        prefix = f"{names.TABLESPACES}/"
        inside = path.removeprefix(prefix)
        if inside != path and inside:
            return f"{root}/tblspc/{inside}"
        return f"{root}/pgdata/{path}"

    def _note_end(self, start: BaseBackupStart, end: BaseBackupEnd) -> None:
        if end.timeline != self._plan.facts.identity.timeline:
            raise ServerError(
                f"the server went from timeline {self._plan.facts.identity.timeline} to {end.timeline} "
                "while it was backed up",
                hint="run the backup again",
            )
        try:
            label_text = self._kept[names.BACKUP_LABEL].decode("utf-8", "surrogateescape")
            label = parse_backup_label(label_text)
            control = parse_control_file(self._kept[names.CONTROL_FILE])
        except (KeyError, FormatError) as error:
            raise ServerError(f"the server sent a base backup that cannot be used: {error}") from error
        self._head = msgspec.structs.replace(
            self._head,
            timeline=int(end.timeline),
            start_lsn=str(start.start_lsn),
            stop_lsn=str(end.stop_lsn),
            checkpoint_lsn=str(label.checkpoint_lsn),
            stop_time=iso(queries.server_time(self._server)),
            backup_label=label_text,
            tablespace_map=self._kept.get(names.TABLESPACE_MAP, b"").decode("utf-8", "surrogateescape"),
        )
        self._note_later_tablespaces()
        self._note_next_transaction()
        self._note_completeness()
        blocks_per_segment = control.blocks_per_segment
        self._note_damage([self._damaged_pages(file, blocks_per_segment) for file in end.damaged])

    def _damaged_pages(self, file: DamagedFile, blocks_per_segment: int) -> DamagedPages:
        # The server counts blocks within the file, a record within the relation's fork.
        relation = names.page_file(file.path)
        first = relation.first_block(blocks_per_segment=blocks_per_segment) if relation is not None else 0
        blocks = [first + block for block in file.blocks]
        return DamagedPages(path=self._virtual_path(file.path), blocks=blocks, count=file.count)
