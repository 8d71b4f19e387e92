"""
What may be expired: pure decisions over the heads of the backups that there are.

The rules, which no policy overrides:

1. What a kept backup needs is kept: its base, the record that its file list is in, every backup whose volumes it
   refers to, and so on from those.
2. A backup with truly bad pages, or one that needs such a one, never counts, nor does one that tablespaces were left
   out of: count and window are reached with clean backups, and what is newer than the last clean one that counts is
   kept whatever its state.
3. From the start of the oldest kept base backup on, all WAL of all timelines is kept. Backups that are kept only for a
   pin keep just the WAL between their own start and stop.
4. Without a policy nothing is deleted; nor is a backup whose record cannot be read, what that one may need, and then
   any WAL.

Count and window are applied to each mode apart; a backup that either keeps is kept.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pgkeep.errors import UsageError
from pgkeep.pg.lsn import Lsn
from pgkeep.streams.record import Level, RecordHead


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """
    How much is kept.

    Attributes:
        count: Clean Fulls to keep, of each mode, with everything since the oldest of them; None: no such rule.
        window: Every moment since this long ago stays within reach; None: no such rule.
    """

    count: int | None = None
    window: dt.timedelta | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for a policy that would keep nothing."""
        if self.count is not None and self.count < 1:
            raise UsageError(f"retention must keep at least 1 Full, found {self.count}")
        if self.window is not None and self.window < dt.timedelta(0):
            raise UsageError(f"a retention window cannot be negative, found {self.window}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backup is kept, and why."""

    backup_id: str
    keep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class WalSpan:
    """WAL from *start* up to but not including *stop*, on any timeline; without *stop*, all that follows."""

    start: Lsn
    stop: Lsn | None = None

    def touches(self, start: Lsn, end: Lsn) -> bool:
        """Tell whether a segment from *start* up to *end* holds any of it."""
        return end > self.start and (self.stop is None or start < self.stop)


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """
    What is kept and what goes.

    Attributes:
        verdicts: One for each backup, oldest first.
        wal: What WAL is kept: everything that touches one of these; None when all of it is.
        notes: Why a mode's backups cannot expire whatever their number and age, one line for each such mode.
    """

    verdicts: tuple[Verdict, ...]
    wal: tuple[WalSpan, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def deleted(self) -> list[str]:
        """The ids of the backups that go, newest first: a backup goes before those that it needs."""
        return [verdict.backup_id for verdict in reversed(self.verdicts) if not verdict.keep]

    @property
    def kept(self) -> list[str]:
        """The ids of the backups that stay, oldest first."""
        return [verdict.backup_id for verdict in self.verdicts if verdict.keep]

    def keeps_wal(self, start: Lsn, end: Lsn) -> bool:
        """Tell whether a segment from *start* up to *end* stays."""
        return self.wal is None or any(span.touches(start, end) for span in self.wal)


def plan_retention(
    heads: Sequence[RecordHead],
    policy: RetentionPolicy,
    *,
    now: dt.datetime,
    pinned: frozenset[str] = frozenset(),
    unreadable: frozenset[str] = frozenset(),
) -> RetentionPlan:
    """
    Return what *policy* keeps of the backups of one cluster.

    Args:
        heads: Of all backups whose record can be read.
        policy: How much to keep.
        now: The end of the window; aware.
        pinned: Ids of backups to keep with what they need.
        unreadable: Ids of backups whose record cannot be read.
    """
    ordered = sorted(heads, key=lambda head: head.backup_id)
    by_id = {head.backup_id: head for head in ordered}
    by_policy = _kept_by_policy(ordered, by_id, policy, now)
    reasons = _with_needs(by_policy, by_id)
    kept_with_wal = frozenset(reasons)
    pins = {backup_id: "pinned" for backup_id in sorted(pinned) if backup_id in by_id}
    for backup_id, reason in _with_needs(pins, by_id).items():
        reasons.setdefault(backup_id, reason)
    for backup_id in sorted(unreadable):
        reasons[backup_id] = "its record cannot be read"
        may_need = dict.fromkeys(_possible_chain(ordered, backup_id), "")
        for needed in _with_needs(may_need, by_id):
            reasons.setdefault(needed, f"may be needed by {backup_id}, whose record cannot be read")
    verdicts = tuple(
        Verdict(backup_id, backup_id in reasons, reasons.get(backup_id) or _why_not(policy))
        for backup_id in sorted({*by_id, *unreadable})
    )
    # A record that cannot be read may be that of a base: what WAL it needs is not known.
    wal = None if unreadable else _wal_to_keep(ordered, kept_with_wal, frozenset(reasons))
    return RetentionPlan(verdicts, wal, tuple(_notes(ordered, by_id, policy)))


def _possible_chain(ordered: Sequence[RecordHead], backup_id: str) -> Iterator[str]:
    """Yield what *backup_id* may build on: in each mode, what there is since the last Full before it."""
    for mode in sorted({head.mode for head in ordered}):
        earlier = [head for head in ordered if head.mode == mode and head.backup_id < backup_id]
        fulls = [head.backup_id for head in earlier if head.level is Level.FULL]
        yield from (head.backup_id for head in earlier if fulls and fulls[-1] <= head.backup_id)


def needs_of(head: RecordHead) -> frozenset[str]:
    """Return the ids of the backups that the one with *head* needs directly."""
    return frozenset({head.base, head.files_from, *head.references}) - {"", head.backup_id}


def missing_needs(heads: Iterable[RecordHead]) -> dict[str, str]:
    """Return, for each backup that cannot be used so, the first of those that it needs which is not among *heads*."""
    by_id = {head.backup_id: head for head in heads}
    absent = {backup_id: sorted(_closure([backup_id], by_id) - by_id.keys()) for backup_id in by_id}
    return {backup_id: missing[0] for backup_id, missing in absent.items() if missing}


def _kept_by_policy(
    ordered: Sequence[RecordHead], by_id: dict[str, RecordHead], policy: RetentionPolicy, now: dt.datetime
) -> dict[str, str]:
    if policy.count is None and policy.window is None:
        return {head.backup_id: "no retention is set" for head in ordered}
    kept: dict[str, str] = {}
    for mode in sorted({head.mode for head in ordered}):
        backups = [head for head in ordered if head.mode == mode]
        clean = [head for head in backups if _is_clean(head, by_id)]
        if policy.count is not None:
            _keep_from(backups, _first_by_count(clean, policy.count), f"within {_fulls(policy.count)}", kept)
        if policy.window is not None:
            first = _first_by_window(clean, now - policy.window)
            _keep_from(backups, first, f"within the window of {_duration(policy.window)}", kept)
    return kept


def _notes(ordered: Sequence[RecordHead], by_id: dict[str, RecordHead], policy: RetentionPolicy) -> Iterator[str]:
    if policy.count is None and policy.window is None:
        return
    for mode in sorted({head.mode for head in ordered}):
        backups = [head for head in ordered if head.mode == mode]
        if any(_is_clean(head, by_id) for head in backups):
            continue
        partial = sum(_is_partial(head, by_id) for head in backups)
        why = [f"{partial} without all tablespaces (exclude_tablespace)"] if partial else []
        if len(backups) > partial:
            why.append(f"{len(backups) - partial} with damaged pages")
        yield (
            f"no {mode} backup expires, since none of them is clean: {' and '.join(why)}; "
            "a clean Full is what the retention counts"
        )


def _keep_from(backups: Sequence[RecordHead], first: str, reason: str, kept: dict[str, str]) -> None:
    for head in backups:
        if head.backup_id >= first:
            kept.setdefault(head.backup_id, reason)


def _first_by_count(clean: Sequence[RecordHead], count: int) -> str:
    """Return the id of the oldest backup to keep; empty for all."""
    fulls = [head.backup_id for head in clean if head.level is Level.FULL]
    return fulls[-count] if len(fulls) >= count else ""


def _first_by_window(clean: Sequence[RecordHead], start: dt.datetime) -> str:
    """Return the id of the newest backup from which every moment since *start* can be reached; empty for all."""
    first = ""
    for head in clean:
        end = _end_of(head)
        if head.has_files and end is not None and end <= start:
            first = head.backup_id
    return first


def _end_of(head: RecordHead) -> dt.datetime | None:
    """Return when the backup ended: the earliest moment that it can be restored to."""
    for text in (head.stop_time, head.end_time):
        if text:
            try:
                end = dt.datetime.fromisoformat(text)
            except ValueError:
                continue
            return end if end.tzinfo is not None else end.replace(tzinfo=dt.UTC)
    return None


def _is_clean(head: RecordHead, by_id: dict[str, RecordHead]) -> bool:
    """Tell whether the backup is of a whole cluster, and is there without a bad page, as all that it needs."""
    if _is_partial(head, by_id):
        return False
    needed = _closure([head.backup_id], by_id)
    return all(backup_id in by_id and not by_id[backup_id].is_damaged for backup_id in needed)


def _is_partial(head: RecordHead, by_id: dict[str, RecordHead]) -> bool:
    """Tell whether tablespaces are left out of the files that the backup is restored from."""
    # What is left out of a base is not missed by a backup with files of its own: those it holds itself.
    return bool(by_id.get(head.files_from, head).details.get("left_out"))


def _closure(backup_ids: Iterable[str], by_id: dict[str, RecordHead]) -> set[str]:
    seen: set[str] = set()
    waiting = list(backup_ids)
    while waiting:
        backup_id = waiting.pop()
        if backup_id not in seen:
            seen.add(backup_id)
            if backup_id in by_id:
                waiting += needs_of(by_id[backup_id])
    return seen


def _with_needs(kept: dict[str, str], by_id: dict[str, RecordHead]) -> dict[str, str]:
    """Return *kept*, and for what those need the reason that they do."""
    reasons = dict(kept)
    waiting = sorted(kept, reverse=True)
    while waiting:
        backup_id = waiting.pop()
        for needed in sorted(needs_of(by_id[backup_id])):
            if needed in by_id and needed not in reasons:
                reasons[needed] = f"needed by {backup_id}"
                waiting.append(needed)
    return reasons


def _wal_to_keep(
    ordered: Sequence[RecordHead], with_wal: frozenset[str], kept: frozenset[str]
) -> tuple[WalSpan, ...] | None:
    bases = [head for head in ordered if head.has_files and head.start_lsn]
    starts = [Lsn.parse(head.start_lsn) for head in bases if head.backup_id in with_wal]
    if not starts:
        # Without a base to start from nobody knows what WAL is good for; somebody may.
        return None
    spans = [WalSpan(min(starts))]
    for head in bases:
        if head.backup_id in kept and head.backup_id not in with_wal:
            stop = Lsn.parse(head.stop_lsn) if head.stop_lsn else None
            spans.append(WalSpan(Lsn.parse(head.start_lsn), stop))
    # A pinned backup that carries only WAL is worth that WAL.
    spans.extend(
        WalSpan(Lsn.parse(head.wal.start), Lsn.parse(head.wal.stop))
        for head in ordered
        if head.backup_id in kept and head.backup_id not in with_wal and head.wal is not None
    )
    return tuple(spans)


def _why_not(policy: RetentionPolicy) -> str:
    rules = []
    if policy.count is not None:
        rules.append(_fulls(policy.count))
    if policy.window is not None:
        rules.append(f"the window of {_duration(policy.window)}")
    return f"older than {' and '.join(rules)}"


def _fulls(count: int) -> str:
    return "the newest clean Full" if count == 1 else f"the newest {count} clean Fulls"


def _duration(window: dt.timedelta) -> str:
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if window.total_seconds() >= seconds and not window.total_seconds() % seconds:
            return f"{int(window.total_seconds() // seconds)}{unit}"
    return f"{window.total_seconds():g}s"
