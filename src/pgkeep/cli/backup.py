"""``pgkeep backup``."""

from __future__ import annotations

import datetime as dt
from contextlib import AbstractContextManager

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, print_line, say, warn
from pgkeep.cli.progress import ProgressSink
from pgkeep.errors import VaultError
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.backup import RecordingSink, backup
from pgkeep.jobs.connection import open_source
from pgkeep.modes import mode_named
from pgkeep.modes.contract import BackupRequest, Plan
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.streams.record import Level, RecordHead, RecordTail
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.history import VaultHistory

LEVELS = {"full": Level.FULL, "differential": Level.DIFFERENTIAL, "incremental": Level.INCREMENTAL}


def run(call: Call, *, plan_only: bool, as_json: bool) -> None:
    """Make one backup into the vault, or say what it would be."""
    settings = call.settings
    mode = mode_named(settings.get("mode"))
    request = BackupRequest(
        cluster=call.cluster_name,
        prefix="@postgresql",
        mode=mode.name,
        level=LEVELS[settings.get("level")],
        begin=dt.datetime.now(dt.UTC),
        options=mode.options(settings.get),
        say=_say_nothing if plan_only else say,
        warn=warn,
        track_replication_state=settings.flag("track_replication_state"),
        standby_hosts=settings.names("standby_host"),
    )
    # Locked before anything is chosen: the base must not expire meanwhile, nor another job take the same id.
    with (
        call.cluster() as cluster,
        cluster.lock_for_backup() as locks,
        open_source(settings, say=say, warn=warn) as server,
    ):
        if not mode.name.endswith("dump"):
            _check_identity(cluster, server)
        if plan_only:
            plan = mode.plan(request, server=server, history=VaultHistory(cluster))
            _print_plan(plan, as_json=as_json)
            return

        def open_sink(plan: Plan) -> AbstractContextManager[RecordingSink]:
            sink = cluster.begin_backup(
                plan.backup_id,
                locks=locks,
                workers=call.workers,
                compression_level=settings.number("zstd_level"),
                same_as=plan.base.head.files_from if plan.base is not None and plan.compares_files else "",
            )
            return ProgressSink(sink)

        head, tail = backup(request, mode=mode, server=server, history=VaultHistory(cluster), open_sink=open_sink)
    _report(head, tail, as_json=as_json)


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    lines = [plan.reason] if plan.reason else []
    lines += plan.lines()
    if as_json:
        print_json({"plan": lines})
        return
    for line in lines:
        print_line(line)


def _say_nothing(_: str) -> None:
    """Keep for stdout what a plan says."""


def _check_identity(cluster: ClusterVault, server: Server) -> None:
    """Refuse before the first byte what the WAL archive would refuse after the last: another cluster's WAL."""
    known, found = cluster.identity.system_identifier, str(int(queries.identify(server).system_identifier))
    if known != found:
        raise VaultError(
            f'cluster "{cluster.name}" in the vault has system identifier {known}, the server has {found}',
            hint=f"if the cluster was made anew: pgkeep init {cluster.name} --new-system",
        )


def _report(head: RecordHead, tail: RecordTail, *, as_json: bool) -> None:
    wal = f", WAL to {head.wal.stop}" if head.wal is not None else ""
    say(
        f"backup {head.backup_id} is complete: {tail.files} files, {size_text(tail.bytes)}, "
        f"{size_text(tail.stored_bytes)} stored{wal}"
    )
    if head.is_damaged:
        warn("the backup holds damaged pages: see above; expire keeps the last backup without any")
    if as_json:
        print_json(
            {
                "backup_id": head.backup_id,
                "cluster": head.cluster,
                "mode": head.mode,
                "level": head.level.word,
                "base": head.base,
                "files": tail.files,
                "bytes": tail.bytes,
                "sent_files": tail.sent_files,
                "sent_bytes": tail.sent_bytes,
                "stored_bytes": tail.stored_bytes,
                "start_lsn": head.start_lsn,
                "stop_lsn": head.stop_lsn,
                "wal_start": head.wal.start if head.wal is not None else "",
                "wal_stop": head.wal.stop if head.wal is not None else "",
                "pages_checked": head.pages_checked,
                "damaged_pages": sum(damaged.count for damaged in head.damaged),
                "warnings": head.warnings,
            }
        )
