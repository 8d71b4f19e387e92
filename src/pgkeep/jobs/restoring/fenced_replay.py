"""
Phase 4 of a restore: the replay behind the fence, to the target or to the end of the WAL where that is what was meant.

A time after the last commit, but within the WAL held, means the end of that WAL. The server calls it a target that was
not reached, and stops; it is then started once more, without the target. From there on nothing but what the server
remembers tells whether a commit after the target was replayed, and it remembers until it is stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pgkeep.datadir.instance import Instance, PrivateAccess, ServerStatus
from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.datadir.recovery_files import append_settings
from pgkeep.errors import RecoveryFailed
from pgkeep.jobs.restoring.directory import RestoreRun
from pgkeep.jobs.restoring.fence import Fence
from pgkeep.jobs.restoring.recovery_config import settings_of_recovery
from pgkeep.jobs.restoring.replay import ReplayEnd, ReplayOverdue, check_reached_end, watch_replay
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.pg.data_directory import RECOVERY_SIGNAL
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind

# StartupXLOG in src/backend/access/transam/xlog.c; from PostgreSQL 13 on.
_TARGET_NOT_REACHED = "recovery ended before configured recovery target was reached"
_PID_FILE_SECONDS = 10

Say = Callable[[str], None]


class FencedReplay:
    """The replay of one restore; the server may run already."""

    def __init__(
        self,
        run: RestoreRun,
        instance: Instance,
        fence: Fence,
        access: PrivateAccess,
        archive_socket: Path,
        *,
        say: Say,
        warn: Say,
    ) -> None:
        self._run = run
        self._instance = instance
        self._fence = fence
        self._access = access
        self._archive_socket = archive_socket
        self._say = say
        self._warn = warn

    @property
    def _state(self) -> RestoreState:
        return self._run.state

    def run(self) -> ReplayEnd:
        """Replay to the target of the restore; raise RecoveryFailed when that is not where it ends."""
        state, target = self._state, self._state.target
        if target.kind not in (TargetKind.TIME, TargetKind.IMMEDIATE):
            end = self.attempt(target)
            if target.kind is TargetKind.LATEST:
                self._check_reached_end(end)
            return end
        if state.is_past_target:
            end = self._without_target_again(target)
        else:
            try:
                end = self.attempt(target)
            except ReplayOverdue:
                raise
            except RecoveryFailed as failure:
                # Whatever else went wrong, such as a vault that is away, can be mended and the replay gone on with.
                if state.has_hole or not any(_TARGET_NOT_REACHED in line for line in self._instance.log_tail(200)):
                    raise
                end = self._without_target(target, failure)
        if not end.is_target_met:
            if state.has_hole:
                raise RecoveryFailed(f"replay ended at {end.lsn}, before {target}, where WAL is missing")
            self._check_reached_end(end)
            self._say_end_of_wal(end)
        return end

    def attempt(self, target: RecoveryTarget) -> ReplayEnd:
        """Replay to *target*, or go on watching a server that does."""

        def once() -> ReplayEnd:
            if self._instance.status() is ServerStatus.STOPPED:
                self._start(target)
            return self._watch(target)

        return self.large_enough(once)

    def large_enough(self, attempt: Callable[[], ReplayEnd]) -> ReplayEnd:
        """Return what *attempt* does, begun again wherever the WAL asks for higher settings than the server has."""
        while True:
            try:
                return attempt()
            except ReplayOverdue:
                raise
            except RecoveryFailed:
                if not self._fence.is_too_small():
                    raise
                self._instance.stop()

    def _start(self, target: RecoveryTarget) -> None:
        state = self._state
        # A server that was promoted has no target any more.
        if (state.directory / RECOVERY_SIGNAL).exists():
            # What stands there may be for another target, or for a socket that is gone.
            settings = settings_of_recovery(state, target, socket=self._archive_socket)
            append_settings(state.directory, settings, owner=state.owner_of_files)
        self._fence.start()

    def _watch(self, target: RecoveryTarget) -> ReplayEnd:
        return watch_replay(
            self._instance,
            self._access,
            target,
            major=self._state.major,
            superuser=self._state.superuser,
            timeout_seconds=self._state.timeout_seconds,
            say=self._say,
            consistent_at=self._state.end_of_backup,
            planned_end=self._state.end_of_wal,
        )

    def _without_target(self, target: RecoveryTarget, failure: RecoveryFailed) -> ReplayEnd:
        """
        Replay to the end of the WAL, and raise *failure* when something later than *target* came.

        The first replay went to the end as well: whatever the WAL asks of the server's settings is known by now.
        """
        self._instance.stop()
        self._run.record(is_past_target=True)
        self._start(replace(target, kind=TargetKind.LATEST, value=None))
        self._run.record(server_past_target=self._server())
        return self._judged(target, failure)

    def _without_target_again(self, target: RecoveryTarget) -> ReplayEnd:
        """Go on watching what an earlier run began; only that very server knows what it has replayed."""
        state = self._state
        if not state.server_past_target or self._server() != state.server_past_target:
            raise RecoveryFailed(
                f"an earlier run replayed on after {target} was not reached, and stopped: nobody knows how far it got",
                hint=f"begin anew: pgkeep rollback --pgdata-dir={state.directory}, then restore again",
            )
        return self._judged(target, RecoveryFailed(f"{target} was not reached, but the WAL has something later"))

    def _judged(self, target: RecoveryTarget, failure: RecoveryFailed) -> ReplayEnd:
        try:
            end = self._watch(replace(target, kind=TargetKind.LATEST, value=None))
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

    def _server(self) -> str:
        """Return by what the running server is told from any other, earlier or later; empty when none runs."""
        deadline = time.monotonic() + _PID_FILE_SECONDS
        pause = threading.Event()
        while True:
            postmaster = running_postmaster(self._state.directory)
            if postmaster is not None and postmaster.start_time:
                return f"{postmaster.pid} {postmaster.start_time}"
            if self._instance.status() is ServerStatus.STOPPED or time.monotonic() > deadline:
                return ""
            pause.wait(0.02)

    def _check_reached_end(self, end: ReplayEnd) -> None:
        state = self._state
        check_reached_end(end, state.end_of_wal, segment_size=state.segment_size, log_path=self._instance.log_path)

    def _say_end_of_wal(self, end: ReplayEnd) -> None:
        last = f" ({end.last_commit.isoformat(sep=' ')})" if end.last_commit is not None else ""
        target = self._state.target
        if target.kind is TargetKind.TIME:
            self._say(f"the target time is after the last commit{last}: recovered to the end of the WAL")
        if target.action is not TargetAction.PROMOTE:
            self._warn(f"the server was promoted instead of {target.action.value}: there is no target to stop at")
