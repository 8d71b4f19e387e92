"""
Expiring: the plan of ``retention.py`` carried out.

The order is that of writing turned round: a backup's record goes first, by a rename, so that what a killed ``expire``
leaves is a leftover and not a half backup; then its volumes; WAL goes last. A backup goes before those that it needs.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.errors import FormatError, VaultError
from pgkeep.pg.wal import WalSegment, is_history_name
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault, Unreadable
from pgkeep.vault.layout import DELETED_MANIFEST_FILE, MANIFEST_FILE
from pgkeep.vault.retention import RetentionPlan, RetentionPolicy, plan_retention
from pgkeep.vault.unnamed_file import sync_directory
from pgkeep.vault.wal_holdings import ArchivedFile, files, timelines


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that goes: a backup, or what a killed job left; *stored_bytes* is what it takes in the vault."""

    backup_id: str
    reason: str
    stored_bytes: int


@dataclass(slots=True)
class ExpireReport:
    """
    What went, or with a dry run what would go.

    Attributes:
        dry_run: Whether nothing was touched.
        plan: The decisions, one for each backup.
        backups: What was deleted.
        leftovers: What killed jobs had left.
        wal_files: Number of files of WAL deleted.
        wal_bytes: What they took in the vault.
    """

    dry_run: bool
    plan: RetentionPlan
    backups: list[Removed] = field(default_factory=list)
    leftovers: list[Removed] = field(default_factory=list)
    wal_files: int = 0
    wal_bytes: int = 0


def expire(
    cluster: ClusterVault,
    policy: RetentionPolicy,
    *,
    now: dt.datetime,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> ExpireReport:
    """
    Delete what *policy* does not keep, and what killed jobs left.

    Args:
        cluster: Whose backups.
        policy: How much to keep.
        now: Aware.
        dry_run: Only report.
        wait_seconds: How long to wait for backups and readers to finish.

    Raises:
        VaultBusy: A backup is being written or read.
        VaultError: Something cannot be deleted; what was deleted before stays deleted.
    """
    with cluster.lock(shared=dry_run, verb="expire", wait_seconds=wait_seconds):
        report = ExpireReport(dry_run, _plan(cluster, policy, now))
        reasons = {verdict.backup_id: verdict.reason for verdict in report.plan.verdicts}
        for backup_id in report.plan.deleted:
            directory = cluster.backup_directory(backup_id)
            report.backups.append(Removed(backup_id, reasons[backup_id], _stored_bytes(directory)))
            if not dry_run:
                _delete_backup(directory)
        # Asked now: a backup deleted just before is no leftover.
        for backup_id in cluster.leftovers():
            directory = cluster.backup_directory(backup_id)
            removed = Removed(backup_id, "a killed job left it", _stored_bytes(directory))
            report.leftovers.append(removed)
            if not dry_run:
                _delete_directory(directory)
        for file in _wal_to_delete(cluster, report.plan):
            report.wal_files += 1
            report.wal_bytes += file.stored_bytes
            if not dry_run:
                cluster.archive.remove(file.name)
    return report


def _plan(cluster: ClusterVault, policy: RetentionPolicy, now: dt.datetime) -> RetentionPlan:
    heads: list[RecordHead] = []
    unreadable: set[str] = set()
    for found in cluster.scan_backups():
        if isinstance(found, Unreadable):
            unreadable.add(found.backup_id)
        else:
            heads.append(found)
    pinned = frozenset(head.backup_id for head in heads if cluster.is_pinned(head.backup_id))
    return plan_retention(heads, policy, now=now, pinned=pinned, unreadable=frozenset(unreadable))


def _wal_to_delete(cluster: ClusterVault, plan: RetentionPlan) -> Iterator[ArchivedFile]:
    if plan.wal is None:
        return
    archive = cluster.archive
    for timeline in timelines(archive):
        for file in files(archive, timeline):
            if is_history_name(file.name):
                continue  # A few hundred bytes, and every later timeline's path leads through it.
            try:
                segment = WalSegment.parse(file.name[:24], size=archive.segment_size)
            except FormatError:
                continue
            if not plan.keeps_wal(segment.start_lsn, segment.end_lsn):
                yield file


def _delete_backup(directory: Path) -> None:
    try:
        (directory / MANIFEST_FILE).rename(directory / DELETED_MANIFEST_FILE)
        sync_directory(directory)
    except OSError as error:
        raise VaultError(f"cannot delete {directory}: {error.strerror}") from error
    _delete_directory(directory)


def _delete_directory(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise VaultError(f"cannot delete {directory}: {error.strerror}") from error


def _stored_bytes(directory: Path) -> int:
    total = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            total += entry.stat(follow_symlinks=False).st_size
    return total
