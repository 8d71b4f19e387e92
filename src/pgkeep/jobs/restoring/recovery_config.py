"""Phase 3 of a restore: what the server must find in its data directory to replay to the target."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pgkeep.datadir.durable import remove_file, write_file
from pgkeep.datadir.recovery_files import (
    RecoveryFiles,
    Signal,
    foreign_places,
    synchronous_standbys,
    write_missing_configuration,
)
from pgkeep.datadir.write_errors import write_errors
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.jobs.recovery.plan import RecoveryPlan
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.pg.data_directory import WAL_DIRECTORY
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.recovery import RecoveryTarget, recovery_settings, standby_settings
from pgkeep.pg.wal import WalSegment


def settings_of_recovery(state: RestoreState, target: RecoveryTarget, *, socket: Path | None) -> dict[str, str]:
    """Return what goes into ``postgresql.auto.conf`` until recovery is over; *socket* is where pgkeep answers."""
    command = state.restore_command(socket)
    if state.standby is not None:
        conninfo = state.standby.conninfo
        recovery = standby_settings(major=state.major, primary_conninfo=conninfo, restore_command=command)
    else:
        recovery = recovery_settings(target, major=state.major, restore_command=command)
    return recovery | state.lasting | state.recovery_settings


def write_recovery_files(state: RestoreState, settings: dict[str, str], *, warn: Callable[[str], None]) -> None:
    """Write everything that the server reads before it replays; with that the target is complete."""
    data_directory, owner = state.directory, state.owner_of_files
    if state.standby is not None and state.standby.timeline > 1:
        _remove_unfollowed(data_directory / WAL_DIRECTORY, WalPlan.parse(state.wal_plan))
        # The archive may not have it: a primary that does not archive is followed as well.
        name = Timeline(state.standby.timeline).history_file_name
        history = state.standby.history.encode("utf-8", "surrogateescape")
        write_file(data_directory / WAL_DIRECTORY / name, history, owner=owner)
    RecoveryFiles(
        backup_label=state.backup_label,
        tablespace_map=state.tablespace_map,
        signal=Signal.RECOVERY if state.standby is None else Signal.STANDBY,
        settings=settings,
    ).write(data_directory, owner=owner)
    if state.outside.own_config_file is None:
        for name in write_missing_configuration(data_directory, state.configuration, owner=owner):
            warn(f"the backup held no {name}: wrote a minimal one; put your own in its place")
    for name, value in foreign_places(data_directory).items():
        warn(f"postgresql.conf sets {name} to {value}: mend it before starting the server by other means")
    waits_for = synchronous_standbys(data_directory) if state.standby is None else ""
    if waits_for:
        # Behind the fence nothing waits; whoever starts it by other means, and everybody later, does.
        warn(
            f"synchronous_standby_names is {waits_for}: once the server is open, every commit waits for those "
            "standbys, which may not be there; to do without: ALTER SYSTEM SET synchronous_standby_names = ''"
        )
    with write_errors(f"complete {data_directory}"):
        write_file(state.wal_plan_path, state.wal_plan.encode(), owner=owner)
        state.target_directories.complete()


def _remove_unfollowed(directory: Path, plan: WalPlan) -> None:
    """
    Remove WAL of the backup that the primary never wrote, or not all of it: it has the rest, and sends it.

    A primary that was restored to the very end of the backup left the old timeline in the backup's last segment.
    """
    for name in os.listdir(directory):
        if plan.excludes(name):
            remove_file(directory / name)


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
    excluded = []
    if recovery.stop is not None:
        # What a living original archives meanwhile was not looked into: it may make a tablespace in a place of its own.
        end = recovery.archived_end
        behind = Lsn(end + -end % size) if end > recovery.wal_start else end
        excluded = [WalSegment.containing(behind, timeline=history.timeline, size=size).name]
    return WalPlan(
        SystemIdentifier(int(base.system_identifier)),
        size,
        needed=tuple(needed),
        partials=(needed[-1][1],) if needed and recovery.archived_end % size else (),
        histories=(history.timeline.history_file_name,) if history.timeline > 1 and needed else (),
        excluded=tuple(excluded),
    )


def describe_target(settings: dict[str, str]) -> str:
    """Return the target among *settings*, for people."""
    if settings.get("primary_conninfo"):
        return "a standby, along the newest timeline"
    chosen = [f"{n}={v}" for n, v in settings.items() if n.startswith("recovery_target") and v and n not in _MINOR]
    return ", ".join(chosen) or "to the end of the WAL"


_MINOR = frozenset({"recovery_target_inclusive", "recovery_target_action"})
