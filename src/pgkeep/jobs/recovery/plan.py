"""
Which backup, which timeline and which WAL bring a cluster back to a target: pure choice, nothing is touched.

A base serves a target when its own end lies before the target on the target's timeline. Among those the newest is
taken, because it needs the least WAL. What is certainly out of reach is refused here, with the nearest moment that
is not; what only the WAL's content could tell is left to the replay.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from pgkeep.errors import ArchiveError, RestoreRefused
from pgkeep.jobs.recovery.base import candidates_on, choose_base, stop_time
from pgkeep.jobs.recovery.history import HISTORY_ADVICE, WalHoldings, choose_history, known_histories
from pgkeep.jobs.recovery.reach import Span, Stop, StopsTooEarly, Times, check_bounds, check_names, find_stop
from pgkeep.jobs.recovery.replication_choice import replication_at
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.replay_settings import REPLAY_MINIMUMS
from pgkeep.pg.replication_state import ReplicationState
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.streams.record import RecordHead, Tablespace


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
        stop: Where replay stops, as the WAL says; None when nobody has looked into it.
        later_tablespaces: Those that the replay makes; when nobody has looked into the WAL, those that later backups
            show it to make.
        minimums: Settings that must not be lower while WAL is replayed, each as high as any backup on the history knows
            it.
        replication: What the cluster was to other servers then; None where no backup recorded it.
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
    stop: Stop | None = None
    later_tablespaces: Sequence[Tablespace] = ()
    minimums: dict[str, int] = field(default_factory=dict)
    replication: ReplicationState | None = None
    notes: list[str] = field(default_factory=list)


def plan_recovery(
    heads: Sequence[RecordHead],
    target: RecoveryTarget,
    wal: WalHoldings,
    *,
    now: dt.datetime,
    backup_id: str = "",
    find_restore_point: Callable[[str, TimelineHistory], Lsn | None] | None = None,
    times_of: Times | None = None,
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
        times_of: Tells what is in the archived WAL; None when only its names are known.

    Raises:
        NeededWalMissing: The chosen backup cannot become consistent.
        RestoreRefused: No backup, or the target is out of reach; the message names the nearest moment that is not.
        ArchiveError: WAL that is needed is damaged.
    """
    usable = [head for head in heads if head.has_files and head.stop_lsn]
    if not usable:
        raise RestoreRefused("no base backup to restore from", hint="pgkeep info shows what the vault holds")

    def along(history: TimelineHistory) -> RecoveryPlan:
        plan = _plan_along(
            history,
            usable,
            target,
            wal,
            now=now,
            backup_id=backup_id,
            find_restore_point=find_restore_point,
            times_of=times_of,
        )
        return _with_records(plan, heads)

    history = choose_history(usable, target, wal)
    try:
        plan = along(history)
    except RestoreRefused as refusal:
        if target.kind not in (TargetKind.LATEST, TargetKind.IMMEDIATE):
            others = [other for other in known_histories(usable, wal) if other.timeline != history.timeline]
            _advise_other_timeline(refusal, others, along)
        raise
    newest = usable[-1]
    if target.timeline == "latest" and not history.contains(Timeline(newest.timeline), Lsn.parse(newest.stop_lsn)):
        plan.notes.append(
            f"timeline {history.timeline} was written after the newest backup {newest.backup_id}, which is on timeline "
            f"{newest.timeline}: --target-timeline={newest.timeline} leads there"
        )
    known = {one.timeline for one in known_histories(usable, wal)}
    for timeline in sorted(set(wal.without_history()) - known):
        plan.notes.append(
            f"WAL of timeline {timeline} is held, but not {timeline.history_file_name}: nobody knows where it began, "
            f"and nothing of it is replayed; {HISTORY_ADVICE}"
        )
    return plan


def _plan_along(
    history: TimelineHistory,
    usable: Sequence[RecordHead],
    target: RecoveryTarget,
    wal: WalHoldings,
    *,
    now: dt.datetime,
    backup_id: str,
    find_restore_point: Callable[[str, TimelineHistory], Lsn | None] | None,
    times_of: Times | None,
) -> RecoveryPlan:
    """Return the plan along *history*; raises as ``plan_recovery`` does."""
    find = functools.partial(_find, find_restore_point, history) if find_restore_point is not None else None
    candidates, notes = candidates_on(history, usable, backup_id)
    while True:
        base, more = choose_base(candidates, target, find)
        span = Span.of(base, history, wal)
        check_bounds(span, target, now=now)
        if times_of is None:
            check_names(span, target)
            return _planned(span, target, None, [*notes, *more])
        try:
            stop = find_stop(span, target, times_of)
        except StopsTooEarly:
            # Only the content of the WAL could tell: an older base is consistent sooner.
            candidates = [head for head in candidates if head.backup_id < base.backup_id]
            if not candidates:
                raise
            continue
        return _planned(span, target, stop, [*notes, *more])


