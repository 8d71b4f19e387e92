"""
Reading one backup of the vault: its record, and its items with every byte checked.

The record's seal is checked from end to end before anything is taken from it. Content is checked against two digests as
it passes: that of the stored bytes and that of the content; damage raises BackupUnusable in the reader.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import zstandard
from blake3 import blake3

from pgkeep.errors import BackupUnusable, FormatError, VaultError
from pgkeep.streams.item import EXTENT_BYTES, ItemHeader, ItemKind
from pgkeep.streams.record import FileEntry, RecordHead, RecordTail, StoredAt
from pgkeep.streams.record_io import RecordReader, parse_head
from pgkeep.vault.layout import MANIFEST_FILE, volume_name
from pgkeep.vault.sealed import read_first_frame, read_sealed
from pgkeep.vault.volume import END_FRAME, STORED_DIGEST_BYTES

Selection = Callable[[FileEntry], bool]

MAX_HEAD_BYTES = 64 << 20

_local = threading.local()


def read_head(directory: Path) -> RecordHead:
    """
    Return the head of the record in *directory*, checked by its frame's checksum and no more.

    Raises:
        BackupUnusable: It is damaged, or of another format.
        FileNotFoundError: There is no record, so there is no backup.
    """
    try:
        with (directory / MANIFEST_FILE).open("rb") as file:
            head = parse_head(read_first_frame(file, name=MANIFEST_FILE, max_size=MAX_HEAD_BYTES))
    except FormatError as error:
        raise _unusable(directory.name, error.message) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(directory.name, f"cannot read {MANIFEST_FILE}: {error.strerror}") from error
    if head.backup_id != directory.name:
        raise _unusable(directory.name, f"its record is that of backup {head.backup_id}")
    return head


class StoredBackup:
    """
    One backup, open for reading; use it as a context manager.

    Args:
        directory: Its directory; those of the backups that it refers to are beside it.

    Attributes:
        head: The record's head.
        tail: The record's tail.

    Raises:
        BackupUnusable: Its record is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.backup_id = directory.name
        self._volumes: dict[tuple[str, int], int] = {}
        try:
            self._file = (directory / MANIFEST_FILE).open("rb")
        except OSError as error:
            raise _unusable(self.backup_id, f"cannot read {MANIFEST_FILE}: {error.strerror}") from error
        try:
            self.head, self.tail = self._read_ends()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; no item may be read afterwards."""
        self._file.close()
        while self._volumes:
            os.close(self._volumes.popitem()[1])

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the file list, undecoded."""
        try:
            yield from RecordReader(read_sealed(self._file, name=MANIFEST_FILE), name=MANIFEST_FILE).lines()
        except FormatError as error:
            raise _unusable(self.backup_id, error.message) from error

    def files(self, select: Selection | None = None) -> Iterator[FileEntry]:
        """Yield the entries of the file list, in the order of the record; only those that *select* accepts."""
        try:
            for entry in RecordReader(read_sealed(self._file, name=MANIFEST_FILE), name=MANIFEST_FILE).files():
                if select is None or select(entry):
                    yield entry
        except FormatError as error:
            raise _unusable(self.backup_id, error.message) from error

    def items(self, select: Selection | None = None) -> Iterator[StoredItem]:
        """
        Yield the items of the file list, detached; read them while this backup is open.

        Before the first one, the volumes of this backup are looked at: present, of their size, whole at their end.

        Raises:
            BackupUnusable: A volume or an item is damaged; the message names backup, file and volume.
        """
        self.check_volumes()
        for entry in self.files(select):
            item = self.item(entry)
            if entry.size == 0:
                # Nobody reads the content of what has none, so its stored bytes are checked here.
                item.check_without_content()
            yield item

    def item(self, entry: FileEntry) -> StoredItem:
        """Return the item of *entry*, one of this backup's."""
        if entry.at is None:
            raise _unusable(self.backup_id, f"its record does not say where {entry.path} is stored")
        if len(entry.at.frames) != -(-entry.size // EXTENT_BYTES):
            raise _unusable(
                self.backup_id,
                f"its record says that {entry.path} has {entry.size} bytes in {len(entry.at.frames)} frames",
            )
        return StoredItem(entry, entry.at, self._volume(entry.at))

    def check_volumes(self) -> None:
        """Raise BackupUnusable unless each of this backup's own volumes has its size and its end."""
        for number, volume in enumerate(self.tail.volumes):
            at = StoredAt(
                backup_id=self.backup_id,
                volume=number,
                offset=0,
                header_length=0,
                frames=[],
                padding_length=0,
                stored_digest="",
            )
            fd = self._volume(at)
            size = os.fstat(fd).st_size
            if size != volume.size:
                raise _unusable(self.backup_id, f"{volume.name} has {size} bytes, expected {volume.size}")
            end = _read_volume(
                fd,
                len(END_FRAME),
                volume.size - len(END_FRAME),
                where=f"{volume.name} of backup {self.backup_id}",
                damaged=partial(_unusable, self.backup_id),
            )
            if end != END_FRAME:
                raise _unusable(self.backup_id, f"{volume.name} does not end as a volume does")

    def _read_ends(self) -> tuple[RecordHead, RecordTail]:
        """Read the whole record once, so that its seal is known to hold before anything is taken from it."""
        try:
            reader = RecordReader(read_sealed(self._file, name=MANIFEST_FILE), name=MANIFEST_FILE)
            for _ in reader.lines():
                pass
            head, tail = reader.head, reader.tail
        except FormatError as error:
            raise _unusable(self.backup_id, error.message) from error
        if head.backup_id != self.backup_id:
            raise _unusable(self.backup_id, f"its record is that of backup {head.backup_id}")
        return head, tail

    def _volume(self, at: StoredAt) -> int:
        key = (at.backup_id, at.volume)
        fd = self._volumes.get(key)
        if fd is None:
            path = self.directory.parent / at.backup_id / volume_name(at.volume)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _unusable(
                    self.backup_id, f"cannot open {volume_name(at.volume)} of backup {at.backup_id}: {error.strerror}"
                ) from error
            self._volumes[key] = fd
        return fd


class StoredItem:
    """
    One file of a backup: a detached item that checks itself.

    All extents have to be read for the check to be complete. Reading one extent may wait for the extents before it:
    read them in order, or in several threads that take them in order, as ``ExtentPool`` does.
    """

    __slots__ = (
        "_at",
        "_content",
        "_failure",
        "_fd",
        "_header_bytes",
        "_next",
        "_offsets",
        "_stored",
        "_turn",
        "entry",
        "header",
    )

    def __init__(self, entry: FileEntry, at: StoredAt, fd: int) -> None:
        self.entry = entry
        self.header = ItemHeader(
            path=entry.path,
            kind=ItemKind(entry.kind),
            size=entry.size,
            mtime_ns=entry.mtime_ns,
            file_mode=entry.file_mode,
            owner=entry.owner,
            group=entry.group,
            link=entry.link,
        )
        self._at = at
        self._fd = fd
        self._next = 0
        self._failure: BaseException | None = None
        self._header_bytes = b""
        if len(at.frames) > 1:
            self._turn = threading.Condition()
            self._offsets = list(itertools.accumulate(at.frames, initial=at.offset + at.header_length))
            self._content = blake3()
            self._stored = blake3()

    @property
    def at(self) -> StoredAt:
        """Where it is stored."""
        return self._at

    def read_extent(self, offset: int, length: int) -> bytearray:
        """Return the extent at *offset*, checked as ``read_into`` does."""
        content = bytearray(length)
        self.read_into(offset, memoryview(content))
        return content

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* with the extent at *offset*, checked as far as one can be; the last one completes the check."""
        if len(self._at.frames) == 1:
            self._read_whole(buffer)
            return
        index = offset // EXTENT_BYTES
        try:
            stored = self._read_frame(index, buffer)
        except BaseException as error:
            self._fail(error)
            raise
        self._check_in_order(index, stored, buffer)

    def close(self) -> None:
        """Nothing of its own is open."""

    def check_without_content(self) -> None:
        """Raise BackupUnusable unless the stored bytes of an item without content are whole."""
        at = self._at
        stored = self._pread(at.header_length + at.padding_length, at.offset)
        self._check_stored(_stored_digest(stored[at.header_length :], stored[: at.header_length]))
        if self.header.kind is ItemKind.FILE:
            self._check_content(blake3(b"").hexdigest())

    def damaged(self, what: str) -> BackupUnusable:
        """Return the error that says *what* is wrong with this item, and where."""
        at = self._at
        return BackupUnusable(
            f"backup {at.backup_id} is damaged: {self.entry.path} in {volume_name(at.volume)} at offset {at.offset}: "
            f"{what}",
            hint='run "pgkeep verify" to see what else is damaged, and use a backup that does not need this file',
        )

    def _read_whole(self, buffer: memoryview) -> None:
        at = self._at
        stored = self._pread(at.header_length + at.frames[0] + at.padding_length, at.offset)
        header, rest = stored[: at.header_length], stored[at.header_length :]
        self._check_stored(_stored_digest(rest, header))
        self._decompress(rest[: at.frames[0]], buffer)
        self._check_content(blake3(buffer).hexdigest())

    def _read_frame(self, index: int, buffer: memoryview) -> memoryview:
        at = self._at
        size = at.frames[index]
        # The padding travels with the last frame, the header with the first.
        is_last = index == len(at.frames) - 1
        stored = self._pread(size + (at.padding_length if is_last else 0), self._offsets[index])
        if index == 0:
            self._header_bytes = bytes(self._pread(at.header_length, at.offset))
        self._decompress(stored[:size], buffer)
        return stored

    def _check_in_order(self, index: int, stored: memoryview, content: memoryview) -> None:
        with self._turn:
            while self._next != index and self._failure is None:
                self._turn.wait()
            if self._failure is not None:
                # Whoever is heard first tells the cause: want of memory, say, is no damage.
                raise self._failure
        try:
            self._stored.update(stored)
            self._content.update(content)
            if index == len(self._at.frames) - 1:
                self._stored.update(self._header_bytes)
                self._check_stored(self._stored.digest(length=STORED_DIGEST_BYTES))
                self._check_content(self._content.hexdigest())
        except BaseException as error:
            self._fail(error)
            raise
        with self._turn:
            self._next += 1
            self._turn.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._turn:
            self._failure = self._failure or error
            self._turn.notify_all()

    def _check_stored(self, digest: bytes) -> None:
        if digest.hex() != self._at.stored_digest:
            raise self.damaged(
                f"its stored bytes have the digest {digest.hex()}, the record says {self._at.stored_digest}"
            )

    def _check_content(self, digest: str) -> None:
        if digest != self.entry.digest:
            raise self.damaged(f"its content has the digest {digest}, the record says {self.entry.digest}")

    def _pread(self, length: int, offset: int) -> memoryview:
        where = f"{volume_name(self._at.volume)} of backup {self._at.backup_id}"
        stored = _read_volume(self._fd, length, offset, where=where, damaged=self.damaged)
        if len(stored) != length:
            raise self.damaged(f"expected {length} stored bytes at {offset}, found {len(stored)}")
        return memoryview(stored)

    def _decompress(self, frame: memoryview, buffer: memoryview) -> None:
        try:
            # The size in the frame is looked at first: damage must not overrun the buffer, nor leave it half filled.
            size = zstandard.frame_content_size(frame)
            if size != len(buffer):
                raise self.damaged(f"a frame holds {size} bytes, expected {len(buffer)}")
            # With all of the frame at hand and room for all of its content, zstd works without memory of its own.
            reader = _decompressor().stream_reader(frame, read_across_frames=False)
            filled = reader.readinto(buffer)
            if filled != size or reader.read(1):
                raise self.damaged(f"a frame gave {filled} bytes, expected {size}")
        except zstandard.ZstdError as error:
            raise self.damaged(f"zstd: {error}") from error


def _read_volume(fd: int, length: int, offset: int, *, where: str, damaged: Callable[[str], BackupUnusable]) -> bytes:
    """Return what the volume *where* has at *offset*: a bad sector is damage, a disk that is away is not."""
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        if error.errno == errno.EIO:
            raise damaged(f"cannot read {where}: {error.strerror}") from error
        raise VaultError(
            f"cannot read {where}: {error.strerror}",
            hint="see that the vault's file system is there and answers, and try again: this is no damage",
        ) from error


def _stored_digest(rest: memoryview, header: memoryview) -> bytes:
    digest = blake3(rest)
    digest.update(header)
    return bytes(digest.digest(length=STORED_DIGEST_BYTES))


def _decompressor() -> zstandard.ZstdDecompressor:
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = zstandard.ZstdDecompressor()
        _local.decompressor = decompressor
    return decompressor


def _unusable(backup_id: str, what: str) -> BackupUnusable:
    return BackupUnusable(f"backup {backup_id} cannot be used: {what}")
