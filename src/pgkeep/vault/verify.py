"""
Verifying: every digest of the vault, every page checksum of what it holds, and WAL without a hole.

Each volume is read once, in the order of its members, by threads that decompress, digest and check pages. Damage is
gathered, not raised: the report names all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blake3 import blake3

from pgkeep.errors import BackupUnusable, VaultError
from pgkeep.streams.extents import ExtentPool
from pgkeep.streams.record import FileEntry, RecordHead
from pgkeep.streams.thread_memory import ThreadMemory
from pgkeep.vault.cluster_vault import ClusterVault, Unreadable
from pgkeep.vault.layout import MANIFEST_FILE, volume_name
from pgkeep.vault.retention import needs_of
from pgkeep.vault.stored_backup import StoredBackup
from pgkeep.vault.verify_members import NotedItem, PageVerification, VolumeCheck
from pgkeep.vault.verify_report import Finding, VerifyReport
from pgkeep.vault.verify_wal import (
    all_wal,
    carried_wal,
    find_holes,
    find_missing_histories,
    find_missing_wal,
    verify_wal_files,
)

Progress = Callable[[str, int], None]
"""Called with a backup id (or ``wal``) and the bytes of content that are being verified since the last call."""


def verify(
    cluster: ClusterVault,
    *,
    backup_ids: Sequence[str] = (),
    workers: int = 2,
    wait_seconds: float = 0.0,
    progress: Progress = lambda _what, _bytes: None,
) -> VerifyReport:
    """
    Read everything, and report what is wrong.

    Args:
        cluster: What to verify.
        backup_ids: Only these, with the content that they refer to in other backups, and the WAL that they carry; when
            empty, all backups and all WAL.
        workers: Number of threads.
        wait_seconds: How long to wait for a delete that is running.
        progress: Told what has been read.

    Raises:
        VaultBusy: Something is being deleted.
        VaultError: There is no such backup, or the vault cannot be listed.
    """
    report = VerifyReport()
    archive = cluster.archive
    with cluster.lock(shared=True, verb="verify", wait_seconds=wait_seconds):
        heads: list[RecordHead] = []
        present: set[str] = set()
        for found in cluster.scan_backups():
            present.add(found.backup_id)
            if backup_ids and found.backup_id not in backup_ids:
                continue
            report.backups.append(found.backup_id)
            if isinstance(found, Unreadable):
                report.find(Finding(found.backup_id, MANIFEST_FILE, "", found.error.message))
            else:
                heads.append(found)
        if absent := sorted(set(backup_ids) - set(report.backups)):
            raise VaultError(f'cluster {cluster.name} has no backup "{absent[0]}"')
        for head in heads:
            for needed in sorted(needs_of(head) - present):
                report.find(Finding(head.backup_id, MANIFEST_FILE, "", f"it needs backup {needed}, which is not there"))
            _verify_backup(cluster, head.backup_id, workers, report, progress, follow_references=bool(backup_ids))
        verify_wal_files(
            archive,
            carried_wal(archive, heads) if backup_ids else all_wal(archive),
            workers=workers,
            report=report,
            progress=lambda size: progress("wal", size),
        )
        find_missing_wal(archive, heads, report=report)
        if not backup_ids:
            find_holes(cluster, heads, report=report)
            find_missing_histories(archive, heads, report=report)
    return report


def _verify_backup(
    cluster: ClusterVault,
    backup_id: str,
    workers: int,
    report: VerifyReport,
    progress: Progress,
    *,
    follow_references: bool,
) -> None:
    try:
        backup = cluster.open_backup(backup_id)
    except BackupUnusable as error:
        report.find(Finding(backup_id, MANIFEST_FILE, "", error.message))
        return
    with backup:
        _verify_attachments(backup, report)
        try:
            backup.check_volumes()
        except BackupUnusable as error:
            report.find(Finding(backup_id, "", "", error.message))
        volumes = [VolumeCheck(volume) for volume in backup.tail.volumes]
        memory = ThreadMemory()
        work = PageVerification(backup.head, block_size=cluster.identity.block_size, report=report)
        with ExtentPool(workers, work, name="verify") as pool:
            for entry in backup.files():
                is_own = entry.at is None or entry.at.backup_id == backup_id
                if entry.at is not None and is_own and entry.at.volume < len(volumes):
                    volumes[entry.at.volume].add(entry)
                if is_own or follow_references:
                    progress(backup_id, entry.size)
                    _submit(pool, backup, entry, report, memory)
        work.judge_headless(cluster.archive)
        for volume in volumes:
            if problem := volume.problem():
                report.find(Finding(backup_id, volume.entry.name, "", problem))


def _submit(
    pool: ExtentPool[NotedItem, None],
    backup: StoredBackup,
    entry: FileEntry,
    report: VerifyReport,
    memory: ThreadMemory,
) -> None:
    report.files += 1
    report.bytes += entry.size
    try:
        item = backup.item(entry)
        if entry.size == 0:
            item.check_without_content()
        else:
            pool.submit_detached(NotedItem(item, report, memory))
    except BackupUnusable as error:
        if entry.at is None:
            report.find(Finding(backup.backup_id, MANIFEST_FILE, entry.path, error.message))
        else:
            report.find(Finding(entry.at.backup_id, volume_name(entry.at.volume), entry.path, error.message))


def _verify_attachments(backup: StoredBackup, report: VerifyReport) -> None:
    for name, expected in backup.tail.attachments.items():
        try:
            digest = blake3((backup.directory / name).read_bytes()).hexdigest()
        except OSError as error:
            report.find(Finding(backup.backup_id, name, "", f"cannot read it: {error.strerror}"))
            continue
        if digest != expected:
            what = f"it has the digest {digest}, the record says {expected}"
            report.find(Finding(backup.backup_id, name, "", what))
