"""
A restore as a standby: what its primary says decides how far the WAL held may be replayed.

A primary that was itself restored to a moment has left its old timeline there. A standby that replays the archive
beyond that fork can never follow it. So the primary is asked in phase 1, in the way in which the standby will connect:
which cluster it is, on which timeline, and where that left the others. The standby replays the WAL held along that
history, up to the segment of the fork, and gets the rest from the primary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pgkeep.errors import RestoreRefused, ServerError, UsageError
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.jobs.recovery.base import candidates_on
from pgkeep.jobs.recovery.history import WalHoldings
from pgkeep.jobs.recovery.plan import RecoveryPlan, raised_minimums
from pgkeep.jobs.recovery.reach import Span, segment_size
from pgkeep.jobs.recovery.standby_state import StandbyState
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.server.primary import Primary, ask_primary, primary_place
from pgkeep.settings import Resolved
from pgkeep.streams.record import RecordHead

_HINT = "give primary_conninfo, such as: host=pg-primary.example.net user=replicator passfile=/etc/pgkeep/pgpass"


@dataclass(frozen=True, slots=True)
class StandbyPlan:
    """
    How a restored standby will follow its primary.

    Attributes:
        conninfo: How it reaches it.
        where: The same for messages.
        primary: What the primary says; None when it could not be asked.
        problem: Why it could not.
    """

    conninfo: str = field(repr=False)
    where: str
    primary: Primary | None
    problem: str = ""

    @property
    def state(self) -> StandbyState:
        """What later phases need of it."""
        if self.primary is None:
            return StandbyState(conninfo=self.conninfo, where=self.where)
        return StandbyState(
            conninfo=self.conninfo,
            where=self.where,
            timeline=int(self.primary.timeline),
            history=self.primary.history_text,
        )

    @property
    def timeline(self) -> str:
        """The timeline to plan for, as a recovery target has it."""
        return str(int(self.primary.timeline)) if self.primary is not None else "latest"

    def lines(self) -> list[str]:
        """Return what the plan of the restore says of it."""
        if self.primary is None:
            return [f"standby: of the primary at {self.where}, which could not be asked: {self.problem}"]
        at = f"timeline {int(self.primary.timeline)} at {self.primary.flushed}"
        return [f"standby: of the primary at {self.where}, {at}"]

    def check_cluster(self, head: RecordHead) -> None:
        """Raise RestoreRefused when the primary is not of the cluster, or the major version, of *head*."""
        primary = self.primary
        if primary is None:
            return
        if primary.system_identifier != int(head.system_identifier):
            raise RestoreRefused(
                f"the primary at {self.where} is another cluster: its system identifier is "
                f"{primary.system_identifier}, that of the backups {head.system_identifier}",
                hint="name the primary of this cluster in primary_conninfo",
            )
        major = head.server_version // 10000
        if primary.major != major:
            raise RestoreRefused(
                f"the primary at {self.where} is PostgreSQL {primary.major}, the backups are of {major}"
            )

    def limit(self, plan: WalPlan) -> WalPlan:
        """Return *plan* without what the primary never wrote."""
        if self.primary is None:
            return plan
        excluded = [
            WalSegment.containing(fork.switch_lsn, timeline=fork.timeline, size=plan.segment_size).name
            for fork in self.primary.history.entries
        ]
        # The history file comes from the primary, and is there before the server starts.
        return replace(plan, histories=(), excluded=tuple(excluded), last_timeline=int(self.primary.timeline))


def standby_plan(settings: Resolved, heads: Sequence[RecordHead]) -> StandbyPlan | None:
    """
    Return how the standby that *settings* ask for will follow its primary; None when they ask for none.

    Args:
        settings: Of the restore.
        heads: Of the backups, oldest first: one of a standby may know the primary.

    Raises:
        UsageError: Nobody knows the primary, or what is said of it is no connection string.
        RestoreRefused: The standby shall be started and the primary cannot be asked.
    """
    if not settings.flag("restore_as_standby"):
        return None
    conninfo = settings.text("primary_conninfo") or _recorded_conninfo(heads)
    if not conninfo:
        raise UsageError("restore_as_standby needs primary_conninfo: no backup knows the primary", hint=_HINT)
    where = primary_place(conninfo)
    try:
        return StandbyPlan(conninfo, where, ask_primary(conninfo))
    except ServerError as error:
        if settings.flag("start_postgresql_after_restore"):
            raise RestoreRefused(
                f"the standby could not follow its primary: {error.message}",
                hint=f"{error.hint}; without start_postgresql_after_restore the primary may come later".lstrip("; "),
            ) from error
        return StandbyPlan(conninfo, where, None, error.message)


def plan_standby_recovery(
    standby: StandbyPlan, heads: Sequence[RecordHead], wal: WalHoldings, *, backup_id: str = ""
) -> RecoveryPlan:
    """
    Choose the base for *standby*, whose primary was asked: the newest that lies on the primary's history.

    Args:
        standby: How it will follow.
        heads: Records of the cluster's physical backups, oldest first.
        wal: The archived WAL.
        backup_id: Take this base and no other; empty to choose.

    Raises:
        RestoreRefused: No backup would do.
    """
    primary = standby.primary
    assert primary is not None
    usable = [head for head in heads if head.has_files and head.stop_lsn]
    if not usable:
        raise RestoreRefused("no base backup to restore from", hint="pgkeep info shows what the vault holds")
    standby.check_cluster(usable[-1])
    history = primary.history
    candidates, notes = candidates_on(history, usable, backup_id)
    reached = [head for head in candidates if Lsn.parse(head.stop_lsn) <= primary.flushed]
    if not reached:
        raise RestoreRefused(
            f"backup {candidates[0].backup_id} ends at {candidates[0].stop_lsn}, "
            f"the primary at {standby.where} has WAL up to {primary.flushed} only",
            hint="is it the primary of this cluster?",
        )
    base = reached[-1]
    span = Span.of(base, history, wal)
    _check_needed_wal(span)
    followed = [head for head in usable if head.backup_id > base.backup_id and _is_on(history, head)]
    minimums: dict[str, int] = {}
    for head in [base, *followed]:
        minimums = raised_minimums(minimums, head)
    known = {tablespace.oid for tablespace in base.tablespaces} | set(base.details.get("left_out", ()))
    later = {t.oid: t for head in followed for t in head.tablespaces if t.oid not in known and t.location}
    return RecoveryPlan(
        base=base,
        timeline=history.timeline,
        history=history,
        target=RecoveryTarget(TargetKind.LATEST, None, timeline=standby.timeline),
        wal_start=span.start,
        archived_end=span.archived,
        wal_end=span.end,
        reach=span.reach,
        later_tablespaces=list(later.values()),
        minimums=minimums,
        notes=notes,
    )


def _recorded_conninfo(heads: Sequence[RecordHead]) -> str:
    """Return how the newest standby that was backed up reached its primary; without a password."""
    for head in reversed(heads):
        state = head.replication
        if state is not None and state.server.is_standby and state.server.settings.get("primary_conninfo"):
            return state.server.settings["primary_conninfo"]
    return ""


def _check_needed_wal(span: Span) -> None:
    """Refuse a base whose own WAL is not held, but for the segment of a fork, which the primary has."""
    base, size = span.base, segment_size(span.base)
    needed = Lsn(span.stop - span.stop % size) if base.from_standby else span.stop
    fork = span.history.fork_of(Timeline(base.timeline))
    if fork is not None:
        needed = min(needed, Lsn(fork - fork % size))
    if span.archived < needed:
        raise RestoreRefused(
            f"WAL is missing from {span.archived} on: backup {base.backup_id} needs it up to {span.stop} to become "
            "consistent",
            hint="take another backup: --backup-id=ID",
        )


def _is_on(history: TimelineHistory, head: RecordHead) -> bool:
    stop = head.wal.stop if head.wal is not None else head.stop_lsn
    return history.contains(Timeline(head.timeline), Lsn.parse(stop))
