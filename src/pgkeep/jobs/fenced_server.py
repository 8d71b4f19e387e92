"""Phases 4 to 6 of a restore: the restored server behind its fence, until it is let go. All they need is the state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pgkeep.datadir.durable import remove_file
from pgkeep.datadir.instance import Instance, PrivateAccess, ServerStatus
from pgkeep.datadir.owner import Owner
from pgkeep.datadir.recovery_files import (
    append_settings,
    remove_settings,
    remove_signals,
)
from pgkeep.errors import BackupUnusable, RecoveryFailed
from pgkeep.jobs.archive_service import ArchiveService
from pgkeep.jobs.phase_log import PhaseLog
from pgkeep.jobs.recovery_config import settings_of_recovery
from pgkeep.jobs.replay import WATCHED_LOG, ReplayEnd, ReplayOverdue, check_reached_end, open_private, watch_replay
from pgkeep.jobs.restore_state import RestoreState
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind, fence_settings
from pgkeep.server.connection import fetch
from pgkeep.wire.archive_packets import Operation


@dataclass(frozen=True, slots=True)
class Voice:
    """
    Who is told what happens.

    Attributes:
        say: Takes one line for the log.
        warn: Takes one warning.
    """

    say: Callable[[str], None]
    warn: Callable[[str], None]


class FencedServer:
    """Phases 4 to 6: the restored server behind its fence, with pgkeep answering its restore_command."""

    def __init__(self, state: RestoreState, access: PrivateAccess, voice: Voice) -> None:
        """
        Touch nothing yet.

        Args:
            state: Of the restore; phase 3 is done.
            access: The way into the server.
            voice: Is told what happens.
        """
        self._state = state
        self._access = access
        self._voice = voice
        self._owner = state.owner_of_files or Owner.of(state.directory)
        self._instance = Instance(state.directory, bin_directory=Path(state.bin_directory), log_path=state.log_path)
        self._fence = (
            fence_settings(major=state.major, socket_directory=str(access.directory))
            | access.settings()
            | {name: str(value) for name, value in state.minimums.items()}
            | WATCHED_LOG
        )
        self.archive_socket = archive_socket_of(access)

    def run(self, log: PhaseLog) -> tuple[ReplayEnd, tuple[str, ...]]:
        """Replay, check, and open the server; whatever fails leaves it stopped."""
        # The server's user must get through to the socket; nobody else gets into the directory above.
        self.archive_socket.parent.mkdir(mode=0o711)
        self.archive_socket.parent.chmod(0o711)
        service = ArchiveService(
            self._state.archive,
            self.archive_socket,
            operations=(Operation.GET,),
            plan_path=self._state.wal_plan_path,
            client_uid=self._owner.uid,
        )
        thread = threading.Thread(target=service.serve, name="archive-service", daemon=True)
        finished = False
        try:
            with service:
                thread.start()
                try:
                    end = self._replay()
                finally:
                    service.stop()
                    thread.join()
            log.done(f"replay ended at {end.lsn}, {'promoted to' if end.is_promoted else 'on'} timeline {end.timeline}")
            databases = self._finish(end, log)
            finished = True
        except ReplayOverdue as overdue:
            finished = True
            overdue.hint += f"; to look: {self._way_in}"
            raise
        finally:
            if not finished:
                self._instance.stop()
        return end, databases

    @property
    def _way_in(self) -> str:
        return f"psql -h {self._access.directory} -p {self._access.port} -U {self._state.superuser}"

    def _finish(self, end: ReplayEnd, log: PhaseLog) -> tuple[str, ...]:
        access, superuser = self._access, self._state.superuser
        if not end.is_promoted and self._state.target.action is TargetAction.SHUTDOWN:
            log.done("nothing to do: the server is shut down at the target")
            log.done("the server is shut down at the target, as asked")
            return ()
        log.done(_disable_subscriptions(access, superuser) if end.is_promoted else "waits for the promotion")
        databases = _ask_every_database(access, superuser)
        if not end.is_promoted:
            log.done(f"{len(databases)} databases answer; the server is paused behind its fence")
            self._voice.say(f"to look: {self._way_in}")
            self._voice.say("to open it: SELECT pg_wal_replay_resume(), then stop it and start it: not pg_ctl restart")
            return databases
        self._lift_fence()
        log.done(f"every database answers ({len(databases)})")
        return databases

    def _attempt(self, target: RecoveryTarget) -> ReplayEnd:
        self._instance.start(self._fence)
        return watch_replay(
            self._instance,
            self._access,
            target,
            major=self._state.major,
            superuser=self._state.superuser,
            timeout_seconds=self._state.timeout_seconds,
            say=self._voice.say,
        )

    def _replay(self) -> ReplayEnd:
        state, target = self._state, self._state.target
        if target.kind not in (TargetKind.TIME, TargetKind.IMMEDIATE):
            end = self._attempt(target)
            if target.kind is TargetKind.LATEST:
                self._check_reached_end(end)
            return end
        try:
            end = self._attempt(target)
        except ReplayOverdue:
            raise
        except RecoveryFailed as failure:
            if state.has_hole:
                raise
            end = self._replay_without(target, failure)
        if not end.is_target_met:
            if state.has_hole:
                raise RecoveryFailed(f"replay ended at {end.lsn}, before {target}, where WAL is missing")
            self._check_reached_end(end)
            self._say_end_of_wal(end)
        return end

    def _check_reached_end(self, end: ReplayEnd) -> None:
        check_reached_end(
            end, self._state.end_of_wal, segment_size=self._state.segment_size, log_path=self._instance.log_path
        )

    def _replay_without(self, target: RecoveryTarget, failure: RecoveryFailed) -> ReplayEnd:
        """
        Replay to the end of the WAL, and raise *failure* when something later than *target* came.

        A time after the last commit, but within the WAL held, means the end of that WAL. A standby's backup is
        consistent where its WAL ends. The server calls both a target that was not reached, and stops.
        """
        self._instance.stop()
        latest = replace(target, kind=TargetKind.LATEST, value=None)
        settings = settings_of_recovery(self._state, latest, socket=self.archive_socket)
        append_settings(self._state.directory, settings, owner=self._state.owner_of_files)
        try:
            end = self._attempt(latest)
        except ReplayOverdue:
            raise
        except RecoveryFailed:
            raise failure from None
        if target.kind is TargetKind.IMMEDIATE:
            is_later = end.lsn > self._state.end_of_backup
        else:
            is_later = end.last_commit is not None and end.last_commit > target.time
        if is_later:
            raise failure
        return replace(end, is_target_met=False)

    def _say_end_of_wal(self, end: ReplayEnd) -> None:
        last = f" ({end.last_commit.isoformat(sep=' ')})" if end.last_commit is not None else ""
        target = self._state.target
        if target.kind is TargetKind.TIME:
            self._voice.say(f"the target time is after the last commit{last}: recovered to the end of the WAL")
        if target.action is not TargetAction.PROMOTE:
            self._voice.warn(f"the server was promoted instead of {target.action.value}: there is no target to stop at")

    def _lift_fence(self) -> None:
        """Stop the server, take the recovery settings out, and start it as its own configuration says."""
        state = self._state
        # A checkpoint of all that was replayed may take its time: nobody who waits for hours wants to lose it here.
        timeout = max(300, state.timeout_seconds) if state.timeout_seconds else 7 * 86400
        self._instance.stop(timeout_seconds=timeout)
        settings = settings_of_recovery(state, state.target, socket=self.archive_socket)
        remove_settings(state.directory, settings, owner=self._owner)
        remove_signals(state.directory)
        remove_file(state.wal_plan_path)
        append_settings(state.directory, state.lasting, owner=self._owner)
        # Its own configuration from here on; what lasts is in postgresql.auto.conf.
        self._instance.start({}, is_final=True)
        self._instance.wait_for({ServerStatus.READY}, timeout_seconds=timeout)


def archive_socket_of(access: PrivateAccess) -> Path:
    """Return where pgkeep answers the restore_command of the server behind *access*."""
    return access.directory / "archive" / "socket"


def _disable_subscriptions(access: PrivateAccess, superuser: str) -> str:
    """Disable every subscription, so that lifting the fence wakes none; return what to say."""
    disabled = 0
    for name in _database_names(access, superuser):
        with open_private(access, superuser=superuser, dbname=name) as server:
            rows = server.rows(
                "SELECT 'ALTER SUBSCRIPTION ' || quote_ident(subname) || ' DISABLE' FROM pg_subscription "
                "WHERE subenabled AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            for (statement,) in rows:
                fetch(server.sql, statement, where=server.where)
                disabled += 1
    return f"{disabled} subscriptions disabled" if disabled else "no subscription was enabled"


def _database_names(access: PrivateAccess, superuser: str) -> list[str]:
    with open_private(access, superuser=superuser) as server:
        # A connection limit of -2 marks what an interrupted DROP DATABASE left: nobody can connect to it.
        rows = server.rows(
            'SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname COLLATE "C"'
        )
    return [name for (name,) in rows]


def _ask_every_database(access: PrivateAccess, superuser: str) -> tuple[str, ...]:
    names = _database_names(access, superuser)
    for name in names:
        with open_private(access, superuser=superuser, dbname=name) as server:
            if not server.value("SELECT count(*) FROM pg_class"):
                raise BackupUnusable(f"database {name} has an empty catalog")
    return tuple(names)
