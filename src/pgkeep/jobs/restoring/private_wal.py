"""
The WAL of one restore, in a vault of its own beside the data directory.

So the restored server gets its WAL from the same program, by the same rules, as from any vault: a segment that the
recovery needs and that is not there stops it, and is never taken for the end of the WAL.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from blake3 import blake3

from pgkeep.datadir.owner import Owner
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import ArchiveError, BackupUnusable, FormatError, RestoreRefused
from pgkeep.jobs.restoring.old_wal import OldWal
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.pg.wal import is_backup_label_name, is_history_name, is_partial_name, is_segment_name
from pgkeep.streams.item import Buffer, StreamedItem
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterIdentity
from pgkeep.vault.layout import WAL_DIRECTORY
from pgkeep.vault.vault import Vault
from pgkeep.vault.wal_archive import WalArchive

CLUSTER = "restored"
SUFFIX = ".pgkeep-wal"
MARK_FILE = "wal-of-a-restore"
_COMPRESSION_LEVEL = -7
"""Of zstd: this WAL is read once, soon."""


class PrivateWal:
    """
    A vault that holds nothing but the WAL of one restore.

    Args:
        directory: Where; absolute, absent or empty or left by another restore.
        base: The backup that the WAL belongs to.
        segment_size: Bytes.
        owner: Who runs the restored server; None for whoever runs pgkeep.
        proved_ns: By the name of a WAL file, a time before which every commit is in that or before it, in nanoseconds
            of the epoch, where that is known better than by the time with which the file comes.
    """

    def __init__(
        self,
        directory: Path,
        base: RecordHead,
        *,
        segment_size: int,
        owner: Owner | None,
        proved_ns: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.directory = directory
        self.cluster = CLUSTER
        self.segments = 0
        self.has_old_wal = False
        self._checked_by = ""
        self._base = base
        self._segment_size = segment_size
        self._owner = owner
        self._proved_ns = proved_ns

    @property
    def vault_path(self) -> Path:
        """The vault itself, which must begin as an empty directory."""
        return self.directory / "vault"

    @property
    def archive(self) -> WalArchive:
        """The archive in it; nothing is looked at before it is asked for a file."""
        return WalArchive(
            self.vault_path / CLUSTER / WAL_DIRECTORY,
            system_identifier=SystemIdentifier(int(self._base.system_identifier)),
            segment_size=self._segment_size,
        )

    def owned_by(self, owner: Owner | None) -> PrivateWal:
        """Return the same for *owner*."""
        return PrivateWal(
            self.directory, self._base, segment_size=self._segment_size, owner=owner, proved_ns=self._proved_ns
        )

    def check(self) -> None:
        """Raise RestoreRefused when something else stands in its place."""
        if not os.path.lexists(self.directory) or self._is_leftover:
            return
        if not self.directory.is_dir() or any(self.directory.iterdir()):
            raise RestoreRefused(
                f"the directory for the restored WAL is not empty: {self.directory}",
                hint="name another one in wal_restore_dir, or remove it",
            )

    @property
    def is_begun(self) -> bool:
        """Whether the vault is there."""
        return self._is_leftover and self.archive.root.parent.is_dir()

    def begin(self, *, goes_on: bool = False) -> None:
        """Make the vault; what another restore left in its place goes first, what this one left if it *goes_on* not."""
        if goes_on and self.is_begun:
            self.has_old_wal = True
            return
        if self._is_leftover:
            self.remove()
        with write_errors(f"make {self.directory}"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The mark comes first: whatever kills this restore, the next one knows whose directory it is.
            (self.directory / MARK_FILE).write_text("WAL for one restore; pgkeep removes it when that is through\n")
        vault = Vault.create(self.vault_path)
        identity = ClusterIdentity(
            system_identifier=self._base.system_identifier,
            major=self._base.server_version // 10000,
            wal_segment_size=self._segment_size,
        )
        vault.create_cluster(CLUSTER, identity).close()

    def take_old(self, old: OldWal) -> None:
        """
        Hold what the old ``pg_wal`` has, which is moved or removed next; nothing of the restore was done before.

        The newest segment that comes as well is held before it comes: it must be the same.

        Raises:
            RestoreRefused: A segment is not there any more.
        """
        for found in (*([old.newest_held] if old.newest_held is not None else []), *old.segments):
            try:
                self.archive.put(
                    found.name,
                    found.content(),
                    compression_level=_COMPRESSION_LEVEL,
                    written_ns=found.written_ns,
                )
            except OSError as error:
                raise RestoreRefused(
                    f"{found.path} was there when the restore was planned, and cannot be read now: {error.strerror}",
                    hint="stop the server, then restore again: nothing was touched",
                ) from error
        self._checked_by = old.newest_held.name if old.newest_held is not None else ""
        self.has_old_wal = True

    def take(self, item: StreamedItem) -> tuple[int, str]:
        """Hold the WAL file *item*; return its size and digest; raise ArchiveError when it is not what it claims."""
        name = item.header.path.rpartition("/")[2]
        if not _is_wal_name(name):
            raise FormatError(f'not the name of a WAL file: "{item.header.path}"')
        digest, total = blake3(), 0

        def content() -> Iterator[Buffer]:
            nonlocal total
            for chunk in item.chunks():
                digest.update(chunk)
                total += len(chunk)
                yield chunk

        # A target behind the last commit counts as reached by this time, so it is never later than what is known.
        written_ns = self._proved_ns.get(name, item.header.mtime_ns)
        try:
            self.archive.put(name, content(), compression_level=_COMPRESSION_LEVEL, written_ns=written_ns)
        except ArchiveError as error:
            if name != self._checked_by:
                raise
            raise BackupUnusable(
                f"the old pg_wal does not continue the WAL of the backups: it has another {name} ({error.message})",
                hint="undo this with pgkeep rollback, move the old directory away yourself, and restore without it",
            ) from error
        self.segments += 1
        return total, digest.hexdigest()

    def hand_over(self) -> None:
        """Let the account of the server read it."""
        if self._owner is None:
            return
        # From the inside out: whoever owns a directory may put links in place of what is in it.
        for directory, _, files in os.walk(self.directory, topdown=False):
            for path in (*(os.path.join(directory, name) for name in files), directory):
                os.chown(path, self._owner.uid, self._owner.gid, follow_symlinks=False)

    def remove(self) -> None:
        """Remove it, unless it is something else."""
        remove_private_wal(self.directory)

    @property
    def _is_leftover(self) -> bool:
        return (self.directory / MARK_FILE).is_file()


def remove_private_wal(directory: Path) -> None:
    """Remove the WAL of a restore in *directory*, unless that is something else."""
    if (directory / MARK_FILE).is_file():
        shutil.rmtree(directory, ignore_errors=True)


def _is_wal_name(name: str) -> bool:
    return is_segment_name(name) or is_partial_name(name) or is_history_name(name) or is_backup_label_name(name)
