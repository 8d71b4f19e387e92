"""
Which backup, which timeline and which WAL bring a cluster back to a target: pure choice, nothing is touched.

A base serves a target when its own end lies before the target on the target's timeline. Among those the newest is
taken, because it needs the least WAL. What is certainly out of reach is refused here, with the nearest moment that
is not; what only the WAL's content could tell is left to the replay.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.recovery_history import WalHoldings, choose_history, furthest_end, held_along
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.replay_settings import REPLAY_MINIMUMS
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.streams.record import RecordHead, Tablespace

XID_HALF = 1 << 31


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """
    How a target will be reached.

    Attributes:
        base: The backup whose files are laid down.
        timeline: The timeline that replay follows.
        history: Its history.
        target: What to stop at.
        wal_start: First LSN that replay needs.
        archived_end: End of the WAL that the archive holds along the history; *wal_start* when it holds none.
        wal_end: End of all WAL that is held; replay cannot go further.
        reach: No commit before *wal_end* is later than this.
        has_hole: Whether more WAL is held, behind a hole that begins at *wal_end*.
        later_tablespaces: Those that later backups know and the base does not: the replay may make them.
        knows_all_tablespaces: Whether a backup at or after the target says that the replay makes no others.
        minimums: Settings that must not be lower while WAL is replayed, each as high as any backup on the history knows
            it.
        notes: What the reader should know, one line each.
    """

    base: RecordHead
    timeline: Timeline
    history: TimelineHistory
    target: RecoveryTarget
    wal_start: Lsn
    archived_end: Lsn
    wal_end: Lsn
    reach: dt.datetime
    has_hole: bool = False
    later_tablespaces: Sequence[Tablespace] = ()
    knows_all_tablespaces: bool = False
    minimums: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_recovery(
    heads: Sequence[RecordHead],
    target: RecoveryTarget,
    wal: WalHoldings,
    *,
    now: dt.datetime,
    backup_id: str = "",
    find_restore_point: Callable[[str, TimelineHistory], Lsn | None] | None = None,
) -> RecoveryPlan:
    """
    Choose the base and the timeline for *target*.

    Args:
        heads: Records of the cluster's physical backups, oldest first.
        target: What is asked for.
        wal: The archived WAL.
        now: The present; aware.
        backup_id: Take this base and no other; empty to choose.
        find_restore_point: Looks a restore point's name up in the archived WAL of a history; None when that can't be
            done.

    Raises:
        RestoreRefused: No backup, or the target is out of reach; the message names the nearest moment that is not.
    """
    usable = [head for head in heads if head.has_files and head.stop_lsn]
    if not usable:
        raise RestoreRefused("no base backup to restore from", hint="pgkeep info shows what the vault holds")
    history = choose_history(usable, target, wal)
    on_history = [head for head in usable if history.contains(Timeline(head.timeline), Lsn.parse(head.stop_lsn))]
    if backup_id:
        on_history = [head for head in on_history if head.backup_id == backup_id]
        if not on_history:
            known = any(head.backup_id == backup_id for head in usable)
            why = f"does not lie on timeline {history.timeline}" if known else "is not a base backup of this cluster"
            raise RestoreRefused(f"backup {backup_id} {why}", hint="pgkeep info lists the backups and their timelines")
    if not on_history:
        raise RestoreRefused(f"no base backup lies on timeline {history.timeline}")
    notes = []
    if not backup_id:
        whole = [head for head in on_history if not head.details.get("left_out")]
        if not whole:
            raise RestoreRefused(
                f"every base backup on timeline {history.timeline} was made without some tablespaces",
                hint=f"to do without them, name one: --backup-id={on_history[-1].backup_id}",
            )
        on_history = whole
    elif on_history[0].details.get("left_out"):
        oids = ", ".join(map(str, on_history[0].details["left_out"]))
        notes.append(f"backup {backup_id} was made without tablespace {oids}: what is in it will be missing")

    def find_on_history(name: str) -> Lsn | None:
        return find_restore_point(name, history) if find_restore_point is not None else None

    choice = _choose_base(on_history, target, find_on_history)
    plan = _check_reach(choice, target, history, wal, now)
    plan.notes.extend(notes)
    newest = usable[-1]
    if target.timeline == "latest" and not history.contains(Timeline(newest.timeline), Lsn.parse(newest.stop_lsn)):
        plan.notes.append(
            f"timeline {history.timeline} was written after the newest backup {newest.backup_id}, which is on timeline "
            f"{newest.timeline}: --target-timeline={newest.timeline} leads there"
        )
    return replace(
        plan,
        later_tablespaces=_later_tablespaces(heads, plan),
        minimums=_minimums([head for head in heads if head.backup_id >= plan.base.backup_id and _is_on(history, head)]),
        knows_all_tablespaces=any(_is_at_or_before(target, head) for head in heads if _is_on(history, head)),
    )


def _stop_time(head: RecordHead) -> dt.datetime:
    return dt.datetime.fromisoformat(head.stop_time)


def _choose_base(
    candidates: Sequence[RecordHead],
    target: RecoveryTarget,
    find_restore_point: Callable[[str], Lsn | None],
) -> tuple[RecordHead, list[str]]:
    notes: list[str] = []
    oldest = candidates[0]
    if target.kind is TargetKind.TIME:
        moment = target.time
        fitting = [head for head in candidates if _stop_time(head) <= moment]
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
        place = find_restore_point(target.name)
        if place is None:
            notes.append(
                f'restore point "{target.name}" was not seen in the archived WAL; starting from the oldest base'
            )
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


def _check_reach(
    choice: tuple[RecordHead, list[str]],
    target: RecoveryTarget,
    history: TimelineHistory,
    wal: WalHoldings,
    now: dt.datetime,
) -> RecoveryPlan:
    base, notes = choice
    size = base.wal.segment_size if base.wal is not None else 16 << 20
    start, stop = Lsn.parse(base.start_lsn), Lsn.parse(base.stop_lsn)
    archived = held_along(history, Timeline(base.timeline), start, size, wal)
    end = max(archived, stop)
    has_hole = furthest_end(history, Timeline(base.timeline), size, wal) > end
    moments = [moment for timeline in history.timelines if (moment := wal.archived_at(timeline, archived))]
    reach = max([*moments, _stop_time(base)])
    if target.kind is TargetKind.LSN and target.lsn > end:
        raise RestoreRefused(
            f"target LSN {target.lsn} is beyond the WAL held{_without_hole(has_hole)}, which ends at {end}",
            hint=f"the latest reachable LSN is {end}",
        )
    if target.kind is TargetKind.TIME and target.time > now:
        raise RestoreRefused(
            f"target time {target.time.isoformat(sep=' ')} is in the future",
            hint="leave the target out to recover to the end of the WAL held",
        )
    if target.kind is TargetKind.TIME and target.time > reach:
        raise RestoreRefused(
            f"target time {target.time.isoformat(sep=' ')} is beyond the WAL held{_without_hole(has_hole)}, "
            f"whose newest segment was archived at {reach.isoformat(sep=' ', timespec='seconds')}",
            hint="leave the target out to recover to the end of the WAL held",
        )
    if has_hole:
        notes.append(f"WAL is missing from {end} on: what is held of later times cannot be replayed from this backup")
    if base.damaged:
        pages = sum(entry.count for entry in base.damaged)
        notes.append(f"backup {base.backup_id} holds {pages} damaged pages in {len(base.damaged)} files")
    return RecoveryPlan(
        base=base,
        timeline=history.timeline,
        history=history,
        target=target,
        wal_start=start,
        archived_end=archived,
        wal_end=end,
        reach=reach,
        has_hole=has_hole,
        notes=notes,
    )


def _later_tablespaces(heads: Sequence[RecordHead], plan: RecoveryPlan) -> list[Tablespace]:
    """Return the tablespaces with a place of their own that were made after the base, and perhaps before the target."""
    base, target = plan.base, plan.target
    known = {tablespace.oid for tablespace in base.tablespaces} | set(base.details.get("left_out", ()))
    found = [tablespace for tablespace in _made_meanwhile(base) if tablespace.location]
    if target.kind is TargetKind.IMMEDIATE:
        return found
    known |= {tablespace.oid for tablespace in found}
    before = base
    for head in heads:
        if head.backup_id <= base.backup_id or not _is_on(plan.history, head):
            continue
        # They were made after the last backup that does not know them.
        if _is_at_or_before(target, before):
            break
        of_head = [*head.tablespaces, *_made_meanwhile(head)]
        found += [tablespace for tablespace in of_head if tablespace.oid not in known and tablespace.location]
        known |= {tablespace.oid for tablespace in of_head}
        before = head
    return found


def _made_meanwhile(head: RecordHead) -> list[Tablespace]:
    """Return the tablespaces that were made while the backup ran: its WAL makes them, its files do not have them."""
    return msgspec.convert(head.details.get("made_meanwhile", []), list[Tablespace])


def _minimums(heads: Sequence[RecordHead]) -> dict[str, int]:
    """Return the highest value of each setting that a standby must have at least as high as its primary."""
    known = {name: [head.settings[name] for head in heads if name in head.settings] for name in REPLAY_MINIMUMS}
    return {name: max(map(int, values)) for name, values in known.items() if values}


def raised_minimums(minimums: dict[str, int], head: RecordHead) -> dict[str, int]:
    """Return *minimums* with those of one more backup on the history."""
    more = _minimums([head])
    return {name: max(minimums.get(name, 0), more.get(name, 0)) for name in minimums | more}


def _is_on(history: TimelineHistory, head: RecordHead) -> bool:
    return history.contains(Timeline(head.timeline), _end(head))


def _is_at_or_before(target: RecoveryTarget, head: RecordHead) -> bool:
    """Tell whether replay surely stops at *target* before it passes the end of *head*."""
    if target.kind is TargetKind.TIME:
        return target.time <= _stop_time(head)
    return target.kind is TargetKind.IMMEDIATE or (target.kind is TargetKind.LSN and target.lsn <= _end(head))


def _end(head: RecordHead) -> Lsn:
    return Lsn.parse(head.wal.stop if head.wal is not None else head.stop_lsn)


def _without_hole(has_hole: bool) -> str:  # noqa: FBT001 - the answer to a question asked beside the name
    return " without a hole" if has_hole else ""
