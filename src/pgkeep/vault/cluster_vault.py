"""What the vault holds of one cluster: backups and WAL, written to and read from."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from pgkeep.errors import BackupUnusable, VaultError
from pgkeep.pg.data_directory import BACKUP_MANIFEST
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.streams.item import EXTENT_BYTES, Buffer
from pgkeep.streams.record import FileEntry, Level, RecordHead
from pgkeep.streams.record_io import parse_file
from pgkeep.vault.file_index import FileIndex
from pgkeep.vault.layout import (
    BACKUPS_DIRECTORY,
    MANIFEST_FILE,
    PIN_FILE,
    WAL_DIRECTORY,
    WRITING_FILE,
    check_backup_id,
    is_backup_id,
)
from pgkeep.vault.lock import BACKUP_LOCK, CLUSTER_LOCK, Lock, is_locked
from pgkeep.vault.sink import VaultSink
from pgkeep.vault.stored_backup import StoredBackup, read_head
from pgkeep.vault.unnamed_file import sync_directory, write_durably
from pgkeep.vault.volume import write_error
from pgkeep.vault.wal_archive import WalArchive


class ClusterIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """
    Which cluster a directory of the vault is for.

    Attributes:
        system_identifier: As text, since JSON's numbers end at 2**53.
        major: PostgreSQL's major version when the cluster was added.
        block_size: Bytes of a page.
        wal_segment_size: Bytes of a WAL segment.
        vault_id: Of the vault that it belongs to; filled in when it is added.
        created: When it was added; ISO-8601, UTC; filled in when it is added.
    """

    system_identifier: str
    major: int
    block_size: int = 8192
    wal_segment_size: int = 16 << 20
    vault_id: str = ""
    created: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A backup whose record cannot be read, and why."""

    backup_id: str
    error: BackupUnusable


