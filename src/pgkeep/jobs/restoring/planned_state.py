"""The state in which a restore begins: what phase 1 decided, and what the later phases need of the backup's record."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.jobs.recovery.standby_state import StandbyState
from pgkeep.jobs.restoring.own_configuration import outside_state
from pgkeep.jobs.restoring.plan import PreparedRestore
from pgkeep.jobs.restoring.recovery_config import wal_plan
from pgkeep.jobs.restoring.request import RestoreRequest
from pgkeep.jobs.restoring.set_aside import separate_wal_directory
from pgkeep.jobs.restoring.state import RestoreState, StoredAside, text_of_target
from pgkeep.jobs.restoring.wipe import identity_of
from pgkeep.pg.backup_label import without_incremental_lines
from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.data_directory import WAL_DIRECTORY
from pgkeep.pg.recovery import lasting_standby_settings
from pgkeep.pg.replay_settings import STARTING_SETTINGS
from pgkeep.pg.tablespace_map import parse_tablespace_map, remap, render_tablespace_map
from pgkeep.pg.wal import DEFAULT_SEGMENT_SIZE


def planned_state(prepared: PreparedRestore, *, restore_id: str) -> RestoreState:
    """Return the state of *prepared*, of which nothing is done but phase 1."""
    request, target = prepared.request, prepared.target
    base, recovery = request.base, request.recovery
    return RestoreState(
        restore_id=restore_id,
        backup_id=base.backup_id,
        system_identifier=base.system_identifier,
        data_directory=str(target.data_directory),
        version_directory=target.version_directory,
        tablespaces={str(oid): str(path or "") for oid, path in target.tablespaces.items()},
        owner=(target.owner.uid, target.owner.gid) if target.owner is not None else None,
        major=request.major,
        superuser=str(base.details.get("superuser", "postgres")),
        stop_lsn=base.stop_lsn,
        timeline=int(recovery.timeline),
        target_kind=request.target.kind.value,
        target_value=text_of_target(request.target),
        target_inclusive=request.target.inclusive,
        target_action=request.target.action.value,
        archived_end=str(recovery.archived_end),
        segment_size=base.wal.segment_size if base.wal is not None else DEFAULT_SEGMENT_SIZE,
        has_hole=recovery.has_hole,
        recovery_settings=_recovery_settings(prepared),
        lasting=_lasting(prepared),
        minimums=dict(recovery.minimums),
        vault=str(request.vault_path),
        cluster=request.cluster_name,
        bin_directory=str(request.toolbox.directory) if request.toolbox is not None else "",
        timeout_seconds=request.timeout_seconds,
        backup_label=without_incremental_lines(base.backup_label),
        tablespace_map=_tablespace_map(prepared),
        configuration={name: value for name, value in base.settings.items() if name in STARTING_SETTINGS},
        wal_plan=_wal_plan(prepared).render(),
        asides=[StoredAside(str(aside.path), str(aside.new_path), aside.is_contents) for aside in prepared.aside],
        wiped=[str(path) for path in prepared.wiped],
        wiped_identities=[identity_of(path) for path in prepared.wiped],
        wal_link=_wal_link(prepared),
        wal_directory=str(separate_wal_directory(target.data_directory) or "") if _wal_link(prepared) else "",
        chain=list(request.chain),
        applied=list(prepared.applied),
        is_asked_to_start=request.start,
        asked=request.asked,
        options=request.options,
        replication=_replication(prepared),
        is_copy=request.is_elsewhere,
        private_wal=str(request.private_wal or ""),
        server=prepared.service.as_dict(),
        left_out=list(base.details.get("left_out", ())),
        libraries=dict(base.libraries),
        standby=_standby(request),
        is_drill=request.is_drill,
        outside=outside_state(base, is_in_place=not request.is_copy, may_replace=request.overwrite_existing),
    )


def _replication(prepared: PreparedRestore) -> dict[str, Any]:
    recovery = prepared.request.recovery
    state = recovery.replication or recovery.base.replication
    return dict(msgspec.to_builtins(state)) if state is not None else {}


def _wal_link(prepared: PreparedRestore) -> str:
    """Return what ``pg_wal`` of the cluster that is replaced is a link to; empty when it is none."""
    link = prepared.target.data_directory / WAL_DIRECTORY
    return os.readlink(link) if link.is_symlink() and (prepared.aside or prepared.wiped) else ""


def _standby(request: RestoreRequest) -> StandbyState | None:
    if request.standby is None:
        return None
    return msgspec.structs.replace(request.standby.state, base_timeline=request.base.timeline)


def _wal_plan(prepared: PreparedRestore) -> WalPlan:
    plan, standby = wal_plan(prepared.request.recovery), prepared.request.standby
    return plan if standby is None else standby.limit(plan)


def _lasting(prepared: PreparedRestore) -> dict[str, str]:
    request = prepared.request
    lasting = dict(prepared.lasting)
    if request.standby is not None:
        # A standby needs for good what others need while they replay; and nothing of an earlier life: no target, and
        # no slot, which another standby may be using.
        lasting |= lasting_standby_settings(request.standby.conninfo) | _raised(request)
    return lasting


def _raised(request: RestoreRequest) -> dict[str, str]:
    """Return what was raised at the source since the base, and must not be lower at a server that replays."""
    return {
        name: str(value)
        for name, value in request.recovery.minimums.items()
        if value > int(request.base.settings.get(name, value))
    }


def _recovery_settings(prepared: PreparedRestore) -> dict[str, str]:
    request = prepared.request
    base = request.base
    # Whoever starts the server without us must not wake a subscription that takes the publisher's slot.
    settings = {"max_logical_replication_workers": "0"}
    if not request.start:
        # Whoever starts it starts it once, to replay and to stay: what was raised since the base is raised here.
        settings |= _raised(request)
    is_in_place = any(not tablespace.location for tablespace in base.tablespaces)
    # Replay makes a directory in pg_tblspc for changes of a tablespace that was left out; older servers never mind.
    is_left_out = bool(base.details.get("left_out"))
    if is_in_place or (is_left_out and Capabilities(base.server_version).has_in_place_tablespaces):
        # Without it a server that becomes consistent takes a directory in pg_tblspc for a fault (xlogrecovery.c,
        # CheckTablespaceDirectory), and panics.
        settings["allow_in_place_tablespaces"] = "on"
    return settings


def _tablespace_map(prepared: PreparedRestore) -> str:
    base, target = prepared.request.base, prepared.target
    # A tablespace that this restore does not lay down gets no link: it would lead into the files of the original.
    paths = {
        oid: path
        for oid, path in parse_tablespace_map(base.tablespace_map, major=prepared.request.major).items()
        if oid in target.outside
    }
    moved = remap(paths, {oid: str(target.outside[oid]) for oid in paths})
    return render_tablespace_map(moved, major=prepared.request.major) if moved else ""
