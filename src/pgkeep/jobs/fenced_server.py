"""Phases 4 to 6 of a restore: the restored server behind its fence, until it is let go."""

from __future__ import annotations

import threading
from dataclasses import replace

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
from pgkeep.jobs.restore_plan import PreparedRestore
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind, fence_settings
from pgkeep.server.connection import fetch
from pgkeep.wire.archive_packets import Operation


class FencedServer:
    """Phases 4 to 6: the restored server behind its fence, with pgkeep answering its restore_command."""

    def __init__(self, prepared: PreparedRestore, access: PrivateAccess, owner: Owner) -> None:
        request, data_directory = prepared.request, prepared.target.data_directory
        self._prepared = prepared
        self._request = request
        self._access = access
        self._owner = owner
        self._superuser = str(request.base.details.get("superuser", "postgres"))
        assert request.toolbox is not None
        log_path = data_directory.with_name(f"{data_directory.name}.pgkeep-restore.log")
        self._instance = Instance(data_directory, bin_directory=request.toolbox.directory, log_path=log_path)
        self._fence = (
            fence_settings(major=request.major, socket_directory=str(access.directory))
            | access.settings()
            | {name: str(value) for name, value in request.recovery.minimums.items()}
            | WATCHED_LOG
        )
        self.archive_socket = access.directory / "archive" / "socket"

    def run(self, log: PhaseLog) -> tuple[ReplayEnd, tuple[str, ...]]:
        """Replay, check, and open the server; whatever fails leaves it stopped."""
        request = self._request
        # The server's user must get through to the socket; nobody else gets into the directory above.
        self.archive_socket.parent.mkdir(mode=0o711)
        self.archive_socket.parent.chmod(0o711)
        service = ArchiveService(
            request.archive,
            self.archive_socket,
            operations=(Operation.GET,),
            plan_path=request.wal_plan_path,
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
        return f"psql -h {self._access.directory} -p {self._access.port} -U {self._superuser}"

    def _finish(self, end: ReplayEnd, log: PhaseLog) -> tuple[str, ...]:
        request, access = self._request, self._access
        if not end.is_promoted and request.target.action is TargetAction.SHUTDOWN:
            log.done("nothing to do: the server is shut down at the target")
            log.done("the server is shut down at the target, as asked")
            return ()
        log.done(_disable_subscriptions(access, self._superuser) if end.is_promoted else "waits for the promotion")
        databases = _ask_every_database(access, self._superuser)
        if not end.is_promoted:
            log.done(f"{len(databases)} databases answer; the server is paused behind its fence")
            request.say(f"to look: {self._way_in}")
            request.say("to open it: SELECT pg_wal_replay_resume(), then stop it and start it: not pg_ctl restart")
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
            major=self._request.major,
            superuser=self._superuser,
            timeout_seconds=self._request.timeout_seconds,
            say=self._request.say,
        )

    def _replay(self) -> ReplayEnd:
        target, recovery = self._request.target, self._request.recovery
        if target.kind not in (TargetKind.TIME, TargetKind.IMMEDIATE):
            end = self._attempt(target)
            if target.kind is TargetKind.LATEST:
                check_reached_end(end, recovery, log_path=self._instance.log_path)
            return end
        try:
            end = self._attempt(target)
        except ReplayOverdue:
            raise
        except RecoveryFailed as failure:
            if recovery.has_hole:
                raise
            end = self._replay_without(target, failure)
        if not end.is_target_met:
            if recovery.has_hole:
                raise RecoveryFailed(f"replay ended at {end.lsn}, before {target}, where WAL is missing")
            check_reached_end(end, recovery, log_path=self._instance.log_path)
            self._say_end_of_wal(end)
        return end

    def _replay_without(self, target: RecoveryTarget, failure: RecoveryFailed) -> ReplayEnd:
        """
        Replay to the end of the WAL, and raise *failure* when something later than *target* came.

        A time after the last commit, but within the WAL held, means the end of that WAL. A standby's backup is
        consistent where its WAL ends. The server calls both a target that was not reached, and stops.
        """
        self._instance.stop()
        latest = replace(target, kind=TargetKind.LATEST, value=None)
        settings = settings_of_recovery(self._prepared, latest, socket=self.archive_socket)
        append_settings(self._prepared.target.data_directory, settings, owner=self._prepared.target.owner)
        try:
            end = self._attempt(latest)
        except ReplayOverdue:
            raise
        except RecoveryFailed:
            raise failure from None
        if target.kind is TargetKind.IMMEDIATE:
            is_later = end.lsn > Lsn.parse(self._request.base.stop_lsn)
        else:
            is_later = end.last_commit is not None and end.last_commit > target.time
        if is_later:
            raise failure
        return replace(end, is_target_met=False)

    def _say_end_of_wal(self, end: ReplayEnd) -> None:
        last = f" ({end.last_commit.isoformat(sep=' ')})" if end.last_commit is not None else ""
        if self._request.target.kind is TargetKind.TIME:
            self._request.say(f"the target time is after the last commit{last}: recovered to the end of the WAL")
        action = self._request.target.action
        if action is not TargetAction.PROMOTE:
            self._request.warn(f"the server was promoted instead of {action.value}: there is no target to stop at")

    def _lift_fence(self) -> None:
        """Stop the server, take the recovery settings out, and start it as its own configuration says."""
        data_directory, lasting = self._prepared.target.data_directory, self._prepared.lasting
        # A checkpoint of all that was replayed may take its time: nobody who waits for hours wants to lose it here.
        timeout = max(300, self._request.timeout_seconds) if self._request.timeout_seconds else 7 * 86400
        self._instance.stop(timeout_seconds=timeout)
        settings = settings_of_recovery(self._prepared, self._request.target, socket=self.archive_socket)
        remove_settings(data_directory, settings, owner=self._owner)
        remove_signals(data_directory)
        remove_file(self._request.wal_plan_path)
        append_settings(data_directory, lasting, owner=self._owner)
        # Its own configuration from here on; what lasts is in postgresql.auto.conf.
        self._instance.start({}, is_final=True)
        self._instance.wait_for({ServerStatus.READY}, timeout_seconds=timeout)


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
