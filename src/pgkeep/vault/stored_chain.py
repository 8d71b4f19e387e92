"""Reading several backups of the vault as one: those of a chain, oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from pgkeep.streams.record import FileEntry
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.stored_backup import StoredBackup, StoredItem
from pgkeep.vault.survey import survey


class StoredChain:
    """
    Backups that are restored together, open for reading; use it as a context manager.

    Args:
        cluster: Where they are.
        backup_ids: Oldest first; one alone for a backup that needs no other.

    Attributes:
        members: The backups, in that order.
        tablespace_bytes: By OID, how much room each tablespace needs at most.

    Raises:
        BackupUnusable: A record is damaged, or a volume is missing or too short.
    """

    def __init__(self, cluster: ClusterVault, backup_ids: Sequence[str]) -> None:
        self._files = ExitStack()
        self.members: list[StoredBackup] = []
        self.tablespace_bytes: dict[int, int] = {}
        try:
            for backup_id in backup_ids:
                member = self._files.enter_context(cluster.open_backup(backup_id))
                self.members.append(member)
                for oid, size in survey(member).tablespace_bytes.items():
                    self.tablespace_bytes[oid] = self.tablespace_bytes.get(oid, 0) + size
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def newest(self) -> StoredBackup:
        """The backup that the others lead to."""
        return self.members[-1]

    def items(self, *, done: int = 0) -> Iterator[StoredItem]:
        """
        Yield the items of all members but the first *done*; read them while this chain is open.

        WAL that a member needs to become consistent comes with the newest one alone: nobody replays that of the others.
        """
        for member in self.members[done:]:
            yield from member.items(None if member is self.newest else _is_no_wal)


def _is_no_wal(entry: FileEntry) -> bool:
    root, _, name = entry.path.rpartition("/")
    return not (name and root.endswith("/pitr_block/wal"))
