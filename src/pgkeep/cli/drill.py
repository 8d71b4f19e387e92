"""``pgkeep drill``."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, say, warn
from pgkeep.cli.progress import Meter
from pgkeep.cli.restore import Metered, readable
from pgkeep.errors import UsageError
from pgkeep.jobs.restoring.settings import check_allowed, recovery_target, restore_options
from pgkeep.settings.parameter import PHYSICAL_MODES

if TYPE_CHECKING:
    from pgkeep.jobs.drill import Drilled
    from pgkeep.jobs.restore import Supply
    from pgkeep.vault.stored_chain import StoredChain


def run(call: Call, *, as_json: bool) -> None:
    """Prove a point."""
    from pgkeep.jobs.drill import DrillRequest, drill

    settings = call.settings
    check_allowed(settings)
    scratch_dir = Path(settings.require("scratch_dir"))
    if not scratch_dir.is_absolute():
        raise UsageError(f"scratch_dir must be an absolute path, found {scratch_dir}")
    with call.cluster() as cluster, cluster.lock(shared=True, verb="drill"):
        drilled = drill(
            DrillRequest(
                cluster=cluster,
                vault_path=call.vault_path,
                cluster_name=call.cluster_name,
                heads=[head for head in readable(call, cluster) if head.mode in PHYSICAL_MODES],
                target=recovery_target(settings, dt.datetime.now(dt.UTC)),
                backup_id=settings.text("backup_id") or "",
                scratch_dir=scratch_dir,
                apart=[Path(place) for name in ("spool_dir", "pgdata_dir") if (place := settings.text(name))],
                bin_dir=call.bin_dir,
                user=settings.text("unix_user") or "",
                timeout_seconds=settings.number("restore_timeout"),
                workers=call.workers,
                combine=settings.get("combine"),
                options=restore_options(settings),
                watch=_watched,
                say=say,
                warn=warn,
            )
        )
    proof = drilled.proof
    last = f", last commit {proof.reached_time}" if proof.reached_time else ""
    say(f"PROVED: backup {proof.backup_id} to {proof.target}: {proof.reached_lsn} on timeline {proof.timeline}{last}")
    say(f"evidence: {drilled.path}")
    if as_json:
        print_json(_document(drilled))


@contextlib.contextmanager
def _watched(stored: StoredChain) -> Iterator[Supply]:
    with Meter("laying down", total_bytes=sum(member.tail.bytes for member in stored.members)) as meter:
        yield Metered(stored.items, meter)


def _document(drilled: Drilled) -> dict[str, Any]:
    result = drilled.result
    facts: dict[str, Any] = msgspec.to_builtins(drilled.proof)
    return facts | {
        "evidence": str(drilled.path),
        "files": result.files,
        "bytes": result.bytes,
        "databases": list(result.databases),
    }
