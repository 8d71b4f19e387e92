"""
Prove that a point can be reached: a restore for real, into a scratch directory, checked and thrown away.

It is the restore, phase by phase, but for its end: the server is stopped behind its fence and never opened. The vault
keeps what came of it, a failure as well (``vault/proofs.py``). Nothing else is written outside the scratch directory.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgkeep.datadir.owner import owner_of_restored_files
from pgkeep.errors import PgkeepError, RestoreRefused, SettingsError, UsageError
from pgkeep.jobs.recovery.block_chain import chain_of, expected_bytes
from pgkeep.jobs.recovery.plan import RecoveryPlan, plan_recovery
from pgkeep.jobs.restore import RestoreResult, Supply, restore
from pgkeep.jobs.restoring.combine import with_combining
from pgkeep.jobs.restoring.plan import PreparedRestore, prepare
from pgkeep.jobs.restoring.request import RestoreRequest
from pgkeep.jobs.restoring.scratch import Scratch
from pgkeep.pg.recovery import RecoveryTarget, TargetAction
from pgkeep.server.tools import toolbox_for_server
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.proofs import Proof, add_proof
from pgkeep.vault.stored_chain import StoredChain
from pgkeep.vault.wal_view import WalView

_SHOWN_LOG_LINES = 20
_SHOWN_LOG_BYTES = 16 << 10
_LITTLE_ROOM_BYTES = 64 << 20
_QUIET = {"restore_replication_state": False}

Say = Callable[[str], None]
Watch = Callable[[StoredChain], AbstractContextManager[Supply]]
"""Gives the files of a chain, watched by whatever shows progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillRequest:
    """
    What to prove, and where.

    Attributes:
        cluster: In the vault; locked against deletes.
        vault_path: The vault that it is in.
        cluster_name: Its name there.
        heads: Of the physical backups to choose from, oldest first.
        target: What to replay to; the action is not looked at.
        backup_id: Of the backup to begin with; empty to choose.
        scratch_dir: Absolute.
        apart: Directories that it must be apart from, beside the vault and the places of the cluster.
        bin_dir: Where PostgreSQL's programs are; None to search.
        user: Who runs the restored server; empty to find out.
        timeout_seconds: For the replay; 0 waits for ever.
        workers: Threads.
        combine: As the parameter of that name.
        options: For the checks: names of parameters and their values.
        watch: See above.
        say: Takes one line for the log.
        warn: Takes one warning.
    """

    cluster: ClusterVault
    vault_path: Path
    cluster_name: str
    heads: Sequence[RecordHead]
    target: RecoveryTarget
    backup_id: str = ""
    scratch_dir: Path
    apart: Sequence[Path] = ()
    bin_dir: Path | None = None
    user: str = ""
    timeout_seconds: int = 3600
    workers: int = 2
    combine: str = "in_place"
    options: Mapping[str, Any]
    watch: Watch
    say: Say
    warn: Say


@dataclass(frozen=True, slots=True)
class Drilled:
    """A point that is proved: the evidence, its file, and what was restored."""

    proof: Proof
    path: Path
    result: RestoreResult


def drill(request: DrillRequest) -> Drilled:
    """
    Prove the point that *request* names, and keep the evidence.

    Raises:
        RestoreRefused: The scratch directory, or something else of this host, is not as it must be; nothing was done
            and nothing is kept.
        PgkeepError: The point was not reached, or what was restored there did not pass; the evidence says failed.
    """
    began = dt.datetime.now(dt.UTC)
    target = replace(request.target, action=TargetAction.PROMOTE)
    heads = list(request.heads)
    scratch = Scratch(request.scratch_dir)
    scratch.check_apart([request.vault_path, *request.apart, *_places_of(heads)])
    recorded = str(heads[-1].details.get("owner", "")) if heads else ""
    owner = owner_of_restored_files(scratch.data_directory, user=request.user, recorded=recorded)
    with scratch.held(
        cluster=request.cluster_name, began=began.isoformat(timespec="seconds"), owner=owner, say=request.say
    ):
        with _judged(request, target, request.backup_id):
            recovery = _planned(request, target, heads, began)
        backup_id = recovery.base.backup_id
        with _judged(request, target, backup_id):
            chain = chain_of(recovery.base, heads)
            stored = StoredChain(request.cluster, [head.backup_id for head in chain] or [backup_id])
        with stored:
            # What this refuses is the host's fault, not the backup's.
            prepared = prepare(_restore_request(request, recovery, chain, stored, scratch), now=began)
            for line in prepared.lines():
                request.say(line)
            with _judged(request, target, backup_id, prepared), request.watch(stored) as supply:
                result = restore(prepared, supply)
        end = result.end
        assert end is not None
        proof = Proof(
            time=_now(),
            backup_id=backup_id,
            target=str(target),
            reached_time=end.last_commit.isoformat() if end.last_commit is not None else "",
            reached_lsn=str(end.lsn),
            timeline=int(recovery.timeline),
            result="proved",
        )
        return Drilled(proof, add_proof(request.cluster.directory, proof), result)


