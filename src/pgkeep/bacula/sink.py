"""
The sink of one backup in Bacula's stream.

Items become files of the job under their virtual path, with a slash before it; the last file is the record. What is
unchanged is not sent: where the job is accurate, the catalog is told that it is still there.

The order that must hold: content, then the record, then what describes the backup to the Director. The copy of the
record gets its name only when the daemon says that the job is through, see ``state.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, cast

import msgspec
from blake3 import blake3

from pgkeep.bacula.channel import Channel
from pgkeep.bacula.file_list import FileList
from pgkeep.bacula.owners import group_number, user_number
from pgkeep.bacula.read_ahead import Piece, ReadAhead
from pgkeep.errors import BackupUnusable, FormatError, ToolError
from pgkeep.streams.item import (
    CHUNK_BYTES,
    UNKNOWN_SIZE,
    Buffer,
    DetachedItem,
    Item,
    ItemHeader,
    ItemKind,
    ItemRole,
    StreamedItem,
    UnchangedItem,
)
from pgkeep.streams.record import FileEntry, RecordHead, RecordTail
from pgkeep.streams.record_io import render_head, render_tail
from pgkeep.streams.scripts import scripts_of
from pgkeep.wire.file_item import FileKind, FileStatus, encode_file
from pgkeep.wire.packet import PacketKind, encode, encode_text

NANOSECONDS = 1_000_000_000
MANIFEST = "_manifest.json"

SEEN_BYTES = 32 << 10
"""Names of unchanged files are sent when this much has come together."""

_END = encode(PacketKind.END)
_DATA = encode_text(PacketKind.COMMAND, "DATA")
_KINDS = {
    ItemKind.FILE: FileKind.REGULAR,
    ItemKind.DIRECTORY: FileKind.DIRECTORY,
    ItemKind.SYMLINK: FileKind.SYMLINK,
}


class HeldEntries(Protocol):
    """What says of a file what an earlier record said."""

    def entry(self, path: str) -> FileEntry | None:
        """Return the entry of virtual *path*."""
        ...


class Marks:
    """
    What the catalog is told of files that are not sent but still belong to the backup.

    Args:
        channel: The conversation.
        is_on: Whether the job is accurate and the bridge knows the commands; nothing is said otherwise.

    Attributes:
        between_files: Called before a command that must not stand among the data of a file.
    """

    def __init__(self, channel: Channel, *, is_on: bool) -> None:
        self._channel = channel
        self._is_on = is_on
        self._names = bytearray()
        self.between_files: Callable[[], None] = lambda: None

    def seen(self, name: str) -> None:
        """Say that the file *name* of the catalog still stands."""
        if not self._is_on:
            return
        self._names += name.encode("utf-8", "surrogateescape") + b"\0"
        if len(self._names) >= SEEN_BYTES:
            self.flush()

    def keep(self, prefix: str) -> None:
        """Say that every file of the catalog whose name begins with *prefix* still stands."""
        if self._is_on:
            self._channel.command(f"KEEP:{prefix}")

    def flush(self) -> None:
        """Send the names that have come together."""
        if self._names:
            self.between_files()
            packets = encode_text(PacketKind.COMMAND, "SEEN") + encode(PacketKind.DATA, bytes(self._names)) + _END
            self._channel.send_packets(packets)
            self._names.clear()


class BaculaSink:
    """
    Take the items of one backup; see ``streams/item.py`` for the contract.

    Args:
        channel: The conversation.
        root: Virtual path of the mode's directory.
        files: Takes the file list.
        workers: Threads that read ahead.
        marks: Takes what is not sent.
        held: Says of each unchanged file what the base's record says.
        goes_on: Whether an item whose program fails ends only that item, and the backup at its end.
        keep_manifest: Takes the content of PostgreSQL's manifest, which a later job builds on.
        recorded: Called with the complete head and tail, once the record has been sent.
        details: What is known of the job, for the record.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        root: str,
        files: FileList,
        workers: int,
        marks: Marks,
        held: HeldEntries | None,
        goes_on: bool,
        keep_manifest: Callable[[Buffer], None],
        recorded: Callable[[RecordHead, RecordTail], None],
        details: dict[str, str | int],
    ) -> None:
        self._channel = channel
        self._root = root
        self._files = files
        self._marks = marks
        marks.between_files = self.end_open_file
        self._held = held
        self._goes_on = goes_on
        self._keep_manifest = keep_manifest
        self._recorded = recorded
        self._details = details
        self._ahead = ReadAhead(workers, slots=channel.ring, wait=channel.await_release)
        self._digest = blake3()
        self._is_in_file = False
        self.sent_files = 0
        self.sent_bytes = 0
        self.failures: list[ToolError] = []
        self.sizes: dict[str, int] = {}

    def __enter__(self) -> BaculaSink:
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.close()

    def accept(self, item: Item) -> None:
        """
        Take over *item*.

        Raises:
            BridgeError: The conversation broke.
            BackupUnusable: It is said to be held by a backup that does not hold it.
        """
        if "\n" in item.header.path:
            # Commands end with their line; PostgreSQL itself has no such names.
            self._channel.warn(f"not in the backup: the name {item.header.path!r} has more than one line")
            if hasattr(item, "read_extent"):
                cast("DetachedItem", item).close()
        elif isinstance(item, UnchangedItem):
            self._accept_unchanged(item)
        elif hasattr(item, "read_extent") and not item.header.barrier:
            for piece in self._ahead.submit(cast("DetachedItem", item)):
                self._send_piece(piece)
        else:
            self._drain()
            self._send_streamed(cast("StreamedItem", item))

    def commit(self, head: RecordHead) -> tuple[RecordHead, RecordTail]:
        """
        Send the record, as the last file; return it.

        Raises:
            ToolError: A program failed on the way, and the backup went on without what it should have given.
        """
        self._drain()
        self._marks.flush()
        if self.failures:
            first = self.failures[0]
            more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
            raise ToolError(f"the backup is not complete: {first.message}{more}", hint=first.hint)
        tail = RecordTail(
            files=self._files.files,
            bytes=self._files.bytes,
            sent_files=self.sent_files,
            sent_bytes=self.sent_bytes,
        )
        head = msgspec.structs.replace(head, details={**head.details, "root": self._root, "bacula": self._details})
        self._send_directory(self._root)
        self._send_scripts(head)
        self._send_record(head, tail)
        self._recorded(head, tail)
        return head, tail

    def end_open_file(self) -> None:
        """Send the rest of a file that was sent in part, so that a command may follow."""
        while self._is_in_file:
            for piece in self._ahead.take():
                self._send_piece(piece)

    def _drain(self) -> None:
        for piece in self._ahead.drain():
            self._send_piece(piece)

    def _accept_unchanged(self, item: UnchangedItem) -> None:
        header = item.header
        entry = self._held.entry(header.path) if self._held is not None else None
        if entry is None or entry.size != header.size:
            raise BackupUnusable(f"backup {item.held_by} does not hold {header.path} with {header.size} bytes")
        self._files.add(
            msgspec.structs.replace(
                entry,
                mtime_ns=header.mtime_ns,
                file_mode=header.file_mode,
                owner=header.owner,
                group=header.group,
            )
        )
        self._marks.seen(f"/{header.path}")

    def _send_piece(self, piece: Piece) -> None:
        header, content = piece.header, piece.content
        if piece.offset == 0:
            self._announce(header)
        if not piece.digest:
            # Before the bridge owns the memory.
            self._digest.update(content)
        is_last = piece.is_last
        self._is_in_file = not is_last
        if piece.slot >= 0:
            self._channel.send_slot(piece.slot, len(content))
        elif content:
            self._channel.send_data(content)
        if piece.digest:
            self._end_file(header, header.size, piece.digest)
        elif is_last:
            digest, self._digest = self._digest, blake3()
            self._end_file(header, header.size, digest.hexdigest())

    def _send_streamed(self, item: StreamedItem) -> None:
        header = item.header
        self._announce(header)
        if header.kind is not ItemKind.FILE:
            self._end_file(header, 0, "")
            return
        digest, total = blake3(), 0
        try:
            for chunk in item.chunks():
                total += len(chunk)
                if header.size != UNKNOWN_SIZE and total > header.size:
                    raise FormatError(f"{header.path} was announced with {header.size} bytes, but more came")
                self._channel.send_data(chunk)
                digest.update(chunk)
                if header.role is ItemRole.MANIFEST:
                    self._keep_manifest(chunk)
        except ToolError as error:
            if not self._goes_on:
                raise
            self._note_failure(error)
            return
        if header.size not in (UNKNOWN_SIZE, total):
            raise FormatError(f"{header.path} was announced with {header.size} bytes, but {total} came")
        self._end_file(header, total, digest.hexdigest())

    def _announce(self, header: ItemHeader) -> None:
        kind = _KINDS[header.kind]
        if kind is FileKind.REGULAR and header.size == 0:
            kind = FileKind.EMPTY
        mtime = header.mtime_ns // NANOSECONDS
        status = FileStatus(
            kind=kind,
            size=header.size if header.kind is ItemKind.FILE else 0,
            uid=user_number(header.owner),
            gid=group_number(header.group),
            file_mode=header.file_mode,
            atime=mtime,
            mtime=mtime,
            ctime=mtime,
            link=header.link,
        )
        # No answer comes, and mostly a small content follows: all that in one write.
        has_content = header.kind is ItemKind.FILE and header.size != 0
        self._channel.send_packets(encode_file(catalog_name(header), status) + (_DATA if has_content else b""))

    def _end_file(self, header: ItemHeader, size: int, digest: str) -> None:
        self._channel.send_packets(_END)
        self.sent_files += 1
        self.sent_bytes += size
        if header.role is ItemRole.WAL:
            return
        if header.size == UNKNOWN_SIZE:
            # Only its end tells a stream's size; there are few of them.
            self.sizes[header.path] = size
        self._files.add(
            FileEntry(
                path=header.path,
                kind=header.kind.value,
                size=size,
                mtime_ns=header.mtime_ns,
                file_mode=header.file_mode,
                owner=header.owner,
                group=header.group,
                digest=digest,
                link=header.link,
            )
        )

    def _note_failure(self, error: ToolError) -> None:
        self._channel.send_packets(_END)
        self.failures.append(error)
        hint = f"\n{error.hint}" if error.hint else ""
        self._channel.message(PacketKind.JOB_ERROR, f"{error.message}{hint}")

    def _send_directory(self, path: str) -> None:
        header = ItemHeader(path, ItemKind.DIRECTORY, mtime_ns=time.time_ns(), file_mode=0o700)
        self._announce(header)
        self._channel.send_packets(_END)

    def _send_record(self, head: RecordHead, tail: RecordTail) -> None:
        start, end = render_head(head), render_tail(tail)
        size = len(start) + len(end) + sum(len(piece) for piece in self._files.lines())
        header = ItemHeader(f"{self._root}/{head.backup_id}/{MANIFEST}", size=size, mtime_ns=time.time_ns())
        self._announce(header)
        for offset in range(0, len(start), CHUNK_BYTES):
            self._channel.send_data(memoryview(start)[offset : offset + CHUNK_BYTES])
        for piece in self._files.lines():
            self._channel.send_data(piece)
        self._channel.send_data(end)
        self._channel.send_packets(_END)

    def _send_scripts(self, head: RecordHead) -> None:
        for name, content in scripts_of(head).items():
            path = f"{self._root}/{head.backup_id}/{name}"
            self._announce(ItemHeader(path, size=len(content), mtime_ns=time.time_ns()))
            for offset in range(0, len(content), CHUNK_BYTES):
                self._channel.send_data(memoryview(content)[offset : offset + CHUNK_BYTES])
            self._channel.send_packets(_END)


def catalog_name(header: ItemHeader) -> str:
    """Return the name that the item has in Bacula's catalog: with a slash before, and after a directory."""
    return f"/{header.path}/" if header.kind is ItemKind.DIRECTORY else f"/{header.path}"
