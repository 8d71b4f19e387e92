"""The vault and its clusters: made, opened, listed, written to and read from."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from blake3 import blake3

from pgkeep.errors import BackupUnusable, VaultError
from pgkeep.pg.data_directory import BACKUP_MANIFEST
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.streams.item import EXTENT_BYTES, Buffer
from pgkeep.streams.record import FileEntry, Level, RecordHead
from pgkeep.streams.record_io import parse_file
from pgkeep.vault.file_index import FileIndex
from pgkeep.vault.layout import (
    BACKUPS_DIRECTORY,
    CLUSTER_FILE,
    MANIFEST_FILE,
    PIN_FILE,
    VAULT_FILE,
    VAULT_FORMAT,
    WAL_DIRECTORY,
    WRITING_FILE,
    check_backup_id,
    check_cluster_name,
    is_backup_id,
)
from pgkeep.vault.lock import BACKUP_LOCK, CLUSTER_LOCK, Lock, is_locked
from pgkeep.vault.sink import VaultSink
from pgkeep.vault.stored_backup import StoredBackup, read_head
from pgkeep.vault.unnamed_file import UnnamedFile, write_all
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


class Vault:
    """
    An embedded repository of backups and WAL.

    Attributes:
        path: Its directory.
        id: Given when it was made.
    """

    def __init__(self, path: Path, vault_id: str) -> None:
        self.path = path
        self.id = vault_id

    @classmethod
    def create(cls, path: Path) -> Vault:
        """Make a vault in the directory *path*, which is absent or empty; raise VaultError otherwise."""
        path = path.absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                if (path / VAULT_FILE).exists():
                    raise VaultError(f"there is a vault at {path} already")
                raise VaultError(f"cannot make a vault at {path}: the directory is not empty")
            vault_id = str(uuid.uuid4())
            _write_durably(path / VAULT_FILE, _render_vault_file(vault_id))
            _sync_directory(path.parent)
        except OSError as error:
            raise write_error(path / VAULT_FILE, error) from error
        return cls(path, vault_id)

    @classmethod
    def open(cls, path: Path) -> Vault:
        """Return the vault at *path*; raise VaultError when there is none, or one that this version cannot read."""
        path = path.absolute()
        file = path / VAULT_FILE
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            raise VaultError(f"there is no vault at {path}", hint='make one with "pgkeep init"') from error
        except OSError as error:
            raise VaultError(f"cannot read {file}: {error.strerror}") from error
        try:
            fields = tomllib.loads(content.decode())
            vault_format, vault_id = fields["format"], str(uuid.UUID(fields["id"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VaultError(f"{file} is damaged: {error}") from error
        if vault_format != VAULT_FORMAT:
            raise VaultError(f"the vault at {path} has format {vault_format}, this version reads {VAULT_FORMAT}")
        if content != _render_vault_file(vault_id):
            raise VaultError(f"{file} is damaged or was edited: it is not what pgkeep wrote")
        return cls(path, vault_id)

    def clusters(self) -> list[str]:
        """Return the names of the clusters, sorted."""
        try:
            return sorted(entry.name for entry in self.path.iterdir() if (entry / CLUSTER_FILE).exists())
        except OSError as error:
            raise VaultError(f"cannot list {self.path}: {error.strerror}") from error

    def cluster(self, name: str) -> ClusterVault:
        """Return the cluster called *name*; raise VaultError when the vault has none or its identity is damaged."""
        directory = self.path / check_cluster_name(name)
        file = directory / CLUSTER_FILE
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            known = ", ".join(self.clusters()) or "none"
            raise VaultError(
                f'the vault at {self.path} has no cluster "{name}": it has {known}', hint='add one with "pgkeep init"'
            ) from error
        except OSError as error:
            raise VaultError(f"cannot read {file}: {error.strerror}") from error
        identity = _parse_cluster_file(content, file)
        if identity.vault_id != self.id:
            raise VaultError(f"{file} belongs to vault {identity.vault_id}, but {VAULT_FILE} says {self.id}")
        return ClusterVault(directory, identity)

    def rename_cluster(self, name: str, new_name: str) -> str:
        """Call the cluster *name* by *new_name*; return that. Raise VaultError when it is taken or in use."""
        check_cluster_name(new_name)
        cluster = self.cluster(name)
        if (self.path / new_name).exists():
            raise VaultError(f'the vault at {self.path} has a cluster "{new_name}" already')
        with cluster.lock(shared=False, verb="init"):
            try:
                os.rename(cluster.directory, self.path / new_name)
                _sync_directory(self.path)
            except OSError as error:
                raise write_error(cluster.directory, error) from error
        return new_name

    def create_cluster(self, name: str, identity: ClusterIdentity) -> ClusterVault:
        """Add the cluster called *name*; raise VaultError when the vault has one of that name."""
        directory = self.path / check_cluster_name(name)
        if (directory / CLUSTER_FILE).exists():
            raise VaultError(f'the vault at {self.path} has a cluster "{name}" already')
        SystemIdentifier(int(identity.system_identifier))
        created = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        identity = msgspec.structs.replace(identity, vault_id=self.id, created=created)
        try:
            for path in (directory, directory / BACKUPS_DIRECTORY, directory / WAL_DIRECTORY):
                path.mkdir(mode=0o700, exist_ok=True)
            _sync_directory(self.path)
            _write_durably(directory / CLUSTER_FILE, _render_cluster_file(identity))
        except OSError as error:
            raise write_error(directory / CLUSTER_FILE, error) from error
        return ClusterVault(directory, identity)


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
            _write_durably(self.backup_directory(backup_id) / PIN_FILE, f"{reason}\n".encode())
        except OSError as error:
            raise write_error(self.backup_directory(backup_id) / PIN_FILE, error) from error

    def unpin(self, backup_id: str) -> None:
        """Let *backup_id* expire again; nothing happens when it was not pinned."""
        self.head(backup_id)
        path = self.backup_directory(backup_id) / PIN_FILE
        try:
            path.unlink(missing_ok=True)
            _sync_directory(path.parent)
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
            _sync_directory(directory.parent)
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


def _render_vault_file(vault_id: str) -> bytes:
    return (
        f'# A vault of pgkeep. Each backup in it has a RESTORE.md.\nformat = {VAULT_FORMAT}\nid = "{vault_id}"\n'
    ).encode()


def _render_cluster_file(identity: ClusterIdentity) -> bytes:
    line = msgspec.json.encode(identity) + b"\n"
    return line + f"{blake3(line).hexdigest()}\n".encode()


def _parse_cluster_file(content: bytes, file: Path) -> ClusterIdentity:
    line, newline, seal = content.partition(b"\n")
    expected = f"{blake3(line + newline).hexdigest()}\n".encode()
    if not newline or seal != expected:
        shown = seal[:16].decode("ascii", "backslashreplace").rstrip() or "nothing"
        raise VaultError(f"{file} is damaged: its BLAKE3 is {expected[:16].decode()}, it says {shown}")
    try:
        return msgspec.json.decode(line, type=ClusterIdentity)
    except msgspec.DecodeError as error:
        raise VaultError(f"{file} is damaged: {error}") from error


def _write_durably(path: Path, content: bytes) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.closing(UnnamedFile(directory)) as file:
            write_all(file.fd, content)
            os.fsync(file.fd)
            file.publish_over(path.name)
        os.fsync(directory)
    finally:
        os.close(directory)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
