"""What the vault holds of a cluster, and from when to when it can be recovered."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pgkeep.errors import BackupUnusable, VaultError
from pgkeep.jobs.recovery.windows import Hole, Window, find_holes, recovery_windows
from pgkeep.pg.lsn import Timeline
from pgkeep.spool.state import ReceiverState, read_state, spooled_names
from pgkeep.streams.record import RecordHead, RecordTail, WalRange
from pgkeep.vault.cluster_vault import ClusterVault, Unreadable
from pgkeep.vault.proofs import Proof, newest_proved, read_proofs
from pgkeep.vault.retention import missing_needs
from pgkeep.vault.wal_holdings import HeldRange, ranges, without_history
from pgkeep.vault.wal_holes import read_holes
from pgkeep.vault.wal_view import WalView


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """
    One backup.

    Attributes:
        head: Of its record.
        tail: Of its record.
        is_pinned: Whether it is kept whatever its age.
        missing: The backup that it needs and that is not there, or has a record that cannot be read; mostly empty.
    """

    head: RecordHead
    tail: RecordTail
    is_pinned: bool
    missing: str = ""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """
    What the vault holds of one cluster.

    Attributes:
        status: ``ok``, ``no backup``, ``damaged`` (a record cannot be read, a backup that another one needs is not
            there, or the newest backup has bad pages), or ``gap`` (between two windows, or behind the last, WAL is
            missing or cannot be used).
        backups: Oldest first.
        unreadable: Ids and reasons of backups whose record cannot be read.
        leftovers: What killed jobs left; ``expire`` removes it.
        wal: Complete segments, by timeline and oldest first.
        without_history: Timelines of which WAL is held that nobody can use: where they began is not known.
        windows: Oldest first; more than one where WAL is missing between them.
        gaps: WAL that backups reported as gone.
        holes: WAL that is missing behind the oldest base backup, and why.
        proved: What a drill proved last.
        last_drill: The newest drill, whatever it came to.
        receiver: How the receiver on this host stands; None when there is none.
    """

    name: str
    system_identifier: str
    major: int
    status: str
    backups: list[BackupInfo]
    unreadable: list[tuple[str, str]]
    leftovers: list[str]
    wal: list[HeldRange]
    without_history: list[Timeline]
    windows: list[Window]
    gaps: list[WalRange]
    holes: list[Hole]
    proved: Proof | None
    last_drill: Proof | None
    receiver: ReceiverState | None


def cluster_info(cluster: ClusterVault, *, spool: Path, warn: Callable[[str], None]) -> ClusterInfo:
    """
    Return what the vault holds of *cluster*.

    Args:
        cluster: Which one.
        spool: Where a receiver on this host would have its spool.
        warn: Takes one warning.
    """
    backups, unreadable = [], []
    with cluster.lock(shared=True, verb="info"):
        for found in cluster.scan_backups():
            if isinstance(found, Unreadable):
                unreadable.append((found.backup_id, found.error.message))
                continue
            try:
                with cluster.open_backup(found.backup_id) as backup:
                    backups.append(BackupInfo(found, backup.tail, cluster.is_pinned(found.backup_id)))
            except BackupUnusable as error:
                unreadable.append((found.backup_id, error.message))
        heads = [backup.head for backup in backups]
        missing = missing_needs(heads)
        backups = [replace(backup, missing=missing.get(backup.head.backup_id, "")) for backup in backups]
        with WalView(cluster.archive) as view:
            windows = recovery_windows([head for head in heads if head.backup_id not in missing], view)
            recorded = read_holes(cluster.directory)
            holes = find_holes(heads, view, recorded, spooled_names(spool), now=dt.datetime.now(dt.UTC))
        wal = list(ranges(cluster.archive))
        lost = without_history(cluster.archive, heads)
        leftovers = cluster.leftovers()
    proofs = read_proofs(cluster.directory, warn=warn)
    status = "ok"
    if unreadable or missing or (backups and backups[-1].head.is_damaged):
        status = "damaged"
    elif not backups:
        status = "no backup"
    elif len(windows) > 1 or lost or any(hole.kind != "delayed" for hole in holes):
        status = "gap"
    return ClusterInfo(
        name=cluster.name,
        system_identifier=cluster.identity.system_identifier,
        major=cluster.identity.major,
        status=status,
        backups=backups,
        unreadable=unreadable,
        leftovers=leftovers,
        wal=wal,
        without_history=lost,
        windows=windows,
        gaps=[gap for backup in backups for gap in backup.head.wal_gaps],
        holes=holes,
        proved=newest_proved(proofs),
        last_drill=proofs[-1] if proofs else None,
        receiver=_receiver_state(spool, warn),
    )


def _receiver_state(spool: Path, warn: Callable[[str], None]) -> ReceiverState | None:
    try:
        return read_state(spool)
    except VaultError as error:
        # What the vault holds is told all the same.
        warn(error.message)
        return None
