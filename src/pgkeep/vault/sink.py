"""
The sink of one backup in the vault.

The order that must hold: content into volumes; volumes on disk; the recipe on disk; the record under a temporary name
on disk; the record under its own name. That last rename is the commit. Before it there is no backup, only a directory
whose ``writing`` file is locked while the job lives, and which ``expire`` removes when it is not.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import msgspec
import zstandard
from blake3 import blake3

from pgkeep.errors import BackupUnusable, VaultError
from pgkeep.streams.extents import ExtentPool, StreamedExtents
from pgkeep.streams.item import (
    DetachedItem,
    Item,
    ItemRole,
    StreamedItem,
    UnchangedItem,
)
from pgkeep.streams.record import FileEntry, RecordHead, RecordTail, VolumeEntry
from pgkeep.streams.record_io import render_file, render_head, render_tail
from pgkeep.streams.scripts import scripts_of
from pgkeep.vault.file_index import FileIndex
from pgkeep.vault.layout import MANIFEST_FILE, RECIPE_FILE, WRITING_FILE, volume_name
from pgkeep.vault.lock import Lock
from pgkeep.vault.member_writer import MemberWriter, entry_with_header
from pgkeep.vault.recipe import render_recipe
from pgkeep.vault.sealed import SealedWriter
from pgkeep.vault.unnamed_file import UnnamedFile, write_all
from pgkeep.vault.volume import VolumeWriter, write_error
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_writer import WalWriter

_LINES_BYTES = 1 << 20


class _FileList:
    """The file list of a record to be, compressed in a file without a name until the head is known."""

    def __init__(self, directory: Path, directory_fd: int, compression_level: int) -> None:
        self._path = directory / MANIFEST_FILE
        self._lock = threading.Lock()
        self._file = UnnamedFile(directory_fd)
        self._compressor = zstandard.ZstdCompressor(level=compression_level, write_checksum=True)
        self._lines = bytearray()
        self.files = 0
        self.bytes = 0
        self.sent_files = 0
        self.sent_bytes = 0
        self.references: set[str] = set()

    def add(self, entry: FileEntry) -> None:
        """Append a file that this backup holds; called from any thread."""
        with self._lock:
            self.sent_files += 1
            self.sent_bytes += entry.size
            self._append(entry)

    def add_reference(self, entry: FileEntry) -> None:
        """Append a file that an earlier backup holds."""
        assert entry.at is not None
        with self._lock:
            self.references.add(entry.at.backup_id)
            self._append(entry)

    def frames(self) -> Iterator[bytes]:
        """Yield the stored bytes of the whole list."""
        self._flush()
        offset = 0
        while piece := os.pread(self._file.fd, _LINES_BYTES, offset):
            offset += len(piece)
            yield piece

    def close(self) -> None:
        """Drop it."""
        self._file.close()

    def _append(self, entry: FileEntry) -> None:
        self._lines += render_file(entry, is_first=not self.files)
        self.files += 1
        self.bytes += entry.size
        if len(self._lines) >= _LINES_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            try:
                write_all(self._file.fd, self._compressor.compress(self._lines))
            except OSError as error:
                raise write_error(self._path, error) from error
            self._lines.clear()


class VaultSink:
    """
    Take the items of one backup; see ``streams/item.py`` for the contract.

    Use it as a context manager: leaving it without ``commit`` removes everything.

    Args:
        directory: The backup's own directory; exists, is empty.
        backup_id: Of the backup to be.
        locks: Held until the sink is left.
        workers: Threads that read, compress and write; there are as many volumes.
        compression_level: Of zstd.
        archive: Where WAL goes.
        file_index: Returns the index over the file list of an earlier backup.
        same_as: Id of an earlier backup; a file with the same content as there becomes a reference. Empty for none.
    """

    def __init__(
        self,
        directory: Path,
        backup_id: str,
        *,
        locks: list[Lock],
        workers: int,
        compression_level: int,
        archive: WalArchive,
        file_index: Callable[[str], FileIndex],
        same_as: str = "",
    ) -> None:
        self.directory = directory
        self.backup_id = backup_id
        self._locks = locks
        self._file_index = file_index
        self._compression_level = compression_level
        self._is_over = False
        self._volumes: list[VolumeWriter] = []
        self._resources = contextlib.ExitStack()
        try:
            self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._resources.callback(os.close, self._directory_fd)
            self._writing_fd = os.open(directory / WRITING_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            self._resources.callback(os.close, self._writing_fd)
            fcntl.flock(self._writing_fd, fcntl.LOCK_EX)
            self._list = _FileList(directory, self._directory_fd, compression_level)
            self._resources.callback(self._list.close)
            for number in range(workers):
                volume = VolumeWriter(directory / volume_name(number), number)
                self._resources.callback(volume.close)
                self._volumes.append(volume)
        except OSError as error:
            self._give_up()
            raise write_error(directory, error) from error
        except BaseException:
            self._give_up()
            raise
        work = MemberWriter(
            self._volumes,
            backup_id=backup_id,
            compression_level=compression_level,
            record=self._list.add,
            held=file_index(same_as).get if same_as else None,
            refer=self._list.add_reference,
        )
        self._pool = ExtentPool(workers, work, name="vault")
        self._wal = WalWriter(archive, workers=workers, compression_level=compression_level)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def accept(self, item: Item) -> None:
        """
        Take over *item*.

        Raises:
            VaultError: It, or one accepted before it, cannot be written.
            BackupUnusable: It is said to be held by a backup that does not hold it.
        """
        header = item.header
        if isinstance(item, UnchangedItem):
            self._list.add_reference(self._held_entry(item))
            return
        if header.barrier:
            self._pool.drain()
        if header.role is ItemRole.WAL:
            self._wal.accept(item)
        elif header.role is ItemRole.BACKUP_WAL:
            self._accept_backup_wal(item)
        elif hasattr(item, "read_extent"):
            self._pool.submit_detached(cast("DetachedItem", item))
        else:
            self._pool.submit_streamed(item)
        if header.barrier:
            self._pool.drain()

    def commit(self, head: RecordHead) -> tuple[RecordHead, RecordTail]:
        """
        Make everything accepted durable, then write the record; return it.

        Raises:
            VaultError: Something cannot be written; there is no backup then.
        """
        if head.backup_id != self.backup_id:
            raise VaultError(f"the record of backup {self.backup_id} names backup {head.backup_id}")
        self._wal.drain()
        self._wal.close()
        self._pool.drain()
        self._pool.close()
        volumes = self._finish_volumes()
        recorded = msgspec.structs.replace(head, references=sorted(self._list.references - {self.backup_id}))
        recipe = render_recipe(recorded, volumes).encode()
        scripts = scripts_of(recorded)
        tail = RecordTail(
            files=self._list.files,
            bytes=self._list.bytes,
            sent_files=self._list.sent_files,
            sent_bytes=self._list.sent_bytes,
            stored_bytes=sum(volume.size for volume in volumes),
            volumes=volumes,
            attachments={
                name: str(blake3(content).hexdigest()) for name, content in {RECIPE_FILE: recipe, **scripts}.items()
            },
        )
        try:
            self._write_beside(RECIPE_FILE, recipe, file_mode=0o644)
            for name, content in scripts.items():
                self._write_beside(name, content, file_mode=0o600)
            self._write_record(recorded, tail)
        except OSError as error:
            raise write_error(self.directory / MANIFEST_FILE, error) from error
        self._is_over = True
        with contextlib.suppress(OSError):
            os.unlink(self.directory / WRITING_FILE)
        self._release()
        return recorded, tail

    def abort(self) -> None:
        """Remove everything, unless there was a commit; may be called again."""
        if not self._is_over:
            self._is_over = True
            self._wal.close()
            self._pool.close()
            self._give_up()

    def _give_up(self) -> None:
        self._is_over = True
        # The record may have its name already, when only the directory could not be synced: it goes first, or a kill
        # in the middle would leave a backup without its volumes.
        with contextlib.suppress(OSError):
            os.unlink(self.directory / MANIFEST_FILE)
            os.fsync(self._directory_fd)
        # What cannot be removed now is a leftover like that of a killed job.
        shutil.rmtree(self.directory, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        self._resources.close()
        while self._locks:
            self._locks.pop().release()

    def _held_entry(self, item: UnchangedItem) -> FileEntry:
        header = item.header
        entry = self._file_index(item.held_by).get(header.path)
        if entry is None or entry.at is None:
            raise BackupUnusable(f"backup {item.held_by} does not hold {header.path}")
        if entry.size != header.size:
            raise BackupUnusable(
                f"backup {item.held_by} holds {header.path} with {entry.size} bytes, expected {header.size}"
            )
        return entry_with_header(entry, header)

    def _accept_backup_wal(self, item: StreamedItem | DetachedItem) -> None:
        """Read *item* once, into the archive and into a volume."""
        extents = StreamedExtents(self._pool, item)
        self._wal.accept(item, tee=extents.write)
        extents.end()

    def _finish_volumes(self) -> list[VolumeEntry]:
        # A volume is on disk when finish returns; they are on one disk mostly, but may wait for it together.
        with concurrent.futures.ThreadPoolExecutor(len(self._volumes)) as threads:
            return list(threads.map(VolumeWriter.finish, self._volumes))

    def _write_beside(self, name: str, content: bytes, *, file_mode: int) -> None:
        with UnnamedFile(self._directory_fd, file_mode=file_mode) as file:
            write_all(file.fd, content)
            os.fsync(file.fd)
            file.publish(name)

    def _write_record(self, head: RecordHead, tail: RecordTail) -> None:
        with UnnamedFile(self._directory_fd) as file:
            with io.FileIO(file.fd, "r+", closefd=False) as raw, io.BufferedWriter(raw, _LINES_BYTES) as buffered:
                writer = SealedWriter(buffered, compression_level=self._compression_level)
                writer.write(render_head(head))
                # A frame of its own, so that a list of backups reads the heads alone.
                writer.end_frame()
                for frames in self._list.frames():
                    writer.append_frames(frames)
                writer.write(render_tail(tail))
                writer.finish()
            os.fsync(file.fd)
            # Names that are linked but not synced may come in any order after a crash: first all the others.
            os.fsync(self._directory_fd)
            file.publish(MANIFEST_FILE)
            os.fsync(self._directory_fd)
