"""``pgkeep restore``."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, print_line, say, warn
from pgkeep.cli.program import archive_words, has_client, server_command
from pgkeep.cli.progress import Meter
from pgkeep.errors import RestoreRefused, UsageError
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, parse_target
from pgkeep.streams.item import DetachedItem, StreamedItem
from pgkeep.streams.record import RecordHead
from pgkeep.vault.vault import ClusterVault

DUMP_SETTINGS = ("target_database", "new_database", "output_dir", "restore_globals")


def run(call: Call, *, as_json: bool) -> None:
    """Restore a cluster, or dumps."""
    settings = call.settings
    if not settings.flag("allow_restore"):
        raise RestoreRefused(
            "restores are forbidden on this host", hint="allow_restore = no stands in the configuration file"
        )
    with call.cluster() as cluster, cluster.lock(shared=True, verb="restore"):
        heads = _readable(call, cluster)
        mode = _restore_mode(call, heads)
        if mode == "dump":
            from pgkeep.cli.restore_dump import restore_dumps

            restore_dumps(call, cluster, heads, as_json=as_json)
        else:
            restore_cluster(call, cluster, heads, as_json=as_json)


def restore_cluster(call: Call, cluster: ClusterVault, heads: list[RecordHead], *, as_json: bool) -> None:
    """Restore a cluster from its physical backups."""
    from pgkeep.jobs.recovery_plan import plan_recovery
    from pgkeep.jobs.restore import restore
    from pgkeep.jobs.restore_plan import prepare
    from pgkeep.jobs.restore_request import RestoreRequest
    from pgkeep.server.tools import toolbox_for_server
    from pgkeep.vault.survey import survey
    from pgkeep.vault.wal_view import WalView

    settings, now = call.settings, dt.datetime.now(dt.UTC)
    target = _target(call, now)
    view = WalView(cluster.archive)
    recovery = plan_recovery(
        [head for head in heads if head.mode == "pitr"],
        target,
        view,
        now=now,
        backup_id=settings.text("backup_id") or "",
        find_restore_point=view.restore_point,
    )
    base = recovery.base
    with cluster.open_backup(base.backup_id) as backup:
        data_directory = Path(settings.text("pgdata_dir") or base.data_directory)
        request = RestoreRequest(
            recovery=recovery,
            tail=backup.tail,
            data_directory=data_directory,
            tablespaces=_tablespaces(settings.mapping("tablespace_map"), base),
            overwrite_existing=settings.flag("overwrite_existing"),
            start=settings.flag("start_postgresql_after_restore"),
            archive=cluster.archive,
            restore_command=_restore_command(call),
            toolbox=toolbox_for_server(base.server_version // 10000, bin_dir=call.bin_dir),
            timeout_seconds=settings.number("restore_timeout"),
            workers=call.workers,
            tablespace_bytes=survey(backup).tablespace_bytes,
            user=settings.text("unix_user") or "",
            port=settings.optional_number("port") or 0,
            say=say,
            warn=warn,
        )
        prepared = prepare(request, now=now)
        if settings.flag("dry_run_restore"):
            _print_plan(list(prepared.lines()), as_json=as_json)
            return
        for line in prepared.lines():
            say(line)
        with Meter("laying down", total_bytes=backup.tail.bytes) as meter:
            result = restore(prepared, _Metered(backup.items, meter))
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


class _Metered:
    """A supply that tells a meter what passes."""

    def __init__(self, items: Callable[[], Iterator[Any]], meter: Meter) -> None:
        self._items = items
        self._meter = meter

    def items(self) -> Iterator[DetachedItem | StreamedItem]:
        """Yield the items."""
        for item in self._items():
            self._meter.add(item.header.size)
            yield item


def _readable(call: Call, cluster: ClusterVault) -> list[RecordHead]:
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
    wanted = call.settings.get("restore_mode")
    if wanted != "auto":
        if wanted not in ("dump", "pitr"):
            raise UsageError(f"restore_mode {wanted} is not in this version of pgkeep: expected auto, dump or pitr")
        return str(wanted)
    chosen = call.settings.text("backup_id")
    for head in heads:
        if head.backup_id == chosen:
            return head.mode
    if any(call.settings.is_given(name) for name in DUMP_SETTINGS):
        return "dump"
    return "pitr" if any(head.mode == "pitr" for head in heads) or not heads else "dump"


def _target(call: Call, now: dt.datetime) -> RecoveryTarget:
    settings = call.settings
    # What contradicts was settled when the settings were: an LSN wins over a time, and says so.
    return parse_target(
        time=settings.text("target_time") or "",
        lsn=settings.text("target_lsn") or "",
        xid=str(settings.get("target_xid") or ""),
        name=settings.text("target_name") or "",
        immediate=settings.flag("skip_wal_replay"),
        inclusive=settings.flag("target_inclusive"),
        timeline=settings.text("target_timeline") or "latest",
        action=TargetAction(settings.get("recovery_target_action")),
        local_zone=_local_zone(call),
        now=now,
    )


def _local_zone(call: Call) -> ZoneInfo:
    """Return the zone of times without an offset: the one that was set, or this host's."""
    name = call.settings.text("local_timezone")
    if name:
        zone = zone_named(name)
        if zone is None:
            raise UsageError(f'unknown time zone "{name}" in local_timezone', hint="write it like Europe/Berlin")
        return zone
    # TZ may also be a path, or a rule such as CET-1CEST, which names no zone.
    for name in (os.environ.get("TZ", "").removeprefix(":"), "/etc/localtime"):
        zone = zone_named(os.path.realpath(name).rpartition("/zoneinfo/")[2] if name.startswith("/") else name)
        if zone is not None:
            return zone
    return ZoneInfo("UTC")


def zone_named(name: str) -> ZoneInfo | None:
    """Return the time zone called *name*; None when there is none."""
    # ZoneInfoNotFoundError is a KeyError; a directory of zones, such as Europe, is an OSError.
    with contextlib.suppress(KeyError, ValueError, OSError):
        return ZoneInfo(name)
    return None


def _tablespaces(mapping: dict[str, str], base: RecordHead) -> dict[int, Path]:
    oids = {tablespace.name: tablespace.oid for tablespace in base.tablespaces if tablespace.name}
    places = {}
    for key, path in mapping.items():
        oid = int(key) if key.isdigit() else oids.get(key)
        if oid is None:
            known = ", ".join(sorted(oids)) or "none"
            raise UsageError(f'the backup has no tablespace "{key}": it has {known}')
        places[oid] = Path(path)
    return places


def _restore_command(call: Call) -> Callable[[Path, Path | None], str]:
    """Return what makes the restore_command for the restored server, with everything that it needs spelled out."""
    words = [*archive_words(), "archive-get", f"--vault={call.vault_path}", f"--cluster={call.cluster_name}"]

    def command(plan_path: Path, socket: Path | None) -> str:
        own = [f"--plan={plan_path}"]
        if socket is not None and has_client():
            own.append(f"--socket={socket}")
        return server_command([*words, *own], '"%f" "%p"')

    return command


def _print_plan(lines: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"plan": lines})
        return
    for line in lines:
        print_line(line)