def _find(
    find_restore_point: Callable[[str, TimelineHistory], Lsn | None], history: TimelineHistory, name: str
) -> Lsn | None:
    return find_restore_point(name, history)


def _planned(span: Span, target: RecoveryTarget, stop: Stop | None, notes: list[str]) -> RecoveryPlan:
    base = span.base
    if span.has_hole:
        notes.append(
            f"WAL is missing from {span.end} on: what is held of later times cannot be replayed from this backup"
        )
    if base.damaged:
        pages = sum(entry.count for entry in base.damaged)
        notes.append(f"backup {base.backup_id} holds {pages} damaged pages in {len(base.damaged)} files")
    return RecoveryPlan(
        base=base,
        timeline=span.history.timeline,
        history=span.history,
        target=target,
        wal_start=span.start,
        archived_end=span.archived,
        wal_end=span.end,
        reach=span.reach,
        has_hole=span.has_hole,
        stop=stop,
        notes=notes + (stop.notes if stop is not None else []),
    )


def with_wal_content(plan: RecoveryPlan, wal: WalHoldings, times_of: Times) -> RecoveryPlan:
    """Return *plan*, made from names, with what the WAL itself says; raises as ``find_stop`` does."""
    span = Span.of(plan.base, plan.history, wal)
    stop = find_stop(span, plan.target, times_of)
    return _with_records(replace(plan, stop=stop, notes=[*plan.notes, *stop.notes]), [plan.base])


def _with_records(plan: RecoveryPlan, heads: Sequence[RecordHead]) -> RecoveryPlan:
    """Return *plan* with what later backups know of the way, and the WAL itself where it was read."""
    history, base, stop = plan.history, plan.base, plan.stop
    followed = [head for head in heads if _is_on(history, head)]
    minimums = _minimums([head for head in followed if head.backup_id >= base.backup_id])
    if stop is None:
        later = _later_tablespaces(heads, plan)
    else:
        names = {tablespace.oid: tablespace.name for head in followed for tablespace in _all_tablespaces(head)}
        later = [
            Tablespace(oid=event.oid, name=names.get(event.oid, ""), location=event.path)
            for event in stop.tablespaces
            if event.path
        ]
        # The last WAL of a standby's backup is among its files: nobody looks into that.
        seen = {tablespace.oid for tablespace in later}
        later += [made for made in _made_meanwhile(base) if made.location and made.oid not in seen]
        for change in stop.changes:
            for name in REPLAY_MINIMUMS:
                minimums[name] = max(minimums.get(name, 0), getattr(change, name))
    # When the WAL is read, only the base is asked again.
    replication = plan.replication or replication_at(
        plan.target, base, followed, stop_lsn=stop.lsn if stop is not None else None
    )
    return replace(
        plan,
        later_tablespaces=later,
        minimums=minimums,
        replication=replication,
    )


def _advise_other_timeline(
    refusal: RestoreRefused, others: Sequence[TimelineHistory], along: Callable[[TimelineHistory], RecoveryPlan]
) -> None:
    """Add to *refusal* which of the *others* lead to the target."""
    reaching = []
    for other in others:
        with contextlib.suppress(RestoreRefused, ArchiveError):
            along(other)
            reaching.append(f"--target-timeline={other.timeline}")
    if reaching:
        advice = f"it can be reached on another timeline: {' or '.join(reaching)}"
        refusal.hint = f"{advice}; {refusal.hint}" if refusal.hint else advice


def _later_tablespaces(heads: Sequence[RecordHead], plan: RecoveryPlan) -> list[Tablespace]:
    """Return the tablespaces with a place of their own that were surely made after the base and before the target."""
    base, target = plan.base, plan.target
    known = {tablespace.oid for tablespace in base.tablespaces} | set(base.details.get("left_out", ()))
    found = [tablespace for tablespace in _made_meanwhile(base) if tablespace.location]
    known |= {tablespace.oid for tablespace in found}
    for head in heads:
        if head.backup_id > base.backup_id and _is_on(plan.history, head) and _is_past(target, head):
            of_head = _all_tablespaces(head)
            found += [tablespace for tablespace in of_head if tablespace.oid not in known and tablespace.location]
            known |= {tablespace.oid for tablespace in of_head}
    return found


def _all_tablespaces(head: RecordHead) -> list[Tablespace]:
    return [*head.tablespaces, *_made_meanwhile(head)]


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


def _is_past(target: RecoveryTarget, head: RecordHead) -> bool:
    """Tell whether replay to *target* surely passes the end of *head*."""
    if target.kind is TargetKind.TIME:
        # WAL that a standby gave is of no known time.
        return bool(head.stop_time) and target.time >= stop_time(head)
    return target.kind is TargetKind.LATEST or (target.kind is TargetKind.LSN and target.lsn >= _end(head))


def _end(head: RecordHead) -> Lsn:
    return Lsn.parse(head.wal.stop if head.wal is not None else head.stop_lsn)
