"""Phases 4 to 6 of a restore: the restored server behind its fence, until it is let go. All they need is the state."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pgkeep.datadir.configured_start import start_as_configured
from pgkeep.datadir.durable import remove_file
from pgkeep.datadir.instance import Instance, PrivateAccess, ServerStatus, StopMode
from pgkeep.datadir.owner import Owner
from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.datadir.recovery_files import (
    append_settings,
    remove_settings,
    remove_signals,
)
from pgkeep.errors import CheckFailed, RecoveryFailed
from pgkeep.jobs.archive.service import ArchiveService
from pgkeep.jobs.archive.service_socket import ServiceRuns
from pgkeep.jobs.recovery.standby_state import StandbyState
from pgkeep.jobs.restoring.directory import RestoreRun
from pgkeep.jobs.restoring.fence import Fence
from pgkeep.jobs.restoring.fenced_replay import FencedReplay
from pgkeep.jobs.restoring.old_server import service_of
from pgkeep.jobs.restoring.phase_log import PhaseLog
from pgkeep.jobs.restoring.recovery_config import settings_of_recovery
from pgkeep.jobs.restoring.replay import ReplayEnd, ReplayOverdue, open_private
from pgkeep.jobs.restoring.restored_checks import WantedChecks, check_behind_fence, check_stopped
from pgkeep.jobs.restoring.standby_watch import watch_standby
from pgkeep.jobs.restoring.state import RestoreState, StoredEnd
from pgkeep.jobs.restoring.topology import restore_topology
from pgkeep.pg.data_directory import WAL_DIRECTORY
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.recovery import TargetAction, isolation_settings
from pgkeep.server.connection import Server
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

    def __init__(self, run: RestoreRun, access: PrivateAccess, voice: Voice) -> None:
        """
        Touch nothing yet.

        Args:
            run: The restore; phase 3 is done, and whatever an earlier process did of the others.
            access: The way into the server, which may run already.
            voice: Is told what happens.
        """
        self._run = run
        self._access = access
        self._voice = voice
        state = run.state
        self._owner = state.owner_of_files or Owner.of(state.directory)
        self._instance = Instance(
            state.directory,
            bin_directory=Path(state.bin_directory),
            log_path=state.log_path,
            config_file=state.outside.own_config_file,
        )
        self._fence = Fence(self._instance, access, major=state.major, minimums=state.minimums, say=voice.say)
        self.archive_socket = archive_socket_of(access)
        self._replay = FencedReplay(
            run, self._instance, self._fence, access, self.archive_socket, say=voice.say, warn=voice.warn
        )

    @property
    def _state(self) -> RestoreState:
        return self._run.state

    def run(self, log: PhaseLog, *, is_opened: bool = False) -> tuple[ReplayEnd, tuple[str, ...]]:
        """
        Replay, check, and open the server; whatever fails leaves it stopped.

        Args:
            log: Stands behind the phases that are done.
            is_opened: A server that waits at its target, or was shut down there, is promoted.
        """
        finished = False
        try:
            with self._archive_answered():
                end = self._ended(log)
                if is_opened and not self._is_through(end):
                    end = self._open(end)
            databases = self._finish(end, log)
            finished = True
        except ReplayOverdue as overdue:
            finished = True
            overdue.hint += f"; to look: {self._way_in}; pgkeep finish goes on watching it"
            raise
        except RecoveryFailed as failure:
            # The server's own last word may be that a program has failed, which wrote to the same disk.
            failure.hint = _full_disk(self._state) + failure.hint
            raise
        finally:
            if not finished:
                self._instance.stop()
        return end, databases

    @contextlib.contextmanager
    def _archive_answered(self) -> Iterator[None]:
        """Answer the server's restore_command."""
        # The server's user must get through to the socket; nobody else gets into the directory above.
        self.archive_socket.parent.mkdir(mode=0o711, exist_ok=True)
        self.archive_socket.parent.chmod(0o711)
        try:
            service = ArchiveService(
                self._state.archive,
                self.archive_socket,
                operations=(Operation.GET,),
                plan_path=self._state.wal_plan_path if self._state.wal_plan_path.exists() else None,
                client_uid=self._owner.uid,
            )
        except ServiceRuns:
            # When the pgkeep that watched the server was gone, its restore_command has started a service of its own.
            yield
            return
        thread = threading.Thread(target=service.serve, name="archive-service", daemon=True)
        with service:
            thread.start()
            try:
                yield
            finally:
                service.stop()
                thread.join()

    def _ended(self, log: PhaseLog) -> ReplayEnd:
        """Return where the replay ended; by an earlier process, perhaps."""
        state = self._state
        if state.end is not None:
            end = _end_of(state.end)
            if self._is_through(end) and not state.is_lifting and self._instance.status() is ServerStatus.STOPPED:
                self._fence.start()
                self._instance.wait_for({ServerStatus.READY}, timeout_seconds=state.timeout_seconds)
            is_to_wait = not self._is_through(end) and state.target.action is TargetAction.PAUSE
            if is_to_wait and self._instance.status() is ServerStatus.STOPPED:
                self._replay.attempt(state.target)
            return end
        standby = state.standby
        end = self._replay.run() if standby is None else self._replay.large_enough(lambda: self._follow(standby))
        self._run.record(phases_done=4, end=_stored(end))
        how = "promoted to" if end.is_promoted else "on"
        if state.standby is not None:
            log.done(f"streams from {state.standby.where} at {end.lsn}, {how} timeline {end.timeline}")
        else:
            log.done(f"replay ended at {end.lsn}, {how} timeline {end.timeline}")
        return end

    def _is_through(self, end: ReplayEnd) -> bool:
        """Tell whether the server is what was asked for: a primary, or a standby that follows one."""
        return end.is_promoted or self._state.standby is not None

    def _follow(self, standby: StandbyState) -> ReplayEnd:
        if self._instance.status() is ServerStatus.STOPPED:
            settings = settings_of_recovery(self._state, self._state.target, socket=self.archive_socket)
            append_settings(self._state.directory, settings, owner=self._state.owner_of_files)
            self._fence.start()
        return watch_standby(
            self._instance,
            self._access,
            standby,
            superuser=self._state.superuser,
            timeout_seconds=self._state.timeout_seconds,
            say=self._voice.say,
        )

    def _open(self, end: ReplayEnd) -> ReplayEnd:
        """Promote the server, which ended its replay at the target without; return where that was."""
        promoting = replace(self._state.target, action=TargetAction.PROMOTE)
        if self._instance.status() is not ServerStatus.STOPPED:
            with open_private(self._access, superuser=self._state.superuser) as server:
                server.row("SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume()::text END")
        opened = self._replay.attempt(promoting)
        self._run.record(end=_stored(opened))
        self._voice.say(f"the server waited at {end.lsn}; it is promoted to timeline {opened.timeline} now")
        return opened

    @property
    def _way_in(self) -> str:
        return f"psql -h {self._access.directory} -p {self._access.port} -U {self._state.superuser}"

    def _finish(self, end: ReplayEnd, log: PhaseLog) -> tuple[str, ...]:
        state = self._state
        if state.is_lifting:
            # An earlier process was about to open the server: all that comes before that was done.
            self._lift_fence()
            databases: tuple[str, ...] = ()
        elif not end.is_promoted and state.target.action is TargetAction.SHUTDOWN:
            log.done("nothing to do: the server is shut down at the target")
            log.done("the server is shut down at the target, as asked")
            self._voice.say(f"to open it: pgkeep finish --pgdata-dir={state.directory}")
            return ()
        else:
            if state.phases_done < 5:
                log.done(self._restore_topology() if self._is_through(end) else "waits for the promotion")
                if self._is_through(end):
                    self._run.record(phases_done=5)
            databases = self._check(is_through=self._is_through(end))
            if not self._is_through(end):
                log.done(f"{len(databases)} databases answer; the server is paused behind its fence")
                self._voice.say(f"to look: {self._way_in}")
                self._voice.say(f"to open it: pgkeep finish --pgdata-dir={state.directory}")
                return databases
            if state.is_drill:
                # What it would write to stop in order is thrown away with it.
                self._instance.stop(StopMode.IMMEDIATE, timeout_seconds=self._patience)
                self._run.record(phases_done=6, access="")
                log.done(f"every database answers ({len(databases)}); the server was stopped behind its fence")
                return databases
            self._run.record(is_lifting=True)
            self._lift_fence()
        self._run.record(phases_done=6, is_lifting=False, access="")
        log.done(f"every database answers ({len(databases)})" if databases else "the server runs as it is configured")
        return databases

    def _check(self, *, is_through: bool) -> tuple[str, ...]:
        """Check the cluster, and return its databases; one that is not as it should be stays behind the fence."""
        state, voice = self._state, self._voice
        # What was asked for beyond that may take hours, and proves nothing of a server that is to replay more.
        wanted = WantedChecks.of_options(state.options) if is_through else WantedChecks()
        try:
            names = check_behind_fence(
                self._ask,
                wanted,
                owner_uid=self._owner.uid,
                left_out=state.left_out,
                libraries=state.libraries,
                say=voice.say,
                warn=voice.warn,
            )
            if wanted.checksums:
                self._instance.stop(timeout_seconds=self._patience)
                bin_directory = Path(state.bin_directory)
                check_stopped(state.directory, wanted, bin_directory=bin_directory, say=voice.say, warn=voice.warn)
        except CheckFailed:
            # Whoever starts it by other means shall not open what is damaged.
            settings = settings_of_recovery(state, state.target, socket=None)
            settings |= isolation_settings(major=state.major)
            append_settings(state.directory, settings, owner=state.owner_of_files)
            raise
        return names

    def _ask(self, database: str) -> Server:
        return open_private(self._access, superuser=self._state.superuser, dbname=database)

    @property
    def _patience(self) -> float:
        """How long a stop or a start may take: a checkpoint of all that was replayed is not to be lost here."""
        return max(300, self._state.timeout_seconds) if self._state.timeout_seconds else 7 * 86400

    def _restore_topology(self) -> str:
        if self._state.standby is not None:
            return "a standby: slots and subscriptions are its primary's"

        return restore_topology(self._run, self._ask, say=self._voice.say, warn=self._voice.warn)

    def _lift_fence(self) -> None:
        """Stop the server, take the recovery settings out, and start it as its own configuration says."""
        state = self._state
        postmaster = running_postmaster(state.directory)
        if postmaster is None or postmaster.socket_directory == state.access:
            self._instance.stop(timeout_seconds=self._patience)
            settings = settings_of_recovery(state, state.target, socket=self.archive_socket)
            settings |= isolation_settings(major=state.major)
            remove_settings(state.directory, settings, owner=self._owner)
            if state.standby is None:
                remove_signals(state.directory)
            remove_file(state.wal_plan_path)
            append_settings(state.directory, state.lasting, owner=self._owner)
            # Its own configuration from here on; what lasts is in postgresql.auto.conf.
            start_as_configured(
                self._instance, service_of(state), timeout_seconds=self._patience, warn=self._voice.warn
            )
        # A standby that lets nobody in, by hot_standby = off, is never ready.
        self._instance.wait_for({ServerStatus.READY, ServerStatus.STANDBY}, timeout_seconds=self._patience)


def _stored(end: ReplayEnd) -> StoredEnd:
    return StoredEnd(
        lsn=str(end.lsn),
        timeline=int(end.timeline),
        last_commit=end.last_commit.isoformat() if end.last_commit is not None else "",
        is_promoted=end.is_promoted,
        is_target_met=end.is_target_met,
    )


def _end_of(stored: StoredEnd) -> ReplayEnd:
    return ReplayEnd(
        Lsn.parse(stored.lsn),
        Timeline(stored.timeline),
        dt.datetime.fromisoformat(stored.last_commit) if stored.last_commit else None,
        is_promoted=stored.is_promoted,
        is_target_met=stored.is_target_met,
    )


def _full_disk(state: RestoreState) -> str:
    """Return what to say of the first directory of the restore whose file system has no room for WAL; or nothing."""
    for place in (state.directory, state.directory / WAL_DIRECTORY, *state.places.values()):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        free = status.f_bavail * status.f_frsize
        if free < state.segment_size:
            return f"the file system of {place} has {free} bytes left: make room, and pgkeep finish goes on; "
    return ""


def archive_socket_of(access: PrivateAccess) -> Path:
    """Return where pgkeep answers the restore_command of the server behind *access*."""
    return access.directory / "archive" / "socket"
