"""Phase 3 of a restore: what the server must find in its data directory to replay to the target."""

from __future__ import annotations

from pathlib import Path

from pgkeep.datadir.durable import write_file
from pgkeep.datadir.recovery_files import (
    RecoveryFiles,
    Signal,
    foreign_places,
    write_missing_configuration,
)
from pgkeep.jobs.recovery_plan import RecoveryPlan
from pgkeep.jobs.restore_plan import PreparedRestore
from pgkeep.jobs.wal_plan import WalPlan
from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.lsn import Lsn, SystemIdentifier
from pgkeep.pg.recovery import RecoveryTarget, recovery_settings
from pgkeep.pg.replay_settings import STARTING_SETTINGS
from pgkeep.pg.tablespace_map import parse_tablespace_map, remap, render_tablespace_map
from pgkeep.pg.wal import WalSegment


def settings_of_recovery(prepared: PreparedRestore, target: RecoveryTarget, *, socket: Path | None) -> dict[str, str]:
    """Return what goes into ``postgresql.auto.conf`` until recovery is over."""
    request = prepared.request
    command = request.restore_command(request.wal_plan_path, socket)
    recovery = recovery_settings(target, major=request.major, restore_command=command)
    # Whoever starts the server without us must not wake a subscription that takes the publisher's slot.
    settings = recovery | prepared.lasting | {"max_logical_replication_workers": "0"}
    if not request.start:
        # Whoever starts it starts it once, to replay and to stay: what was raised since the base is raised here.
        settings |= {
            name: str(value)
            for name, value in request.recovery.minimums.items()
            if value > int(request.base.settings.get(name, value))
        }
    is_in_place = any(not tablespace.location for tablespace in request.base.tablespaces)
    # Replay makes a directory in pg_tblspc for changes of a tablespace that was left out; older servers never mind.
    is_left_out = bool(request.base.details.get("left_out"))
    if is_in_place or (is_left_out and Capabilities(request.base.server_version).has_in_place_tablespaces):
        # Without it a server that becomes consistent takes a directory in pg_tblspc for a fault (xlogrecovery.c,
        # CheckTablespaceDirectory), and panics.
        settings["allow_in_place_tablespaces"] = "on"
    return settings


def write_recovery_files(prepared: PreparedRestore, settings: dict[str, str]) -> None:
    """Write everything that the server reads before it replays; with that the target is complete."""
    request, target = prepared.request, prepared.target
    base = request.base
    # A tablespace that this restore does not lay down gets no link: it would lead into the files of the original.
    paths = {
        oid: path
        for oid, path in parse_tablespace_map(base.tablespace_map, major=request.major).items()
        if oid in target.outside
    }
    moved = remap(paths, {oid: str(target.outside[oid]) for oid in paths})
    data_directory = target.data_directory
    RecoveryFiles(
        backup_label=base.backup_label,
        tablespace_map=render_tablespace_map(moved, major=request.major) if moved else "",
        signal=Signal.RECOVERY,
        settings=settings,
    ).write(data_directory, owner=target.owner)
    needed = {name: value for name, value in base.settings.items() if name in STARTING_SETTINGS}
    for name in write_missing_configuration(data_directory, needed, owner=target.owner):
        request.warn(f"the backup held no {name}: wrote a minimal one; put your own in its place")
    for name, value in foreign_places(data_directory).items():
        request.warn(f"postgresql.conf sets {name} to {value}: mend it before starting the server by other means")
    write_file(request.wal_plan_path, wal_plan(request.recovery).render().encode(), owner=target.owner)
    target.complete()


def wal_plan(recovery: RecoveryPlan) -> WalPlan:
    """Return which of the archived WAL the replay cannot do without: all that is held along the history."""
    base, history = recovery.base, recovery.history
    assert base.wal is not None
    size = base.wal.segment_size
    needed = []
    position, timelines = recovery.wal_start, [t for t in history.timelines if t >= base.timeline]
    if recovery.archived_end > recovery.wal_start:
        for timeline in timelines:
            fork = history.fork_of(timeline)
            first = WalSegment.containing(position, timeline=timeline, size=size)
            # The segment in which a timeline ends is archived under the next one's name.
            end = recovery.archived_end if fork is None else min(recovery.archived_end, Lsn(fork - fork % size))
            if end > first.start_lsn:
                needed.append((first.name, WalSegment.ending_at(end, timeline=timeline, size=size).name))
            if fork is not None:
                position = fork
    return WalPlan(
        SystemIdentifier(int(base.system_identifier)),
        size,
        needed=tuple(needed),
        histories=(history.timeline.history_file_name,) if history.timeline > 1 and needed else (),
    )


def describe_target(settings: dict[str, str]) -> str:
    """Return the target among *settings*, for people."""
    chosen = [f"{n}={v}" for n, v in settings.items() if n.startswith("recovery_target") and v and n not in _MINOR]
    return ", ".join(chosen) or "to the end of the WAL"


_MINOR = frozenset({"recovery_target_inclusive", "recovery_target_action"})
