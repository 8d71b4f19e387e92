"""
Bring a cluster back: six phases, each with its line in the log.

1 pre-check · 2 lay-down · 3 recovery-config · 4 start-and-replay · 5 topology · 6 verify-and-cleanup. Phase 1 refuses
whatever can be known to fail, and touches nothing; its result is the plan that ``--plan`` prints.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from pgkeep.datadir.instance import PrivateAccess
from pgkeep.datadir.lay_down import LaidDown, LayDown
from pgkeep.datadir.owner import Owner
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.fenced_server import FencedServer, Voice, archive_socket_of
from pgkeep.jobs.phase_log import PhaseLog
from pgkeep.jobs.planned_state import planned_state
from pgkeep.jobs.recovery_config import describe_target, settings_of_recovery, write_recovery_files
from pgkeep.jobs.recovery_plan import raised_minimums
from pgkeep.jobs.replay import ReplayEnd
from pgkeep.jobs.restore_plan import PreparedRestore
from pgkeep.jobs.restore_request import RestoreRequest
from pgkeep.jobs.set_aside import move_all
from pgkeep.pg.recovery import TargetKind
from pgkeep.streams.item import DetachedItem, ItemHeader, StreamedItem
from pgkeep.streams.record import RecordHead


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
    Run phases 2 to 6 of a prepared restore.

    Args:
        prepared: What passed phase 1.
        supply: Gives the files.
        ledger: Judges them when all have come; None for a supply that checks what it gives.

    Raises:
        PgkeepError: A phase failed. Before the end of phase 2 the target is marked as unfinished and another restore
            may clear it; what was moved away stays where the plan said.
    """
    request = prepared.request
    log = PhaseLog(request.say)
    log.done("OK")
    move_all(prepared.aside)
    for aside in prepared.aside:
        request.say(f"moved {aside.path} to {aside.new_path}")
    prepared, laid = _lay_down(prepared, supply, ledger)
    request = prepared.request
    files, size = laid.files, laid.bytes
    log.done(f"{size_text(size)} restored in {files} files")
    state = planned_state(prepared, restore_id=f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}")
    voice = Voice(request.say, request.warn)
    if not request.start:
        settings = settings_of_recovery(state, state.target, socket=None)
        write_recovery_files(state, settings, warn=voice.warn)
        log.done(describe_target(settings))
        _say_what_is_left(request)
        return RestoreResult(files, size, None)
    access = PrivateAccess.make(state.owner_of_files or Owner.of(state.directory))
    try:
        settings = settings_of_recovery(state, state.target, socket=archive_socket_of(access))
        write_recovery_files(state, settings, warn=voice.warn)
        log.done(describe_target(settings))
        end, databases = FencedServer(state, access, voice).run(log)
    finally:
        if not (access.directory / f".s.PGSQL.{access.port}").exists():
            access.remove()
    return RestoreResult(files, size, end, databases)


def _say_what_is_left(request: RestoreRequest) -> None:
    request.say("the server was not started: its next start replays to the target")
    if request.target.kind is TargetKind.TIME:
        request.say(
            "if no commit follows that time, the server stops there: start it without recovery_target_time then"
        )
    if request.is_elsewhere:
        request.say("archiving is off in this copy; ALTER SYSTEM RESET archive_mode brings it back")
    request.say("logical replication is off until ALTER SYSTEM RESET max_logical_replication_workers")


def _lay_down(prepared: PreparedRestore, supply: Supply, ledger: Ledger | None) -> tuple[PreparedRestore, LaidDown]:
    request = prepared.request
    prepared.target.begin()
    heads: list[RecordHead] = []

    def settle() -> None:
        if ledger is not None:
            heads.append(ledger.settle())

    with LayDown(
        prepared.target,
        root=str(request.base.details["root"]),
        workers=request.workers,
        expected_bytes=request.tail.bytes,
        note=ledger.note if ledger is not None else None,
    ) as lay_down:
        for item in supply.items():
            lay_down.accept(item)
        laid = lay_down.finish(settle)
    for head in heads:
        # What phase 1 knew of it may have been trimmed.
        minimums = raised_minimums(request.recovery.minimums, head)
        recovery = replace(request.recovery, base=head, minimums=minimums)
        prepared = replace(prepared, request=replace(request, recovery=recovery))
    return prepared, laid
