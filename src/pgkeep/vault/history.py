"""What the vault knows of a cluster's earlier backups, as a mode asks for it."""

from __future__ import annotations

import datetime as dt

from pgkeep.errors import ArchiveError, BackupUnusable, UsageError, VaultError
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_joints import LastRecord
from pgkeep.streams.record import Level, RecordHead, new_backup_id
from pgkeep.vault.cluster_vault import ClusterVault, HeldBackup
from pgkeep.vault.wal_holdings import held_through


class VaultHistory:
    """The backups of one cluster in the vault."""

    def __init__(self, cluster: ClusterVault) -> None:
        self._cluster = cluster

    def new_backup_id(self, begin: dt.datetime, level: Level) -> str:
        """
        Return the id of a backup that begins at *begin*: it sorts after every id in the vault.

        It stays free only while the locks for a backup are held; see ``ClusterVault.lock_for_backup``.
        """
        return new_backup_id(begin, level, newest=max(self._cluster.backup_ids(), default=""))

    def newest(self, *, mode: str, levels: frozenset[Level], with_files: bool = False) -> HeldBackup | None:
        """Return the newest backup of *mode* and one of *levels*; *with_files*: one with a file list of its own."""
        return self._cluster.newest(mode=mode, levels=levels, with_files=with_files)

    def has(self, backup_id: str) -> bool:
        """Tell whether the vault has the backup *backup_id*, with a record that can be read."""
        # Its own record alone: a chain asks for each of its members, of as many backups as there are.
        try:
            self._cluster.head(backup_id)
        except (UsageError, VaultError, BackupUnusable):
            return False
        return True

    def wal_held(self) -> WalPosition | None:
        """
        Return up to where WAL is held from the newest physical backup on; None when there is none.

        What the server archived into the vault since that backup counts: it need not be sent again.
        """
        for head in self._cluster.scan_backups(newest_first=True):
            if isinstance(head, RecordHead) and head.wal is not None:
                timeline, end = Timeline(head.wal.timeline), Lsn.parse(head.wal.stop)
                return WalPosition(timeline, max(end, held_through(self._cluster.archive, timeline, end)))
        return None

    def last_record(self, held: WalPosition) -> Lsn | None:
        """Return where the last record of the WAL *held* up to a segment's end begins; None when nobody knows."""
        archive = self._cluster.archive
        segment = WalSegment.ending_at(held.lsn, timeline=held.timeline, size=archive.segment_size)
        last = LastRecord(segment)
        try:
            for chunk in archive.read(segment.name):
                last.feed(chunk)
        except ArchiveError:
            # Damage is for verify to tell.
            return None
        return last.lsn
