"""Which backup replay begins from: the newest that ends before the target, as far as the records tell."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

from pgkeep.errors import RestoreRefused
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.streams.record import RecordHead

XID_HALF = 1 << 31


def candidates_on(
    history: TimelineHistory, usable: Sequence[RecordHead], backup_id: str
) -> tuple[list[RecordHead], list[str]]:
    """Return the backups of *history* to choose among, oldest first, and what is to be said of them."""
    on_history = [head for head in usable if history.contains(Timeline(head.timeline), Lsn.parse(head.stop_lsn))]
    if backup_id:
        chosen = [head for head in on_history if head.backup_id == backup_id]
        if not chosen:
            elsewhere = next((head for head in usable if head.backup_id == backup_id), None)
            if elsewhere is not None:
                raise RestoreRefused(
                    f"backup {backup_id} does not lie on timeline {history.timeline}",
                    hint=f"add --target-timeline={elsewhere.timeline}, on which it was made",
                )
            raise RestoreRefused(
                f"backup {backup_id} is not a base backup of this cluster",
                hint="pgkeep info lists the backups and their timelines",
            )
        left_out = chosen[0].details.get("left_out")
        if not left_out:
            return chosen, []
        oids = ", ".join(map(str, left_out))
        return chosen, [f"backup {backup_id} was made without tablespace {oids}: what is in it will be missing"]
    if not on_history:
        lines = sorted({head.timeline for head in usable})
        raise RestoreRefused(
            f"no base backup lies on timeline {history.timeline}",
            hint=f"base backups lie on: {', '.join(f'--target-timeline={line}' for line in lines)}",
        )
    whole = [head for head in on_history if not head.details.get("left_out")]
    if not whole:
        raise RestoreRefused(
            f"every base backup on timeline {history.timeline} was made without some tablespaces",
            hint=f"to do without them, name one: --backup-id={on_history[-1].backup_id}",
        )
    return whole, []


def choose_base(
    candidates: Sequence[RecordHead],
    target: RecoveryTarget,
    find_restore_point: Callable[[str], Lsn | None] | None,
) -> tuple[RecordHead, list[str]]:
    """
    Return the newest of *candidates* that ends before *target*, and what is to be said of it.

    Args:
        candidates: Oldest first; not empty.
        target: What is asked for.
        find_restore_point: Returns where a restore point is, None when it is not seen; None when nobody can look.
    """
    notes: list[str] = []
    oldest = candidates[0]
    if target.kind is TargetKind.TIME:
        moment = target.time
        fitting = [head for head in candidates if stop_time(head) <= moment]
        if not fitting:
            raise RestoreRefused(
                f"target time {moment.isoformat(sep=' ')} is before the end of backup {oldest.backup_id}, "
                f"which became consistent at {oldest.stop_time}",
                hint=f"the earliest reachable moment is {oldest.stop_time}",
            )
        return fitting[-1], notes
    if target.kind is TargetKind.LSN:
        fitting = [head for head in candidates if Lsn.parse(head.stop_lsn) <= target.lsn]
        if not fitting:
            raise RestoreRefused(
                f"target LSN {target.lsn} is before the end of backup {oldest.backup_id} at {oldest.stop_lsn}",
                hint=f"the earliest reachable LSN is {oldest.stop_lsn}",
            )
        return fitting[-1], notes
    if target.kind is TargetKind.XID:
        return _choose_base_for_transaction(candidates, target.xid)
    if target.kind is TargetKind.NAME:
        place = find_restore_point(target.name) if find_restore_point is not None else None
        if place is None:
            if find_restore_point is None:
                notes.append(f'only the WAL tells where restore point "{target.name}" is, when it has come')
            return oldest, notes
        fitting = [head for head in candidates if Lsn.parse(head.stop_lsn) <= place]
        if not fitting:
            raise RestoreRefused(
                f'restore point "{target.name}" at {place} is before the end of backup {oldest.backup_id} '
                f"at {oldest.stop_lsn}",
                hint=f"the earliest reachable LSN is {oldest.stop_lsn}",
            )
        notes.append(f'restore point "{target.name}" is at {place}')
        return fitting[-1], notes
    return candidates[-1], notes


def _choose_base_for_transaction(candidates: Sequence[RecordHead], xid: int) -> tuple[RecordHead, list[str]]:
    fitting = [head for head in candidates if _xid_follows(xid, head, "next_xid")]
    if fitting:
        return fitting[-1], []
    oldest = candidates[0]
    if not _xid_follows(xid, oldest, "oldest_xid"):
        raise RestoreRefused(
            f"transaction {xid} is older than backup {oldest.backup_id}",
            hint=f"the earliest reachable moment is {oldest.stop_time}",
        )
    return oldest, [f"transaction {xid} may have ended before backup {oldest.backup_id} did: replay will tell"]


def _xid_follows(xid: int, head: RecordHead, bound: str) -> bool:
    # Transaction ids compare modulo 2**32, as TransactionIdFollowsOrEquals does. From next_xid on, taken after the
    # backup's stop, a transaction ends later than the backup. One before that may have ended while the backup ran, when
    # the cluster was not consistent yet: an older base is right in both cases.
    other = int(head.details.get(bound, 0))
    return bool(other) and (xid - other) % (1 << 32) < XID_HALF


def complete_until(base: RecordHead) -> dt.datetime:
    """Return a moment before which every commit is in *base*: a standby may lack what its primary has."""
    if not base.from_standby:
        return stop_time(base)
    return dt.datetime.fromisoformat(base.details.get("complete_until") or base.checkpoint_time or base.stop_time)


def stop_time(head: RecordHead) -> dt.datetime:
    """Return when *head* was consistent."""
    return dt.datetime.fromisoformat(head.stop_time)
