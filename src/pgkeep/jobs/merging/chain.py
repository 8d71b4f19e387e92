"""Which chain a merge puts together, what it refuses, and the id of what it makes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection

from pgkeep.errors import BackupUnusable, RestoreRefused, VaultError
from pgkeep.jobs.recovery.block_chain import MODE, chain_of
from pgkeep.streams.record import Level, RecordHead, new_backup_id
from pgkeep.vault.cluster_vault import ClusterVault, Unreadable

MERGED_FROM = "merged_from"
"""Among a head's details: the ids of the chain that the backup was made of, the Full first."""


def chain_to_merge(cluster: ClusterVault, backup_id: str = "") -> tuple[RecordHead, ...]:
    """
    Return the heads of the chain to merge, the Full first.

    Args:
        cluster: Where it is, locked for a backup.
        backup_id: The newest member; empty for the newest backup of the mode.

    Raises:
        VaultError: There is no such backup.
        BackupUnusable: It is of another mode, there is nothing to merge, or a member is missing or damaged.
    """
    heads: list[RecordHead] = []
    unreadable: dict[str, BackupUnusable] = {}
    for found in cluster.scan_backups():
        if isinstance(found, Unreadable):
            unreadable[found.backup_id] = found.error
        else:
            heads.append(found)
    newest = _chosen(cluster, heads, unreadable, backup_id)
    if not newest.base:
        raise BackupUnusable(
            f"nothing to merge: backup {newest.backup_id} is a Full",
            hint="make a Differential or Incremental that builds on it, or name one with --backup-id",
        )
    for head in heads:
        if head.details.get(MERGED_FROM, [""])[-1] == newest.backup_id:
            raise BackupUnusable(
                f"nothing to merge: backup {newest.backup_id} has been merged already, as {head.backup_id}"
            )
    try:
        chain = chain_of(newest, heads, verb="merged")
    except RestoreRefused as error:
        lost = next((unreadable[name] for name in unreadable if f"backup {name}, which" in error.message), None)
        raise BackupUnusable(lost.message if lost else error.message, hint="make a Full") from error
    for head in chain:
        if head.is_damaged:
            pages = sum(entry.count for entry in head.damaged)
            raise BackupUnusable(
                f"backup {newest.backup_id} cannot be merged: backup {head.backup_id} holds {pages} damaged pages",
                hint="mend the table at the server, and make a Full",
            )
    return chain


def merged_id(newest: RecordHead, taken: Collection[str]) -> str:
    """
    Return the id of the Full that is merged from a chain: right behind *newest*, so that it is a Full of that time.

    Args:
        newest: The newest member of the chain.
        taken: The ids of all backups.

    Raises:
        VaultError: Another backup follows so closely that there is none.
    """
    found = new_backup_id(dt.datetime.fromtimestamp(0, dt.UTC), Level.FULL, newest=newest.backup_id)
    follower = next((one for one in taken if one[:-1] == found[:-1]), "")
    if follower:
        raise VaultError(
            f"backup {newest.backup_id} cannot be merged: backup {follower} follows it within a second, "
            "which leaves no id between them",
            hint="merge the chain of a later backup",
        )
    return found


def _chosen(
    cluster: ClusterVault, heads: list[RecordHead], unreadable: dict[str, BackupUnusable], backup_id: str
) -> RecordHead:
    if not backup_id:
        newest = [head for head in heads if head.mode == MODE]
        if not newest:
            raise VaultError(
                f"cluster {cluster.name} has no backup of mode {MODE} to merge",
                hint=f'run "pgkeep info {cluster.name}"',
            )
        return newest[-1]
    if backup_id in unreadable:
        raise unreadable[backup_id]
    head = cluster.head(backup_id)
    if head.mode != MODE:
        raise BackupUnusable(
            f"backup {backup_id} is of mode {head.mode}, expected {MODE}: only chains of that mode are merged"
        )
    return head
