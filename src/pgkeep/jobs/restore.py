"""
Bring a cluster back: six phases, each with its line in the log.

1 pre-check · 2 lay-down · 3 recovery-config · 4 start-and-replay · 5 topology · 6 verify-and-cleanup. Phase 1 refuses
whatever can be known to fail, and touches nothing; its result is the plan that ``--plan`` prints.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pgkeep.datadir.lay_down import LaidDown, LayDown
from pgkeep.datadir.staging import remove_staging
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import PgkeepError
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.recovery.plan import raised_minimums
from pgkeep.jobs.restoring.clear_away import check_clear, clear_away, is_begun, link_wal
from pgkeep.jobs.restoring.directory import RestoreDirectory, RestoreRun
from pgkeep.jobs.restoring.fenced_server import Voice
from pgkeep.jobs.restoring.old_directories import remove_old
from pgkeep.jobs.restoring.old_server import start_old_server, stop_old_server
from pgkeep.jobs.restoring.phase_log import PHASES, PhaseLog
from pgkeep.jobs.restoring.phases import run_phases
from pgkeep.jobs.restoring.plan import PreparedRestore
from pgkeep.jobs.restoring.planned_state import planned_state
from pgkeep.jobs.restoring.replay import ReplayEnd
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.jobs.restoring.topology import stage_scripts
from pgkeep.streams.item import DetachedItem, ItemHeader, StreamedItem
from pgkeep.streams.record import RecordHead

if TYPE_CHECKING:
    from pgkeep.datadir.combined import CombinedLayDown


class Supply(Protocol):
    """Where the files of one backup come from."""

    def items(self) -> Iterator[DetachedItem | StreamedItem]:
        """Yield every item of the backup; digests are checked as the content passes."""
        ...


class Ledger(Protocol):
    """What arrives, and what should have: for a supply that cannot check its items as they pass."""

    def note(self, header: ItemHeader, size: int, digest: str) -> None:
        """Take note of what was laid down; called in any thread."""
        ...

    def settle(self) -> RecordHead:
        """
        Remove what is too much, and return the head of the record that decided.

        Raises:
            BackupUnusable: What was laid down is not the backup.
        """
        ...


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did; *end* is None when the server was not started."""

    files: int
    bytes: int
    end: ReplayEnd | None
    databases: tuple[str, ...] = ()


def restore(prepared: PreparedRestore, supply: Supply, *, ledger: Ledger | None = None) -> RestoreResult:
    """
    Run phases 2 to 6 of a prepared restore, or what an earlier run of the same restore has left of them.

    Args:
        prepared: What passed phase 1.
        supply: Gives the files; not asked when they are there already.
        ledger: Judges them when all have come; None for a supply that checks what it gives.

    Raises:
        PgkeepError: A phase failed. What the state of the restore says is done stays done: the same restore goes on
            from there, and ``pgkeep rollback`` undoes it.
    """
    request = prepared.request
    directory = RestoreDirectory(request.data_directory)
    voice = Voice(request.say, request.warn)
    with directory.held(prepared.target.owner):
        run = _begin(prepared, directory)
        if request.audit is not None:
            request.audit.begin(directory.path)
            run.record(audit_file=str(request.audit.path or ""))
        log = PhaseLog(voice.say, phases_done=0 if request.unfinished is None else run.state.phases_done)
        files = size = 0
        if request.unfinished is None:
            log.done("OK")
        if run.state.phases_done < 2:
            _clear(run, voice)
            check_clear(prepared.target, run.state)
            prepared, laid = _lay_down(prepared, supply, ledger, run)
            link_wal(run.state)
            files, size = laid.files, laid.bytes
            run.record(**_learned(prepared, run.state), phases_done=2)
            stage_scripts(run)
            log.done(f"{size_text(size)} restored in {files} files")
        end, databases = run_phases(run, voice, is_started=request.start)
    if end is not None and end.is_promoted:
        remove_old(run.state, retain_days=request.retain_days, say=voice.say)
    return RestoreResult(files, size, end, databases)


