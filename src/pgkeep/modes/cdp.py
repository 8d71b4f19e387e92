"""
Mode cdp: the WAL between base backups, from the spool of a receiver or from the server itself.

Of a cluster there is a base backup by mode pitr or pitr_block, and this brings what was written since. A Full holds
all WAL since the newest base backup that is known to have succeeded, a Differential what came after the Full, an
Incremental what came after the job before it. Files are called as the server calls them, below one directory, so that
a segment that was sent as far as it went is replaced by the whole one::

    @postgresql/cdp/wal/000000010000000000000007
                   /wal/000000010000000000000008.partial
                   /wal/00000002.history

While a receiver streams, what it has spooled is sent, whether the server answers or not. Else the rest comes from the
server, up to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pgkeep.errors import ArchiveError, SettingsError, UsageError
from pgkeep.modes.cdp_held import HeldByJobs
from pgkeep.modes.cdp_supply import CdpWal, cdp_wal
from pgkeep.modes.contract import BackupRequest, Base, History, Plan, Source
from pgkeep.modes.physical_base import base_end
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.server.connection import Server
from pgkeep.server.slots import slot_of
from pgkeep.streams.item import ItemHeader
from pgkeep.streams.record import Level, RecordHead

ALL_LEVELS = frozenset(Level)

_KEPT_NEWEST = 2
"""Segments of the spool that are never removed: where the receiver goes on, and the one in which a record may begin."""


class CdpHistory(History, Protocol):
    """What this mode asks of the history besides."""

    def confirmed(self) -> list[RecordHead]:
        """Return the heads of the backups of this mode that are known to have succeeded."""
        ...

    def recovery_base(self) -> RecordHead | None:
        """Return the head of the newest base backup that is known to have succeeded; the oldest if none is known to."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CdpOptions:
    """
    What can be chosen for a cdp backup.

    Attributes:
        spool_dir: Directory of the spools.
        spool_max: What the cluster's spool may take.
        slot_name: The lasting slot of who streams; empty for ``pgkeep_<cluster>``.
        allow_unbounded_slot: Make it although nothing bounds what it keeps.
        timeout_seconds: How long to wait for a segment.
        fail_without_base: Refuse instead of making a Full when there is nothing to build on.
    """

    spool_dir: str
    spool_max: int
    slot_name: str = ""
    allow_unbounded_slot: bool = False
    timeout_seconds: float = 60
    fail_without_base: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CdpPlan(Plan):
    """
    One cdp backup, planned.

    Attributes:
        wal: Where the WAL is.
        begin: From where on it is sent.
        end: Up to where.
        gap: Begin and end of WAL that no job of this chain holds; None as a rule.
        removable: Files of the spool that jobs hold which are known to have succeeded.
        held: Up to where such jobs hold WAL; None when it is not known.
        transport: ``wal``: no files of the cluster pass.
    """

    wal: CdpWal
    begin: WalPosition
    end: Lsn
    gap: tuple[Lsn, Lsn] | None = None
    removable: tuple[str, ...] = ()
    held: WalPosition | None = None
    transport: str = "wal"


class CdpMode:
    """The mode; see ``modes/contract.py``."""

    name = "cdp"
    levels = ALL_LEVELS
    needs_server = False

    def options(self, value_of: Callable[[str], Any]) -> CdpOptions:
        """Return the options of a cdp backup."""
        return CdpOptions(
            spool_dir=value_of("spool_dir"),
            spool_max=value_of("spool_max"),
            slot_name=value_of("slot_name") or "",
            allow_unbounded_slot=value_of("allow_unbounded_slot"),
            timeout_seconds=value_of("switch_wal_timeout"),
            fail_without_base=value_of("on_missing_base") == "fail",
        )

    def plan(self, request: BackupRequest, *, server: Server | None, history: History) -> CdpPlan:
        """Choose what is sent, from where to where; refuse what would leave a hole."""
        if not hasattr(history, "recovery_base"):
            raise UsageError(
                "a backup of mode cdp is a job of Bacula's", hint="into a vault WAL comes by itself: pgkeep receive"
            )
        known = cast("CdpHistory", history)
        options: CdpOptions = request.options
        wal = cdp_wal(
            Path(options.spool_dir) / request.cluster,
            server,
            slot=options.slot_name or slot_of(request.cluster),
            allow_unbounded_slot=options.allow_unbounded_slot,
            timeout_seconds=options.timeout_seconds,
        )
        held = HeldByJobs(known.confirmed(), wal.system_identifier)
        level, base, reason = _choose_base(request, wal, known)
        gap = None
        if base is None:
            begin, gap = _begin_of_full(wal, known.recovery_base(), request)
            begin = _with_unheld(wal, begin, held)
        else:
            begin = _on_history(wal, base_end(base.head) if level is Level.DIFFERENTIAL else known.wal_held())
        if wal.end < begin.lsn:
            found = (
                f"{wal.where} has WAL up to {wal.end} on timeline {wal.history.timeline}, less than the {begin.lsn} "
                "that jobs before this one hold"
            )
            if wal.was_put_back(begin.lsn):
                raise ArchiveError(
                    f"{found}: its files were put back to an earlier state",
                    hint="make a base backup, and then a Full of this job",
                )
            request.warn(f"{found}: nothing is sent")
        return CdpPlan(
            request=request,
            level=level,
            backup_id=history.new_backup_id(request.begin, level),
            base=base,
            reason=reason,
            wal=wal,
            begin=begin,
            end=max(wal.end, begin.lsn),
            gap=gap,
            removable=tuple(_removable(wal, held, known.recovery_base(), options, begin.lsn)),
            held=known.wal_held(),
        )

    def foresee(self, plan: Any, *, server: Server) -> Iterator[ItemHeader]:  # noqa: ARG002 - the plan knows
        """Yield the headers of what the backup would send."""
        from pgkeep.modes.cdp_source import wal_path

        size = plan.wal.segment_size
        for segment in plan.wal.segments(plan.begin, plan.end):
            yield ItemHeader(path=wal_path(plan.request, segment, is_whole=segment.end_lsn <= plan.end), size=size)

    def open(self, plan: Any, *, server: Server) -> AbstractContextManager[Source]:
        """Begin the backup."""
        from pgkeep.modes.cdp_source import CdpSource

        return closing(CdpSource(plan, server))