def _places_of(heads: Sequence[RecordHead]) -> Iterator[Path]:
    """Yield where the cluster has its files, or had them."""
    for head in heads:
        if head.data_directory:
            yield Path(head.data_directory)
        yield from (Path(tablespace.location) for tablespace in head.tablespaces if tablespace.location)


def _planned(request: DrillRequest, target: RecoveryTarget, heads: list[RecordHead], now: dt.datetime) -> RecoveryPlan:
    with WalView(request.cluster.archive, tell=request.say) as view:
        return plan_recovery(
            heads,
            target,
            view,
            now=now,
            backup_id=request.backup_id,
            find_restore_point=view.restore_point,
            times_of=view.times,
        )


def _restore_request(
    request: DrillRequest,
    recovery: RecoveryPlan,
    chain: Sequence[RecordHead],
    stored: StoredChain,
    scratch: Scratch,
) -> RestoreRequest:
    base = recovery.base
    for tablespace in recovery.later_tablespaces:
        # There is no map for what the server makes itself: it would be made where the cluster has its own.
        raise RestoreRefused(
            f"the replay would make tablespace {tablespace.oid} in {tablespace.location}, out of the scratch directory",
            hint="make a new Full or Differential, which has it, or drill to a moment before it was made",
        )
    wanted = RestoreRequest(
        recovery=recovery,
        tail=stored.newest.tail,
        chain=tuple(head.backup_id for head in chain),
        expected_bytes=expected_bytes(chain or [base], stored.members[0].tail.bytes),
        data_directory=scratch.data_directory,
        tablespaces={
            tablespace.oid: scratch.tablespace(tablespace.oid) for tablespace in base.tablespaces if tablespace.location
        },
        start=True,
        archive=request.cluster.archive,
        vault_path=request.vault_path,
        cluster_name=request.cluster_name,
        toolbox=toolbox_for_server(base.server_version // 10000, bin_dir=request.bin_dir),
        timeout_seconds=request.timeout_seconds,
        workers=request.workers,
        user=request.user,
        tablespace_bytes=stored.tablespace_bytes,
        options=dict(request.options) | _QUIET,
        is_drill=True,
        say=request.say,
        warn=request.warn,
    )
    return with_combining(wanted, request.combine, chain_bytes=sum(member.tail.bytes for member in stored.members))


@contextlib.contextmanager
def _judged(
    request: DrillRequest, target: RecoveryTarget, backup_id: str, prepared: PreparedRestore | None = None
) -> Iterator[None]:
    """Keep what fails in the block as evidence; what was asked wrongly is none."""
    try:
        yield
    except (UsageError, SettingsError):
        raise
    except PgkeepError as error:
        if prepared is not None and (words := _last_words(prepared)):
            request.say(f"the restored server said last:\n{words}")
        proof = Proof(
            time=_now(),
            backup_id=backup_id,
            target=str(target),
            reached_time="",
            reached_lsn="",
            timeline=0,
            result="failed",
        )
        path = add_proof(request.cluster.directory, proof)
        advice = error.hint
        if prepared is not None:
            # What the restore advises is to go on with it, and it is thrown away.
            advice = (
                f"{_room(request.scratch_dir)}mend the reason, or make a new Full if it is in the backup or its WAL "
                f'("pgkeep verify {request.cluster_name}" tells), and drill again'
            )
        error.hint = f"not proved, see {path}" + (f"; {advice}" if advice else "")
        raise


def _last_words(prepared: PreparedRestore) -> str:
    path = prepared.request.data_directory.with_name(f"{prepared.request.data_directory.name}.pgkeep-restore.log")
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _SHOWN_LOG_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_SHOWN_LOG_LINES:])


def _room(place: Path) -> str:
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    return f"the file system of {place} has {free} bytes left; " if free < _LITTLE_ROOM_BYTES else ""


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat()
