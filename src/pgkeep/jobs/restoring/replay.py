"""Start a restored server behind its fence, watch it replay, and say where it got to."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgkeep.datadir.instance import Instance, PrivateAccess, ServerStatus
from pgkeep.datadir.postmaster import read_control_file
from pgkeep.errors import RecoveryFailed, ServerError
from pgkeep.jobs.recovery.promotion import check_promotion
from pgkeep.jobs.restoring.replay_progress import ReplayProgress
from pgkeep.pg.control_file import ClusterState
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind
from pgkeep.server import queries
from pgkeep.server.connection import ConnectionTarget, Server

REPORT_SECONDS = 10.0
WATCHED_LOG = {"lc_messages": "C", "log_min_messages": "warning"}
"""Settings under which the server says in English why it stopped replaying."""

_STOPPING = "LOG:  recovery stopping "
_PAUSED_FOR_SETTINGS = "because of insufficient parameter settings"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReplayEnd:
    """
    Where a replay ended.

    Attributes:
        lsn: Up to where WAL was replayed.
        timeline: The server's timeline now.
        last_commit: Time of the last commit or abort that was replayed; None when there was none.
        is_promoted: Whether the server left recovery; otherwise it is paused or shut down.
        is_target_met: False when the WAL ended before the target time.
    """

    lsn: Lsn
    timeline: Timeline
    last_commit: dt.datetime | None
    is_promoted: bool
    is_target_met: bool = True


class ReplayOverdue(RecoveryFailed):
    """The replay goes on, longer than anybody wanted to watch it; the server runs."""


def open_private(access: PrivateAccess, *, superuser: str, dbname: str = "") -> Server:
    """Connect through the private socket as the cluster's first superuser, to *dbname* or to whatever is there."""
    if not dbname:
        try:
            return open_private(access, superuser=superuser, dbname="postgres")
        except ServerError as error:
            if not is_lasting(error):
                raise
        # Nobody has to keep the database postgres; template1 is there unless somebody took pains.
        return open_private(access, superuser=superuser, dbname="template1")
    target = ConnectionTarget(
        host=str(access.directory), port=access.port, user=superuser, dbname=dbname, sslmode="disable"
    )
    return Server.open(target)