def _begin(prepared: PreparedRestore, directory: RestoreDirectory) -> RestoreRun:
    """Write the state down, before anything is touched; or take up the one that is there."""
    request, unfinished = prepared.request, prepared.request.unfinished
    if unfinished is not None:
        request.say(f"going on with the restore {unfinished.restore_id}, which stopped {_place_of(unfinished)}")
        run = RestoreRun(directory, unfinished)
        if unfinished.phases_done < 2:
            run.state = planned_state(prepared, restore_id=unfinished.restore_id)
            if unfinished.asides or unfinished.wiped:
                names = ("asides", "wiped", "is_wiping", "is_cleared", "wal_link", "wal_directory")
                run.state = msgspec.structs.replace(run.state, **{n: getattr(unfinished, n) for n in names})
        run.record(is_asked_to_start=request.start)
        stage_scripts(run)
        return run
    name = request.audit.name if request.audit is not None else f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
    run = RestoreRun(directory, planned_state(prepared, restore_id=name))
    run.record()
    stage_scripts(run)
    return run


def _clear(run: RestoreRun, voice: Voice) -> None:
    """Stop the server that is replaced, and empty the places of the restore; or leave all as it was."""
    if run.state.is_cleared:
        return
    stop_old_server(run.state, say=voice.say, warn=voice.warn)
    try:
        clear_away(run, voice.say, voice.warn)
    except PgkeepError:
        if not is_begun(run.state):
            start_old_server(run.state, say=voice.say, warn=voice.warn)
        raise


def _place_of(state: RestoreState) -> str:
    return f"behind phase {state.phases_done} ({PHASES[state.phases_done - 1]})"


def _learned(prepared: PreparedRestore, state: RestoreState) -> dict[str, Any]:
    """Return what is known better now that the record itself has come."""
    planned = planned_state(prepared, restore_id=state.restore_id)
    names = (
        "backup_label",
        "tablespace_map",
        "configuration",
        "minimums",
        "recovery_settings",
        "superuser",
        "replication",
        "left_out",
        "libraries",
    )
    return {name: getattr(planned, name) for name in names}


def _lay_down(
    prepared: PreparedRestore, supply: Supply, ledger: Ledger | None, run: RestoreRun
) -> tuple[PreparedRestore, LaidDown]:
    request = prepared.request
    if not prepared.applied:
        with write_errors(f"begin in {prepared.target.data_directory}"):
            prepared.target.begin()
    remove_staging(prepared.target.data_directory)
    heads: list[RecordHead] = []

    def settle() -> None:
        if ledger is not None:
            heads.append(ledger.settle())

    with _work(prepared, ledger, run) as lay_down:
        for item in supply.items():
            lay_down.accept(item)
        laid = lay_down.finish(settle)
    for head in heads:
        # What phase 1 knew of it may have been trimmed.
        minimums = raised_minimums(request.recovery.minimums, head)
        recovery = replace(request.recovery, base=head, minimums=minimums)
        prepared = replace(prepared, request=replace(request, recovery=recovery))
    return prepared, laid


def _work(prepared: PreparedRestore, ledger: Ledger | None, run: RestoreRun) -> LayDown | CombinedLayDown:
    request = prepared.request
    root, note = str(request.base.details["root"]), ledger.note if ledger is not None else None

    def applied(backup_id: str) -> None:
        if len(request.chain) > 1:
            request.say(f"applied backup {backup_id}, {request.chain.index(backup_id) + 1} of {len(request.chain)}")

    if not request.chain:
        return LayDown(
            prepared.target, root=root, workers=request.workers, expected_bytes=request.expected_bytes, note=note
        )
    # They bring numpy, which other restores do without.
    if request.combine is not None:
        from pgkeep.datadir.combined import CombinedLayDown
        from pgkeep.jobs.restoring.combine import combine_with

        return CombinedLayDown(
            prepared.target,
            root=root,
            chain=request.chain,
            workers=request.workers,
            expected_bytes=request.expected_bytes,
            combine=combine_with(request.combine, request.say),
        )
    from pgkeep.datadir.roll_forward import RollForward

    return RollForward(
        prepared.target,
        root=root,
        chain=request.chain,
        workers=request.workers,
        expected_bytes=request.expected_bytes,
        note=note,
        done=len(prepared.applied),
        applied=applied,
        lasting=lambda count: run.record(applied=list(request.chain[:count])),
    )
