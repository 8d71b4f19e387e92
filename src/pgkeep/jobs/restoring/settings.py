"""What a restore takes from the settings, whichever door they came through."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from pgkeep.errors import RestoreRefused, UsageError
from pgkeep.jobs.program import archive_words, has_client, server_command
from pgkeep.jobs.restoring.audit_file import AuditFile
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, parse_target
from pgkeep.streams.record import RecordHead

if TYPE_CHECKING:
    from pgkeep.settings import Resolved

_LATER_OPTIONS = (
    "restore_replication_state",
    "recreate_replication_slots",
    "recreate_subscriptions",
    "verify_checksum_after",
    "verify_amcheck_after",
    "post_restore_sql",
    "post_restore_sql_timeout",
)


def recovery_target(settings: Resolved, now: dt.datetime) -> RecoveryTarget:
    """Return where replay is to stop."""
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
        local_zone=_local_zone(settings),
        now=now,
    )


def _local_zone(settings: Resolved) -> ZoneInfo:
    """Return the zone of times without an offset: the one that was set, or this host's."""
    name = settings.text("local_timezone")
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


def tablespace_places(mapping: dict[str, str], base: RecordHead) -> dict[int, Path]:
    """Return the new places of tablespaces, given by OID or name, by OID."""
    oids = {tablespace.name: tablespace.oid for tablespace in base.tablespaces if tablespace.name}
    places: dict[int, Path] = {}
    for key, path in mapping.items():
        oid = int(key) if key.isdigit() else oids.get(key)
        if oid is None:
            known = ", ".join(sorted(oids)) or "none"
            raise UsageError(f'the backup has no tablespace "{key}": it has {known}')
        if places.setdefault(oid, Path(path)) != Path(path):
            raise UsageError(
                f"two places for tablespace {oid}: {places[oid]} and {path}", hint="name it once, by OID or by name"
            )
    return places


def restore_options(settings: Resolved) -> dict[str, Any]:
    """Return what phases 5 and 6 go by: parameters of `finish`, by their names."""
    return {name: settings.get(name) for name in _LATER_OPTIONS if settings.get(name) is not None}


def check_allowed(settings: Resolved) -> None:
    """Raise RestoreRefused where the host's configuration forbids restores."""
    if not settings.flag("allow_restore"):
        raise RestoreRefused(
            "restores are forbidden on this host", hint="allow_restore = no stands in the configuration file"
        )


def audit_file(settings: Resolved, name: str, *, say: Callable[[str], None], warn: Callable[[str], None]) -> AuditFile:
    """Return the audit file of the restore called *name*."""
    return AuditFile(name, Path(settings.require("log_dir")), say=say, warn=warn)


def restore_command(vault_path: Path, cluster_name: str) -> Callable[[Path, Path | None], str]:
    """Return what makes the restore_command for the restored server, with everything that it needs spelled out."""
    words = [*archive_words(), "archive-get", f"--vault={vault_path}", f"--cluster={cluster_name}"]

    def command(plan_path: Path, socket: Path | None) -> str:
        own = [f"--plan={plan_path}"]
        if socket is not None and has_client():
            own.append(f"--socket={socket}")
        return server_command([*words, *own], '"%f" "%p"')

    return command
