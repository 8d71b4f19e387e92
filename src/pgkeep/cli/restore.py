"""``pgkeep restore``."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, print_line, say, warn
from pgkeep.cli.progress import Meter
from pgkeep.errors import RestoreRefused, UsageError
from pgkeep.jobs.restoring.settings import audit_file, check_allowed
from pgkeep.modes import MODES
from pgkeep.settings.parameter import PHYSICAL_MODES
from pgkeep.streams.item import DetachedItem, StreamedItem
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault

if TYPE_CHECKING:
    from pgkeep.jobs.restoring.audit_file import AuditFile

DUMP_SETTINGS = ("target_database", "target_table", "new_database", "output_dir", "restore_globals")


def run(call: Call, *, as_json: bool) -> None:
    """Restore a cluster, or dumps."""
    settings = call.settings
    with audit_file(settings, f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}", say=say, warn=warn).kept():
        check_allowed(settings)
    with call.cluster() as cluster, cluster.lock(shared=True, verb="restore"):
        heads = readable(call, cluster)
        mode = _restore_mode(call, heads)
        if mode.endswith("dump"):
            from pgkeep.cli.restore_dump import restore_dumps

            restore_dumps(call, cluster, heads, as_json=as_json)
        else:
            physical = [head for head in heads if head.mode in ((mode,) if mode != "auto" else PHYSICAL_MODES)]
            restore_cluster(call, cluster, physical, as_json=as_json)


def restore_cluster(call: Call, cluster: ClusterVault, heads: list[RecordHead], *, as_json: bool) -> None:
    """Restore a cluster from its physical backups."""
    now = dt.datetime.now(dt.UTC)
    audit = audit_file(call.settings, f"{now:%Y%m%dT%H%M%SZ}", say=say, warn=warn)
    if call.settings.flag("dry_run_restore"):
        _restore_cluster(call, cluster, heads, audit, now, as_json=as_json)
        return
    with audit.kept():
        _restore_cluster(call, cluster, heads, audit, now, as_json=as_json)


def _restore_cluster(
    call: Call, cluster: ClusterVault, heads: list[RecordHead], audit: AuditFile, now: dt.datetime, *, as_json: bool
) -> None:
    from pgkeep.jobs.recovery.block_chain import chain_of, expected_bytes
    from pgkeep.jobs.recovery.plan import plan_recovery
    from pgkeep.jobs.recovery.standby_plan import plan_standby_recovery, standby_plan
    from pgkeep.jobs.restore import restore
    from pgkeep.jobs.restoring.combine import with_combining
    from pgkeep.jobs.restoring.old_wal import archive_old_wal
    from pgkeep.jobs.restoring.plan import prepare
    from pgkeep.jobs.restoring.request import RestoreRequest
    from pgkeep.jobs.restoring.settings import recovery_target, restore_options, tablespace_places
    from pgkeep.jobs.restoring.unfinished import asked_for, unfinished_restore
    from pgkeep.pg.lsn import Lsn
    from pgkeep.server.tools import toolbox_for_server
    from pgkeep.vault.stored_chain import StoredChain
    from pgkeep.vault.wal_view import WalView

    settings = call.settings
    target = recovery_target(settings, now)
    standby = standby_plan(settings, heads)
    asked = asked_for(
        target,
        tablespaces=settings.mapping("tablespace_map"),
        port=settings.optional_number("port") or 0,
        is_wiped=settings.flag("wipe_pgdata"),
        backup_id=settings.text("backup_id") or "",
        standby_of=standby.where if standby is not None else "",
        combine=settings.get("combine"),
    )
    place = settings.text("pgdata_dir") or (heads[-1].data_directory if heads else "")
    unfinished = unfinished_restore(Path(place), asked) if place else None
    with WalView(cluster.archive, tell=audit.say) as view:
        old_end, is_dry = Lsn(0), settings.flag("dry_run_restore")
        if settings.flag("overwrite_existing") and unfinished is None and standby is None:
            old_end = archive_old_wal(
                Path(place), cluster.archive, heads, target, view, say=audit.say, warn=audit.warn, is_dry=is_dry
            )
        backup_id = unfinished.backup_id if unfinished is not None else settings.text("backup_id") or ""
        try:
            if standby is not None and standby.primary is not None:
                recovery = plan_standby_recovery(standby, heads, view, backup_id=backup_id)
            else:
                recovery = plan_recovery(
                    heads,
                    target,
                    view,
                    now=now,
                    backup_id=backup_id,
                    find_restore_point=view.restore_point,
                    times_of=view.times,
                )
        except RestoreRefused as refusal:
            if is_dry and old_end:
                refusal.hint += f"; the plan knows what is archived only, the restore itself what leads on to {old_end}"
            raise
    base = recovery.base
    chain = chain_of(base, heads)
    with StoredChain(cluster, [head.backup_id for head in chain] or [base.backup_id]) as stored:
        data_directory = Path(settings.text("pgdata_dir") or base.data_directory)
        request = RestoreRequest(
            recovery=recovery,
            tail=stored.newest.tail,
            chain=tuple(head.backup_id for head in chain),
            expected_bytes=expected_bytes(chain or [base], stored.members[0].tail.bytes),
            data_directory=data_directory,
            tablespaces=tablespace_places(settings.mapping("tablespace_map"), base),
            overwrite_existing=settings.flag("overwrite_existing"),
            wipe=settings.flag("wipe_pgdata"),
            start=settings.flag("start_postgresql_after_restore"),
            archive=cluster.archive,
            vault_path=call.vault_path,
            cluster_name=call.cluster_name,
            toolbox=toolbox_for_server(base.server_version // 10000, bin_dir=call.bin_dir),
            timeout_seconds=settings.number("restore_timeout"),
            workers=call.workers,
            tablespace_bytes=stored.tablespace_bytes,
            user=settings.text("unix_user") or "",
            port=settings.optional_number("port") or 0,
            asked=asked,
            unfinished=unfinished,
            options=restore_options(settings),
            standby=standby,
            retain_days=settings.number("pgdata_backup_retain_days"),
            audit=audit,
            say=audit.say,
            warn=audit.warn,
        )
        request = with_combining(
            request, settings.get("combine"), chain_bytes=sum(m.tail.bytes for m in stored.members)
        )
        prepared = prepare(request, now=now)
        if settings.flag("dry_run_restore"):
            _print_plan(list(prepared.lines()), as_json=as_json)
            return
        for line in prepared.lines():
            audit.say(line)
        done = len(prepared.applied)
        with Meter("laying down", total_bytes=sum(member.tail.bytes for member in stored.members[done:])) as meter:
            result = restore(prepared, Metered(functools.partial(stored.items, done=done), meter))
    if as_json:
        end = result.end
        print_json(
            {
                "backup_id": base.backup_id,
                "data_directory": str(data_directory),
                "files": result.files,
                "bytes": result.bytes,
                "started": end is not None,
                "replayed_to": str(end.lsn) if end is not None else "",
                "timeline": int(end.timeline) if end is not None else int(recovery.timeline),
                "promoted": end.is_promoted if end is not None else False,
                "databases": list(result.databases),
            }
        )


class Metered:
    """A supply that tells a meter what passes."""

    def __init__(self, items: Callable[[], Iterator[Any]], meter: Meter) -> None:
        self._items = items
        self._meter = meter

    def items(self) -> Iterator[DetachedItem | StreamedItem]:
        """Yield the items."""
        for item in self._items():
            self._meter.add(item.header.size)
            yield item


def readable(call: Call, cluster: ClusterVault) -> list[RecordHead]:
    """Return the heads of all backups but those that cannot be read: one that is damaged must not cost the others."""
    heads = []
    for found in cluster.scan_backups():
        if isinstance(found, RecordHead):
            heads.append(found)
        elif found.backup_id == call.settings.text("backup_id"):
            raise found.error
        else:
            warn(f"left out: {found.error}")
    return heads


def _restore_mode(call: Call, heads: list[RecordHead]) -> str:
    """Return ``dump``, the physical mode that is asked for, or ``auto`` for any of those."""
    wanted = call.settings.get("restore_mode")
    if wanted != "auto":
        if wanted not in MODES:
            expected = ", ".join(["auto", *MODES])
            raise UsageError(f"restore_mode {wanted} is not in this version of pgkeep: expected one of {expected}")
        return str(wanted)
    chosen = call.settings.text("backup_id")
    for head in heads:
        if head.backup_id == chosen:
            return head.mode
    if any(call.settings.is_given(name) for name in DUMP_SETTINGS):
        return "dump"
    return "auto" if any(head.mode in PHYSICAL_MODES for head in heads) or not heads else "dump"


def _print_plan(lines: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"plan": lines})
        return
    for line in lines:
        print_line(line)