def watch_replay(
    instance: Instance,
    access: PrivateAccess,
    target: RecoveryTarget,
    *,
    major: int,
    superuser: str,
    timeout_seconds: float,
    say: Say,
    consistent_at: Lsn | None = None,
    planned_end: Lsn | None = None,
    report_seconds: float = REPORT_SECONDS,
) -> ReplayEnd:
    """
    Wait until the server that was started has done what *target* asks.

    Args:
        instance: Started, with ``recovery.signal`` and the settings for *target*.
        access: Its private socket.
        target: Where replay should stop and what comes then.
        major: The server's major version.
        superuser: Name of the role with OID 10.
        timeout_seconds: 0 waits for ever.
        say: Takes a line of progress now and then.
        consistent_at: Where the backup becomes consistent, for the log.
        planned_end: Up to where there is WAL; a target may come before that.
        report_seconds: Between two lines of progress.

    Raises:
        RecoveryFailed: The server stopped before that, or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds if timeout_seconds else float("inf")
    start = read_control_file(instance.data_directory).redo_lsn
    progress = ReplayProgress(start, _end_of(target, planned_end), say=say, report_seconds=report_seconds)

    def say_consistent() -> None:
        # A server that answers, or stops at its target, has passed it.
        if consistent_at is not None:
            say(f"consistent recovery state reached at {consistent_at}")

    def look(status: ServerStatus) -> None:
        # Before it is consistent the server takes no connections; what it must have replayed by now is on disk.
        if progress.is_due:
            control = read_control_file(instance.data_directory)
            is_consistent = status in (ServerStatus.READY, ServerStatus.STANDBY)
            note = " at least" if is_consistent else " at least, not consistent yet"
            progress.tell(max(control.redo_lsn, control.min_recovery_lsn), note=note)

    if target.action is TargetAction.SHUTDOWN and target.kind is not TargetKind.LATEST:
        shut_down = _wait_for_shutdown(instance, target, deadline, look)
        if shut_down is not None:
            say_consistent()
            return shut_down
    _wait_for(instance, {ServerStatus.READY, ServerStatus.STANDBY}, deadline, look)
    say_consistent()
    while True:
        with _connected(instance, access, superuser, deadline) as server:
            end = _watch(server, instance, target, major=major, deadline=deadline, progress=progress)
        # A conflict with recovery may have ended the session, or the server is about to stop: connecting will tell.
        if end is not None:
            return end


def _watch(
    server: Server, instance: Instance, target: RecoveryTarget, *, major: int, deadline: float, progress: ReplayProgress
) -> ReplayEnd | None:
    """Return where the replay ended, when it has; None when the session is lost before that."""
    pauses = target.action is TargetAction.PAUSE and target.kind is not TargetKind.LATEST
    while True:
        try:
            recovering, lsn, commit, paused = server.row(
                "SELECT r, CASE WHEN r THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text, "
                "pg_last_xact_replay_timestamp(), CASE WHEN r THEN pg_is_wal_replay_paused() ELSE false END "
                "FROM (SELECT pg_is_in_recovery() AS r) s"
            )
        except (ServerError, psycopg.Error) as error:
            if server.sql.closed or _is_cut(error):
                return None
            raise
        if not recovering:
            _wait_for(instance, {ServerStatus.READY}, deadline)
            end, is_met = check_promotion(server, target, major=major)
            timeline = queries.identify(server).timeline
            return ReplayEnd(end, timeline, commit, is_promoted=True, is_target_met=is_met)
        if paused and lsn:
            check_pause(instance.log_tail(200), target, Lsn.parse(lsn), log_path=instance.log_path)
        if pauses and paused and lsn:
            return ReplayEnd(Lsn.parse(lsn), queries.identify(server).timeline, commit, is_promoted=False)
        if lsn:
            progress.tell(Lsn.parse(lsn), commit)
        if instance.status() is ServerStatus.STOPPED or time.monotonic() > deadline:
            _wait_for(instance, {ServerStatus.READY}, deadline)
        time.sleep(0.05)


def _wait_for(
    instance: Instance,
    statuses: set[ServerStatus],
    deadline: float,
    tick: Callable[[ServerStatus], None] | None = None,
) -> ServerStatus:
    """Wait as ``Instance.wait_for`` does; raise ReplayOverdue when it is the time that is over."""
    try:
        return instance.wait_for(statuses, timeout_seconds=_left(deadline), tick=tick)
    except RecoveryFailed as failure:
        if time.monotonic() < deadline or instance.status() is ServerStatus.STOPPED:
            raise
        raise ReplayOverdue(
            f"the server in {instance.data_directory} still replays when restore_timeout is over",
            hint=f"it goes on behind its fence: see {instance.log_path}",
        ) from failure


def check_pause(log: Sequence[str], target: RecoveryTarget, lsn: Lsn, *, log_path: Path) -> None:
    """
    Raise RecoveryFailed for a replay that is paused at *lsn* for another reason than *target*.

    Args:
        log: The server's last lines, under ``WATCHED_LOG``.
        target: What it was to stop at.
        lsn: Up to where it has replayed.
        log_path: For the hint.
    """
    # From PostgreSQL 14 on replay pauses too where the WAL says that the primary raised max_connections or the like.
    if target.action is TargetAction.PAUSE and any(_STOPPING in line for line in log):
        return
    warnings = [line for line in log if "WARNING:" in line]
    reason = warnings[-1].partition("WARNING:")[2].strip() if warnings else "its log does not say why"
    raise RecoveryFailed(f"replay paused at {lsn}, before {target}: {reason}", hint=f"see {log_path}")


def check_reached_end(end: ReplayEnd, archived_end: Lsn, *, segment_size: int, log_path: Path) -> None:
    """
    Raise RecoveryFailed when a replay to the end of the WAL ended before the last segment that is held.

    The server takes a record that it cannot read for the end of the WAL, wherever that record is.
    """
    if end.lsn + segment_size < archived_end:
        raise RecoveryFailed(
            f"replay ended at {end.lsn}, but WAL is held to {archived_end}",
            hint=f"a record in between is damaged: see {log_path}; --target-lsn={end.lsn} restores what comes before",
        )


def _connected(instance: Instance, access: PrivateAccess, superuser: str, deadline: float) -> Server:
    while True:
        try:
            return open_private(access, superuser=superuser)
        except ServerError as error:
            if is_lasting(error):
                raise
            # Between "consistent" and "accepts connections" lies a moment; a stopped server ends the wait.
            if instance.status() is ServerStatus.STOPPED or time.monotonic() > deadline:
                _wait_for(instance, {ServerStatus.READY}, deadline)
                raise
            time.sleep(0.05)


def _is_cut(error: Exception) -> bool:
    """Tell whether *error* ended a session that another one may replace: a shutdown, a conflict with recovery."""
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    state = cause.sqlstate if isinstance(cause, psycopg.Error) else ""
    return state is None or state.startswith(("08", "40", "57P"))


# The server speaks English behind its fence; libpq has no SQLSTATE for a connection that was refused.
_LASTING = ("does not exist", "is not permitted to log in", "is not currently accepting connections")


def is_lasting(refusal: ServerError) -> bool:
    """Tell whether a connection was refused for a reason that waiting does not mend."""
    return any(symptom in refusal.message for symptom in _LASTING)


def _end_of(target: RecoveryTarget, planned_end: Lsn | None) -> Lsn | None:
    """Return up to where there is something to replay; None when that is not known."""
    if target.kind is not TargetKind.LSN:
        return planned_end
    return target.lsn if planned_end is None else min(target.lsn, planned_end)


def _wait_for_shutdown(
    instance: Instance, target: RecoveryTarget, deadline: float, report: Callable[[ServerStatus], None]
) -> ReplayEnd | None:
    """Return where the server stopped; None when it was promoted before a time that no commit came after."""
    next_look = time.monotonic()

    def look(status: ServerStatus) -> None:
        nonlocal next_look
        report(status)
        # A hot standby says that it is ready as well: postmaster.pid does not tell it from a primary.
        if status in (ServerStatus.STANDBY, ServerStatus.READY) and time.monotonic() >= next_look:
            next_look = time.monotonic() + 1
            control = read_control_file(instance.data_directory)
            if control.state is ClusterState.IN_PRODUCTION:
                # PostgreSQL 12 promotes at the end of WAL whatever it was told to do at a target that did not come.
                raise _Promoted
            log = instance.log_tail(200)
            if any(_PAUSED_FOR_SETTINGS in line for line in log):
                check_pause(log, target, control.min_recovery_lsn or Lsn(0), log_path=instance.log_path)

    try:
        _wait_for(instance, {ServerStatus.STOPPED}, deadline, look)
    except _Promoted:
        if target.kind is TargetKind.TIME:
            return None
        raise RecoveryFailed(
            f"the server in {instance.data_directory} was promoted at the end of the WAL, which came before the target",
            hint="the WAL held does not reach the target",
        ) from None
    control = read_control_file(instance.data_directory)
    if control.state is not ClusterState.SHUT_DOWN_IN_RECOVERY:
        words = instance.log_tail(1)
        raise RecoveryFailed(
            f"the server in {instance.data_directory} stopped in state {control.state.name.lower()}, "
            f"not at the target: {words[-1] if words else 'its log is empty'}",
            hint=f"see {instance.log_path}",
        )
    return ReplayEnd(control.min_recovery_lsn or control.checkpoint_lsn, control.timeline, None, is_promoted=False)


def _left(deadline: float) -> float:
    return 0 if deadline == float("inf") else max(0.1, deadline - time.monotonic())


class _Promoted(Exception):
    """The server takes writes, although it was to stop."""
