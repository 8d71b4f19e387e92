"""What the vault holds of a cluster, and from when to when it can be recovered."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pgkeep.errors import BackupUnusable
from pgkeep.jobs.recovery.history import held_along
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.streams.record import RecordHead, RecordTail, WalRange
from pgkeep.vault.vault import ClusterVault, Unreadable
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import HeldRange, held_through, ranges
from pgkeep.vault.wal_holes import WalHole, read_holes
from pgkeep.vault.wal_view import WalView


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """One backup: its record's head and tail, and whether it is pinned."""

    head: RecordHead
    tail: RecordTail
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class Window:
    """
    A stretch of time without a hole to which a cluster can be recovered.

    Attributes:
        start_time: When its oldest base backup became consistent, ISO-8601.
        start_lsn: The same as an LSN.
        end_lsn: End of the WAL that follows without a hole.
        end_time: A time by the server's or this host's clock that is certainly not after that end; ISO-8601.
        timeline: The timeline at its end.
        base: The oldest base backup.
    """

    start_time: str
    start_lsn: str
    end_lsn: str
    end_time: str
    timeline: int
    base: str


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """
    What the vault holds of one cluster.

    Attributes:
        status: ``ok``, ``no backup``, ``damaged`` (a record cannot be read, or the newest backup has bad pages), or
            ``gap`` (between two windows, or behind the last, WAL is missing).
        backups: Oldest first.
        unreadable: Ids and reasons of backups whose record cannot be read.
        leftovers: What killed jobs left; ``expire`` removes it.
        wal: Complete segments, by timeline and oldest first.
        windows: Oldest first; more than one where WAL is missing between them.
        gaps: WAL that backups reported as gone.
        holes: WAL that a receiver had to pass over, and that nobody has brought since.
    """

    name: str
    system_identifier: str
    major: int
    status: str
    backups: list[BackupInfo]
    unreadable: list[tuple[str, str]]
    leftovers: list[str]
    wal: list[HeldRange]
    windows: list[Window]
    gaps: list[WalRange]
    holes: list[WalHole]


def cluster_info(cluster: ClusterVault) -> ClusterInfo:
    """Return what the vault holds of *cluster*."""
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
        windows = recovery_windows([backup.head for backup in backups], WalView(cluster.archive))
        wal = list(ranges(cluster.archive))
        leftovers = cluster.leftovers()
        holes = [hole for hole in read_holes(cluster.directory) if not _is_filled(hole, cluster.archive)]
    status = "ok"
    if unreadable or (backups and backups[-1].head.is_damaged):
        status = "damaged"
    elif not backups:
        status = "no backup"
    elif len(windows) > 1 or holes:
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
        windows=windows,
        gaps=[gap for backup in backups for gap in backup.head.wal_gaps],
        holes=holes,
    )


def recovery_windows(heads: list[RecordHead], wal: WalView) -> list[Window]:
    """Return the stretches that can be recovered to, oldest first: each begins with a base backup."""
    histories = {history.timeline: history for history in wal.histories()}
    windows: list[Window] = []
    for head in heads:
        if not head.has_files or not head.stop_lsn or head.wal is None:
            continue
        timeline, start, stop = Timeline(head.timeline), Lsn.parse(head.start_lsn), Lsn.parse(head.stop_lsn)
        following = [h for h in histories.values() if h.contains(timeline, stop)] or [TimelineHistory.single(timeline)]
        newest = max(following, key=lambda history: history.timeline)
        end = max(stop, held_along(newest, timeline, start, head.wal.segment_size, wal))
        if windows and windows[-1].timeline == newest.timeline and Lsn.parse(windows[-1].end_lsn) >= stop:
            continue
        moments = [moment for t in (newest.timeline, timeline) if (moment := wal.last_archived(t)) is not None]
        ends = [h.stop_time for h in heads if h.wal is not None and h.stop_time and Lsn.parse(h.wal.stop) <= end]
        windows.append(
            Window(
                start_time=head.stop_time,
                start_lsn=head.stop_lsn,
                end_lsn=str(end),
                end_time=max([*ends, *(_iso(moment) for moment in moments if end > stop)], default=head.stop_time),
                timeline=int(newest.timeline),
                base=head.backup_id,
            )
        )
    return windows


def _is_filled(hole: WalHole, archive: WalArchive) -> bool:
    return held_through(archive, Timeline(hole.timeline), Lsn.parse(hole.start)) >= Lsn.parse(hole.stop)


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
