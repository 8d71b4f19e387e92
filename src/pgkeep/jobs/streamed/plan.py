"""
Phase 1 of a restore from a stream: everything is judged by what comes before the first file.

That is the heads of the backups, one for each restored job, and mostly a list of the files that will come. The base is
the newest backup with files: of a path that several jobs saved, Bacula restores the newest version only. Block-level
backups share no path, so of those it is the one that a vault would choose, which ends before the target; what is of
later ones is passed over, but for their WAL, which leads there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pgkeep.datadir.postmaster import read_control_file
from pgkeep.datadir.target import is_same_file_system
from pgkeep.errors import PgkeepError, RestoreRefused, ToolError, UsageError
from pgkeep.jobs.recovery.block_chain import MODE as BLOCK_MODE
from pgkeep.jobs.recovery.block_chain import chain_of, expected_bytes
from pgkeep.jobs.recovery.plan import RecoveryPlan, plan_recovery
from pgkeep.jobs.recovery.promised_wal import PromisedWal
from pgkeep.jobs.recovery.reach import NeededWalMissing
from pgkeep.jobs.recovery.standby_plan import StandbyPlan, plan_standby_recovery, standby_plan
from pgkeep.jobs.restoring.audit_file import AuditFile
from pgkeep.jobs.restoring.old_wal import OldWal
from pgkeep.jobs.restoring.plan import PreparedRestore, prepare
from pgkeep.jobs.restoring.private_wal import SUFFIX, PrivateWal
from pgkeep.jobs.restoring.request import RestoreRequest
from pgkeep.jobs.restoring.settings import recovery_target, restore_options, tablespace_places
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.jobs.restoring.unfinished import asked_for, unfinished_restore
from pgkeep.jobs.streamed.old_wal import promise_kept_wal, promise_old_wal
from pgkeep.jobs.streamed.proved_times import proved_times
from pgkeep.jobs.streamed.selection import WHOLE_JOB_HINT, PartialSelection, Selection, check_selection
from pgkeep.pg.data_directory import CONTROL_FILE
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.pg.wal import DEFAULT_SEGMENT_SIZE, is_segment_name
from pgkeep.server.tools import Toolbox, toolbox_for_server
from pgkeep.settings import Resolved
from pgkeep.settings.assignment import Rank
from pgkeep.settings.parameter import PHYSICAL_MODES
from pgkeep.streams.record import RecordHead, RecordTail


@dataclass(frozen=True, slots=True)
class PreparedStream:
    """
    A restore of a cluster that passed phase 1.

    Attributes:
        prepared: The restore.
        wal: Where its WAL will be.
        old: What only the old ``pg_wal`` has of it; None when that is not needed, or has nothing.
    """

    prepared: PreparedRestore
    wal: PrivateWal
    old: OldWal | None


def newest_base(heads: Sequence[RecordHead], selection: Selection | None) -> RecordHead:
    """Return the newest backup with files; raise PartialSelection when no record of one comes."""
    bases = [head for head in heads if head.has_files and head.stop_lsn]
    if not bases:
        raise PartialSelection("no Full or Differential of the cluster is among the restored jobs", hint=WHOLE_JOB_HINT)
    base = max(bases, key=lambda head: head.backup_id)
    if selection is not None and base.backup_id not in selection.records:
        raise PartialSelection(f"the record of backup {base.backup_id} is not selected", hint=WHOLE_JOB_HINT)
    return base


def prepare_stream(
    heads: Sequence[tuple[RecordHead, RecordTail]],
    selection: Selection | None,
    *,
    settings: Resolved,
    place: Path | None,
    now: dt.datetime,
    audit: AuditFile,
    beside: Sequence[RecordHead] = (),
    wal_beside: Sequence[tuple[str, dt.datetime]] = (),
    beside_directory: Path | None = None,
) -> PreparedStream:
    """
    Phase 1: decide everything, refuse what cannot work; nothing is touched.

    Args:
        heads: Of the restored backups.
        selection: What will come; None when the daemon does not tell.
        settings: Of this restore.
        place: The directory beneath which a copy is laid down; None for the cluster's own place.
        now: The present; aware.
        audit: Is told what happens.
        beside: Heads of the jobs of mode cdp whose WAL comes as well, for another Plugin line.
        wal_beside: Name and time of each of its WAL files; empty when *selection* is None.
        beside_directory: Where those wait until all has come.

    Raises:
        PartialSelection: Files that are needed were not selected.
        RestoreRefused: The target cannot be reached, or is in the way.
    """
    physical = [head for head, _ in heads if head.mode in PHYSICAL_MODES]
    by_age = sorted([*physical, *beside], key=lambda head: head.backup_id)
    base = newest_base(by_age, selection)
    size = base.wal.segment_size if base.wal is not None else DEFAULT_SEGMENT_SIZE
    wal = (
        PromisedWal.of_heads(by_age, segment_size=size)
        if selection is None
        else PromisedWal.of_names([*selection.wal, *wal_beside], segment_size=size, heads=by_age)
    )
    target = recovery_target(settings, now)
    # Nobody knows yet where a restore point is; the oldest base would need WAL of jobs that a Differential replaces.
    if base.mode == BLOCK_MODE and target.kind is not TargetKind.NAME:
        base = _block_base(base, by_age, target, wal, now=now)
    tails = {head.backup_id: tail for head, tail in heads}
    tail, chain = tails[base.backup_id], _chain(base, by_age)
    for member in chain:
        check_selection(member, tails[member.backup_id], selection, below=f"{member.backup_id}/")
    if not chain:
        check_selection(base, tail, selection)
    standby = standby_plan(settings, by_age)
    data_directory, tablespaces = _places(base, settings, place)
    if place is None:
        _check_identity(data_directory, base)
    asked = asked_for(
        target,
        tablespaces=tablespaces,
        port=_port(settings),
        is_wiped=settings.flag("wipe_pgdata"),
        backup_id=base.backup_id,
        standby_of=standby.where if standby is not None else "",
        wal=wal.end_text() if target.kind is TargetKind.LATEST else "",
    )
    unfinished = unfinished_restore(data_directory, asked)
    # It may have been named by a link then.
    known = unfinished.private_wal if unfinished is not None else ""
    wal_directory = Path(settings.text("wal_restore_dir") or known or f"{data_directory}{SUFFIX}")
    private = PrivateWal(wal_directory, base, segment_size=size, owner=None, proved_ns=proved_times(by_age))
    private.check()
    _check_apart(wal_directory, [data_directory, *tablespaces.values()])
    old = None
    if unfinished is not None:
        promise_kept_wal(wal, private)
    elif place is None and standby is None and settings.flag("overwrite_existing"):
        old = promise_old_wal(wal, data_directory, by_age, target, segment_size=size)
    recovery = _plan(by_age, base, target, wal, now=now, standby=standby)
    _check_hole(recovery)
    _warn_of_absent_wal(recovery, by_age, audit)
    if old is not None:
        audit.say(f"taken {old.words}")
    names = {name for name, _ in [*selection.wal, *wal_beside]} if selection is not None else set()
    segments = sum(map(is_segment_name, names)) + (len(old.segments) if old is not None else 0)
    rooms = {wal_directory: size * segments}
    if beside_directory is not None and not is_same_file_system(beside_directory, wal_directory):
        # On one file system each file moves from here to there.
        rooms[beside_directory] = size * len({name for name, _ in wal_beside})
    request = RestoreRequest(
        recovery=recovery,
        tail=tail,
        chain=tuple(head.backup_id for head in chain),
        expected_bytes=expected_bytes(chain or [base], tails[chain[0].backup_id].bytes if chain else tail.bytes),
        data_directory=data_directory,
        tablespaces=tablespaces,
        overwrite_existing=settings.flag("overwrite_existing"),
        wipe=settings.flag("wipe_pgdata"),
        start=settings.flag("start_postgresql_after_restore"),
        archive=private.archive,
        vault_path=private.vault_path,
        cluster_name=private.cluster,
        toolbox=_toolbox(base, settings),
        timeout_seconds=settings.number("restore_timeout"),
        workers=settings.number("parallel_jobs"),
        tablespace_bytes=_tablespace_bytes(base, chain),
        user=settings.text("unix_user") or "",
        beside=rooms,
        port=_port(settings),
        private_wal=wal_directory,
        asked=asked,
        unfinished=_from_its_beginning(unfinished),
        options=restore_options(settings),
        standby=standby,
        retain_days=settings.number("pgdata_backup_retain_days"),
        audit=audit,
        say=audit.say,
        warn=audit.warn,
    )
    prepared = prepare(request, now=now)
    return PreparedStream(prepared, private.owned_by(prepared.target.owner), old)


def _block_base(
    newest: RecordHead, heads: Sequence[RecordHead], target: RecoveryTarget, wal: PromisedWal, *, now: dt.datetime
) -> RecordHead:
    """Return the base that a vault would choose for *target*; *newest* where there is none, to be refused with it."""
    try:
        return plan_recovery([head for head in heads if head.mode == BLOCK_MODE], target, wal, now=now).base
    except (RestoreRefused, NeededWalMissing):
        return newest


def _chain(base: RecordHead, by_age: Sequence[RecordHead]) -> tuple[RecordHead, ...]:
    try:
        return chain_of(base, by_age)
    except RestoreRefused as refusal:
        # Not a partial selection: files of a chain that nobody can put together are no use where they are laid down.
        raise RestoreRefused(
            refusal.message, hint="restore every job of the chain, as far back as the Full, or an older backup"
        ) from None


def _from_its_beginning(unfinished: RestoreState | None) -> RestoreState | None:
    """Return the restore that is gone on with, which gets all files again: this supply always begins with the Full."""
    return msgspec.structs.replace(unfinished, applied=[]) if unfinished is not None else None


def _tablespace_bytes(base: RecordHead, chain: Sequence[RecordHead]) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for head in chain or (base,):
        for tablespace in head.tablespaces:
            sizes[tablespace.oid] = max(tablespace.size_bytes, sizes.get(tablespace.oid, 0))
    return sizes


def _check_hole(recovery: RecoveryPlan) -> None:
    """Refuse to end before WAL that comes as well: who asks for the newest state would get an older one."""
    if recovery.has_hole and recovery.target.kind is TargetKind.LATEST:
        raise RestoreRefused(
            f"WAL is missing from {recovery.wal_end} on, and later WAL is there: a job between those that are restored "
            "is not among them",
            hint="restore that job as well; when it is lost, restore only the jobs before it: before= or jobid=",
        )


def _warn_of_absent_wal(recovery: RecoveryPlan, heads: Sequence[RecordHead], audit: AuditFile) -> None:
    """Say that a job is restored whose WAL is not: who asks for the newest state gets an older one."""
    if recovery.target.kind is not TargetKind.LATEST:
        return
    for head in heads:
        wal = head.wal
        # What a standby has of its last segment is not promised as WAL at all.
        if wal is None or head.from_standby or wal.timeline != recovery.history.timeline:
            continue
        if Lsn.parse(wal.stop) > recovery.wal_end:
            audit.warn(
                f"the WAL of backup {head.backup_id} is not selected, or the catalog has lost its names: it goes on to "
                f"{wal.stop}, and what is announced ends at {recovery.wal_end}, where the recovery may end"
            )
            return


def _plan(
    heads: Sequence[RecordHead],
    base: RecordHead,
    target: RecoveryTarget,
    wal: PromisedWal,
    *,
    now: dt.datetime,
    standby: StandbyPlan | None,
) -> RecoveryPlan:
    if standby is not None and standby.primary is not None:
        return plan_standby_recovery(standby, heads, wal, backup_id=base.backup_id)
    try:
        return plan_recovery(heads, target, wal, now=now, backup_id=base.backup_id)
    except NeededWalMissing as missing:
        raise PartialSelection(missing.message, hint=WHOLE_JOB_HINT) from None
    except RestoreRefused as refusal:
        if _is_before(target, base):
            raise RestoreRefused(
                refusal.message,
                hint=f"{refusal.hint}; for an earlier one restore earlier jobs: "
                f'restore ... before="{base.stop_time[:19].replace("T", " ")}"',
            ) from None
        raise


def _is_before(target: RecoveryTarget, base: RecordHead) -> bool:
    if target.kind is TargetKind.TIME:
        return target.time < dt.datetime.fromisoformat(base.stop_time)
    return target.kind is TargetKind.LSN and target.lsn < Lsn.parse(base.stop_lsn)


def _places(base: RecordHead, settings: Resolved, place: Path | None) -> tuple[Path, dict[int, Path]]:
    """Return the data directory, and the places of the tablespaces that do not go where they were."""
    mapped = tablespace_places(settings.mapping("tablespace_map"), base)
    if place is None:
        return Path(settings.text("pgdata_dir") or base.data_directory), mapped
    if settings.text("pgdata_dir") and settings.origin("pgdata_dir").rank >= Rank.RESTORE:
        raise UsageError(
            f"where={place} and pgdata_dir={settings.text('pgdata_dir')} name two places",
            hint="give where=/ with pgdata_dir, or the directory alone",
        )
    root = place / str(base.details["root"])
    outside = {t.oid: root / "tblspc" / str(t.oid) for t in base.tablespaces if t.location}
    return root / "pgdata", outside | mapped


def _check_apart(wal_directory: Path, others: Iterable[Path]) -> None:
    for other in others:
        if wal_directory == other or other in wal_directory.parents or wal_directory in other.parents:
            raise RestoreRefused(
                f"the WAL of the restore must lie apart from what is restored: {wal_directory} and {other}",
                hint="name another directory in wal_restore_dir",
            )


def _check_identity(data_directory: Path, base: RecordHead) -> None:
    """Refuse to take the place of another cluster, whatever may be overwritten."""
    if not (data_directory / CONTROL_FILE).exists():
        return
    try:
        found = str(int(read_control_file(data_directory).system_identifier))
    except PgkeepError:
        return
    if found != base.system_identifier:
        raise RestoreRefused(
            f"{data_directory} holds another cluster: its system identifier is {found}, "
            f"that of the backup {base.system_identifier}",
            hint="name another directory in pgdata_dir, or move that cluster away yourself",
        )


def _port(settings: Resolved) -> int:
    """Return the port of the restored server; the Plugin line's is that of the server that was backed up."""
    rank = settings.origin("port").rank
    is_meant = rank >= Rank.RESTORE or rank is Rank.PROFILE
    return settings.optional_number("port") or 0 if is_meant else 0


def _toolbox(base: RecordHead, settings: Resolved) -> Toolbox | None:
    """Return the programs of the backup's major; None where there are none and nothing is to be started here."""
    bin_dir = settings.text("bin_dir")
    try:
        return toolbox_for_server(base.server_version // 10000, bin_dir=Path(bin_dir) if bin_dir else None)
    except ToolError:
        if settings.flag("start_postgresql_after_restore"):
            raise
        return None