def _choose_base(request: BackupRequest, wal: CdpWal, history: CdpHistory) -> tuple[Level, Base | None, str]:
    if request.level is Level.FULL:
        return Level.FULL, None, ""
    levels = frozenset({Level.FULL}) if request.level is Level.DIFFERENTIAL else ALL_LEVELS
    base = history.newest(mode="cdp", levels=levels)
    problem = "there is no backup to build on"
    if base is not None:
        problem = ""
        if base.head.system_identifier != str(int(wal.system_identifier)):
            problem = (
                f"backup {base.head.backup_id} is of another cluster: system identifier {base.head.system_identifier}, "
                f"{wal.where} has {wal.system_identifier}"
            )
    if not problem:
        return request.level, base, ""
    if request.options.fail_without_base:
        raise SettingsError(f"{request.level.word} refused: {problem}", hint="make a Full, or set on_missing_base=full")
    return Level.FULL, None, f"making a Full instead of the {request.level.word} asked for: {problem}"


def _on_history(wal: CdpWal, held: WalPosition | None) -> WalPosition:
    """Return where *held* is on the history of *wal*: there, or where that leaves its timeline."""
    assert held is not None
    if wal.history.contains(held.timeline, held.lsn):
        return held
    fork = wal.history.fork_of(held.timeline)
    if fork is None:
        raise ArchiveError(
            f"the jobs before this one hold WAL of timeline {held.timeline}, which {wal.where} never had: "
            f"it is on timeline {wal.history.timeline}",
            hint="connect to the server that was promoted, or make a base backup and then a Full of this job",
        )
    # What was written beyond it is a branch of its own, which the job before holds.
    return WalPosition(held.timeline, fork)


def _begin_of_full(
    wal: CdpWal, base: RecordHead | None, request: BackupRequest
) -> tuple[WalPosition, tuple[Lsn, Lsn] | None]:
    """Return where a Full begins, and what is missing between the base backup and that."""
    oldest = wal.oldest()
    if base is None:
        request.say(f"no base backup of cluster {request.cluster} is known here: all WAL since {oldest} is sent")
        return WalPosition(wal.history.timeline_at(oldest), oldest), None
    start, stop = WalPosition(Timeline(base.timeline), Lsn.parse(base.start_lsn)), base_end(base)
    is_on_history = wal.history.contains(stop.timeline, stop.lsn) and not wal.was_put_back(stop.lsn)
    if base.system_identifier != str(int(wal.system_identifier)) or not is_on_history:
        request.warn(
            f"the newest base backup {base.backup_id} does not lie on the history of {wal.where}: make a new one"
        )
        return WalPosition(wal.history.timeline_at(oldest), oldest), None
    request.say(f"newest base backup: {base.backup_id} of mode {base.mode}, from {start.lsn} to {stop.lsn}")
    if oldest <= start.lsn:
        return start, None
    for position in (start, stop):
        if wal.can_stream(position):
            return position, None
    begin = WalPosition(wal.history.timeline_at(oldest), oldest)
    return begin, (stop.lsn, oldest) if oldest > stop.lsn else None


def _with_unheld(wal: CdpWal, begin: WalPosition, held: HeldByJobs) -> WalPosition:
    """Return *begin*, or where before it there is WAL in the spool that no job has which is known to have succeeded."""
    if wal.spool is None:
        return begin
    oldest = wal.oldest()
    for segment in wal.segments(WalPosition(wal.history.timeline_at(oldest), oldest), begin.lsn):
        if not held.has(segment):
            return WalPosition(wal.history.timeline_at(segment.start_lsn), segment.start_lsn)
    return begin


def _removable(
    wal: CdpWal, held: HeldByJobs, base: RecordHead | None, options: CdpOptions, begin: Lsn
) -> Iterator[str]:
    """
    Yield the files of the spool that are not needed there any more, nor for this backup, which begins at *begin*.

    Each is in a job that is known to have succeeded. What a Full would send, which begins with *base*, stays, too, as
    long as the spool's room is half free.
    """
    spool = wal.spool
    if spool is None:
        return
    segments = spool.segments()
    is_crowded = len(segments) * spool.segment_size > options.spool_max // 2
    kept_from = Lsn.parse(base.start_lsn) if base is not None and not is_crowded else None
    for segment in segments[:-_KEPT_NEWEST]:
        if segment.end_lsn > begin or (kept_from is not None and segment.end_lsn > kept_from):
            continue
        if held.has(segment):
            yield segment.name