class ClusterVault:
    """
    What the vault holds of one cluster. Indexes that it builds are dropped by ``close``.

    Attributes:
        directory: The cluster's directory.
        name: Its name.
        identity: Which cluster it is.
        archive: Its WAL archive.
    """

    def __init__(self, directory: Path, identity: ClusterIdentity) -> None:
        self.directory = directory
        self.name = directory.name
        self.identity = identity
        self.archive = WalArchive(
            directory / WAL_DIRECTORY,
            system_identifier=SystemIdentifier(int(identity.system_identifier)),
            segment_size=identity.wal_segment_size,
        )
        self._indexes: dict[str, FileIndex] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the indexes."""
        while self._indexes:
            self._indexes.popitem()[1].close()

    def lock(self, *, shared: bool, verb: str, wait_seconds: float = 0.0) -> Lock:
        """Lock the cluster: shared for readers, exclusive for deletes; raise VaultBusy when somebody is in the way."""
        return Lock(self.directory, CLUSTER_LOCK, shared=shared, verb=verb, wait_seconds=wait_seconds)

    @contextlib.contextmanager
    def lock_for_backup(self, *, verb: str = "backup", wait_seconds: float = 0.0) -> Iterator[list[Lock]]:
        """
        Hold what a job that makes a backup holds, from before it chooses the base and the id; yield the locks.

        Raises:
            VaultBusy: Another backup is being written, or something is being deleted.
            VaultError: The vault cannot be written.
        """
        locks: list[Lock] = []
        try:
            locks.append(Lock(self.directory, CLUSTER_LOCK, shared=True, verb=verb, wait_seconds=wait_seconds))
            locks.append(Lock(self.directory, BACKUP_LOCK, shared=False, verb=verb, wait_seconds=wait_seconds))
            yield locks
        finally:
            while locks:
                locks.pop().release()

    def begin_backup(
        self,
        backup_id: str,
        *,
        locks: list[Lock] | None = None,
        workers: int = 2,
        compression_level: int = 1,
        same_as: str = "",
        wait_seconds: float = 0.0,
    ) -> VaultSink:
        """
        Begin to write the backup *backup_id*; leave the sink without ``commit`` and there is none.

        Args:
            backup_id: Of the backup to be.
            locks: Those of ``lock_for_backup``; the sink takes them over. None to take them here.
            workers: Threads that read, compress and write.
            compression_level: Of zstd.
            same_as: Id of an earlier backup; a file with the same content as there becomes a reference.
            wait_seconds: How long to wait for the locks.

        Raises:
            VaultBusy: Another backup is being written, or something is being deleted.
            VaultError: There is a backup of that id, or the vault cannot be written.
        """
        directory = self.backup_directory(backup_id)
        with contextlib.ExitStack() as held:
            if locks is None:
                locks = held.enter_context(self.lock_for_backup(wait_seconds=wait_seconds))
            self._make_backup_directory(directory)
            sink = VaultSink(
                directory,
                backup_id,
                locks=locks.copy(),
                workers=workers,
                compression_level=compression_level,
                archive=self.archive,
                file_index=self.file_index,
                same_as=same_as,
            )
            locks.clear()
            return sink

    def backup_directory(self, backup_id: str) -> Path:
        """Return the directory of a backup, which need not exist."""
        return self.directory / BACKUPS_DIRECTORY / check_backup_id(backup_id)

    def backups(self) -> list[RecordHead]:
        """Return the heads of all backups, oldest first; raise BackupUnusable for the first that cannot be read."""
        heads = []
        for found in self.scan_backups():
            if isinstance(found, Unreadable):
                raise found.error
            heads.append(found)
        return heads

    def scan_backups(self, *, newest_first: bool = False) -> Iterator[RecordHead | Unreadable]:
        """
        Yield the head of each backup, oldest first unless *newest_first*, and for a damaged record the reason.

        Each is read when it is asked for.
        """
        for backup_id in self.backup_ids()[:: -1 if newest_first else 1]:
            try:
                yield read_head(self.backup_directory(backup_id))
            except FileNotFoundError:
                continue
            except BackupUnusable as error:
                yield Unreadable(backup_id, error)

    def leftovers(self) -> list[str]:
        """Return the ids of directories that killed jobs and interrupted deletes left, oldest first."""
        found = []
        for backup_id in self.backup_ids():
            directory = self.backup_directory(backup_id)
            # What nobody may look into, scan_backups calls unreadable.
            if not os.access(directory, os.X_OK):
                continue
            # The lock first: a job that commits between the two looks then has its record at the second.
            if not is_locked(directory / WRITING_FILE) and not (directory / MANIFEST_FILE).exists():
                found.append(backup_id)
        return found

    def head(self, backup_id: str) -> RecordHead:
        """Return the head of one backup; raise VaultError when there is no such backup."""
        try:
            return read_head(self.backup_directory(backup_id))
        except FileNotFoundError as error:
            raise self._no_backup(backup_id) from error

    def open_backup(self, backup_id: str) -> StoredBackup:
        """Return one backup, open for reading, its whole record checked; raise VaultError when there is none."""
        directory = self.backup_directory(backup_id)
        if not (directory / MANIFEST_FILE).exists():
            raise self._no_backup(backup_id)
        return StoredBackup(directory)

    def file_index(self, backup_id: str) -> FileIndex:
        """Return the index over the file list of one backup; it is built once."""
        if backup_id not in self._indexes:
            with self.open_backup(backup_id) as backup:
                self._indexes[backup_id] = FileIndex(backup.lines(), name=f"the record of backup {backup_id}")
        return self._indexes[backup_id]

    def newest(self, *, mode: str, levels: frozenset[Level], with_files: bool = False) -> HeldBackup | None:
        """Return the newest backup of *mode* and one of *levels*; *with_files*: one with a file list of its own."""
        for head in self.scan_backups(newest_first=True):
            if not isinstance(head, RecordHead) or head.mode != mode or head.level not in levels:
                continue
            if head.has_files or not with_files:
                return HeldBackup(self, head)
        return None

    def pin(self, backup_id: str, *, reason: str = "") -> None:
        """Keep *backup_id* and what it needs from being expired."""
        self.head(backup_id)
        try:
            write_durably(self.backup_directory(backup_id) / PIN_FILE, f"{reason}\n".encode())
        except OSError as error:
            raise write_error(self.backup_directory(backup_id) / PIN_FILE, error) from error

    def unpin(self, backup_id: str) -> None:
        """Let *backup_id* expire again; nothing happens when it was not pinned."""
        self.head(backup_id)
        path = self.backup_directory(backup_id) / PIN_FILE
        try:
            path.unlink(missing_ok=True)
            sync_directory(path.parent)
        except OSError as error:
            raise write_error(path, error) from error

    def is_pinned(self, backup_id: str) -> bool:
        """Tell whether *backup_id* is pinned."""
        return (self.backup_directory(backup_id) / PIN_FILE).exists()

    def backup_ids(self) -> list[str]:
        """Return the ids of all backups, also of those being written and of leftovers, oldest first."""
        directory = self.directory / BACKUPS_DIRECTORY
        try:
            return sorted(name for name in os.listdir(directory) if is_backup_id(name))
        except OSError as error:
            raise VaultError(f"cannot list {directory}: {error.strerror}") from error

    def _no_backup(self, backup_id: str) -> VaultError:
        return VaultError(f'cluster {self.name} has no backup "{backup_id}"', hint=f'run "pgkeep info {self.name}"')

    def _make_backup_directory(self, directory: Path) -> None:
        try:
            if directory.exists() and not (directory / MANIFEST_FILE).exists():
                # The backup lock is held, so whoever wrote there is dead.
                shutil.rmtree(directory)
            directory.mkdir(mode=0o700)
            sync_directory(directory.parent)
        except FileExistsError as error:
            raise VaultError(f"cluster {self.name} has a backup {directory.name} already") from error
        except OSError as error:
            raise write_error(directory, error) from error


@dataclass(frozen=True, slots=True)
class HeldBackup:
    """An earlier backup that a new one may build on."""

    cluster: ClusterVault
    head: RecordHead

    def file(self, path: str) -> FileEntry | None:
        """Return what its record says of the file at virtual *path*; None when it names no such file."""
        return self.cluster.file_index(self.head.backup_id).get(path)

    def manifest(self) -> Iterator[Buffer]:
        """Yield the ``backup_manifest`` that PostgreSQL made with it; raise BackupUnusable when it cannot be read."""
        with self.cluster.open_backup(self.head.backup_id) as backup:
            # Whoever asks is about to build on the whole of it.
            backup.check_volumes()
            line = next((line for line in backup.lines() if f'/{BACKUP_MANIFEST}"'.encode() in line), None)
            if line is None:
                raise BackupUnusable(f"it has no {BACKUP_MANIFEST}")
            entry = parse_file(line)
            item = backup.item(entry)
            try:
                for offset in range(0, entry.size, EXTENT_BYTES):
                    yield item.read_extent(offset, min(EXTENT_BYTES, entry.size - offset))
            finally:
                item.close()
