"""
Bring a cluster back: six phases, each with its line in the log.

1 pre-check · 2 lay-down · 3 recovery-config · 4 start-and-replay · 5 topology · 6 verify-and-cleanup. Phase 1 refuses
whatever can be known to fail, and touches nothing; its result is the plan that ``--plan`` prints.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pgkeep.datadir.durable import remove_file
from pgkeep.datadir.instance import Instance, PrivateAccess, ServerStatus
from pgkeep.datadir.lay_down import LayDown
from pgkeep.datadir.owner import Owner, owner_of_restored_files
from pgkeep.datadir.recovery_files import (
    RecoveryFiles,
    Signal,
    append_settings,
    foreign_places,
    remove_settings,
    remove_signals,
    write_missing_configuration,
)
from pgkeep.datadir.target import Target
from pgkeep.errors import BackupUnusable, RecoveryFailed, RestoreRefused
from pgkeep.jobs.archive_service import ArchiveService
from pgkeep.jobs.recovery_plan import RecoveryPlan
from pgkeep.jobs.replay import ReplayEnd, open_private, watch_replay
from pgkeep.jobs.set_aside import Aside, set_aside
from pgkeep.jobs.wal_plan import WalPlan
from pgkeep.pg.lsn import Lsn, SystemIdentifier
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind, fence_settings, recovery_settings
from pgkeep.pg.tablespace_map import parse_tablespace_map, remap, render_tablespace_map
from pgkeep.pg.wal import WalSegment
from pgkeep.server import queries
from pgkeep.server.connection import fetch
from pgkeep.server.tools import Toolbox
from pgkeep.streams.item import DetachedItem, StreamedItem
from pgkeep.streams.record import RecordHead, RecordTail
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.wire.archive_packets import Operation

WAL_PLAN_FILE = "pgkeep.wal-plan.json"
PHASES = ("pre-check", "lay-down", "recovery-config", "start-and-replay", "topology", "verify-and-cleanup")


class Supply(Protocol):
    """Where the files of one backup come from."""

    def items(self) -> Iterator[DetachedItem | StreamedItem]:
        """Yield every item of the backup; digests are checked as the content passes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """
    What a door asks for.

    Attributes:
        recovery: The chosen base and target.
        tail: Of the base's record.
        data_directory: Where to; absolute.
        tablespaces: OID to absolute directory, for those that do not go where they were.
        overwrite_existing: Move away what stands there.
        start: Run phases 4 to 6; otherwise they are prepared and happen when the server is started.
        archive: Where the WAL comes from.
        restore_command: Returns it as the restored server will run it, given the path of the restore's WAL plan, and of
            the socket where pgkeep answers meanwhile, if it does.
        toolbox: Programs of the backup's major version.
        timeout_seconds: For phase 4; 0 waits for ever.
        workers: Threads for the lay-down.
        user: Who shall own the files; empty to find out.
        port: The restored server's port; 0 for the one in its configuration.
        say: Takes one line for the log.
        warn: Takes one warning.
    """

    recovery: RecoveryPlan
    tail: RecordTail
    data_directory: Path
    tablespaces: dict[int, Path] = field(default_factory=dict)
    overwrite_existing: bool = False
    start: bool = False
    archive: WalArchive
    restore_command: Callable[[Path, Path | None], str]
    toolbox: Toolbox
    timeout_seconds: int = 3600
    workers: int = 2
    user: str = ""
    port: int = 0
    say: Callable[[str], None]
    warn: Callable[[str], None]

    @property
    def base(self) -> RecordHead:
        """The backup whose files are laid down."""
        return self.recovery.base

    @property
    def target(self) -> RecoveryTarget:
        """Where replay stops, on a timeline named by its number, so that server and plan agree."""
        return replace(self.recovery.target, timeline=str(int(self.recovery.timeline)))

    @property
    def major(self) -> int:
        """The backup's major version."""
        return self.base.server_version // 10000

    @property
    def wal_plan_path(self) -> Path:
        """Where ``archive-get`` finds which WAL this restore cannot do without."""
        return self.data_directory / WAL_PLAN_FILE

    @property
    def is_copy(self) -> bool:
        """Whether it goes elsewhere than where it came from."""
        return str(self.data_directory) != self.base.data_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRestore:
    """
    A restore that passed phase 1.

    Attributes:
        request: What was asked for.
        target: The directories.
        aside: What would be moved away.
        lasting: For ``postgresql.auto.conf``, also when recovery is over.
    """

    request: RestoreRequest
    target: Target
    aside: Sequence[Aside]
    lasting: dict[str, str]

    def lines(self) -> Iterator[str]:
        """Yield the plan for people."""
        request, recovery = self.request, self.request.recovery
        base = request.base
        yield f"backup: {base.backup_id} ({base.level.word}, PostgreSQL {base.server_version_text}, {base.transport})"
        if base.base:
            yield f"  unchanged files come from {base.base}"
        yield f"files: {request.tail.files}, {request.tail.bytes} bytes, into {request.data_directory}"
        for oid, directory in self.target.outside.items():
            yield f"tablespace {oid}: into {directory}"
        for aside in self.aside:
            yield f"moved away first: {aside.path} to {aside.new_path}"
        yield f"recovery target: {recovery.target}, timeline {int(recovery.timeline)}"
        yield f"wal: from {recovery.wal_start} to {recovery.wal_end}"
        yield f"programs: {request.toolbox}"
        yield f"server: {'started behind a fence, checked, left running' if request.start else 'not started'}"
        for tablespace in recovery.later_tablespaces:
            yield f"tablespace {tablespace.oid}: made by the replay, in {tablespace.location}, which must exist"
        for note in recovery.notes:
            yield f"note: {note}"


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did; *end* is None when the server was not started."""

    files: int
    bytes: int
    end: ReplayEnd | None
    databases: tuple[str, ...] = ()


def prepare(request: RestoreRequest, *, now: dt.datetime) -> PreparedRestore:
    """
    Phase 1: decide everything and refuse what cannot work; nothing is touched.

    Raises:
        RestoreRefused: The target is in use, too small, or not ours; the message says what would work.
    """
    base = request.base
    recorded_owner = str(base.details.get("owner", ""))
    owner = owner_of_restored_files(request.data_directory, user=request.user, recorded=recorded_owner)
    target = Target(
        data_directory=request.data_directory,
        version_directory=str(base.details["tablespace_directory"]),
        tablespaces=_tablespace_places(request),
        owner=owner,
    )
    later = _check_later_tablespaces(request, target)
    aside = set_aside(target, now=now, also=later) if request.overwrite_existing else ()
    target.check(sizes=_sizes(request, target), is_overwritten=bool(aside))
    lasting: dict[str, str] = {}
    if request.is_copy:
        # A copy must never write into the archive of the server that it was copied from.
        lasting["archive_mode"] = "off"
    if request.port:
        lasting["port"] = str(request.port)
    return PreparedRestore(request=request, target=target, aside=aside, lasting=lasting)


def restore(prepared: PreparedRestore, supply: Supply) -> RestoreResult:
    """
    Run phases 2 to 6 of a prepared restore.

    Raises:
        PgkeepError: A phase failed. Before the end of phase 2 the target is marked as unfinished and another restore
            may clear it; what was moved away stays where the plan said.
    """
    request = prepared.request
    log = _PhaseLog(request.say)
    log.done("OK")
    for aside in prepared.aside:
        aside.move()
        request.say(f"moved {aside.path} to {aside.new_path}")
    files, size = _lay_down(prepared, supply)
    log.done(f"{size_text(size)} restored in {files} files")
    if not request.start:
        settings = _settings(prepared, request.target, socket=None)
        _write_recovery_files(prepared, settings)
        log.done(_describe(settings))
        _say_what_is_left(request)
        return RestoreResult(files, size, None)
    owner = prepared.target.owner or Owner.of(prepared.target.data_directory)
    access = PrivateAccess.make(owner)
    try:
        fenced = _FencedServer(prepared, access, owner)
        settings = _settings(prepared, request.target, socket=fenced.archive_socket)
        _write_recovery_files(prepared, settings)
        log.done(_describe(settings))
        end, databases = fenced.run(log)
    finally:
        if not (access.directory / f".s.PGSQL.{access.port}").exists():
            access.remove()
    return RestoreResult(files, size, end, databases)


def _say_what_is_left(request: RestoreRequest) -> None:
    request.say("the server was not started: its next start replays to the target")
    if request.is_copy:
        request.say("archiving is off in this copy; ALTER SYSTEM RESET archive_mode brings it back")
    request.say("logical replication is off until ALTER SYSTEM RESET max_logical_replication_workers")


def _settings(prepared: PreparedRestore, target: RecoveryTarget, *, socket: Path | None) -> dict[str, str]:
    """Return what goes into ``postgresql.auto.conf`` until recovery is over."""
    request = prepared.request
    command = request.restore_command(request.wal_plan_path, socket)
    recovery = recovery_settings(target, major=request.major, restore_command=command)
    # Whoever starts the server without us must not wake a subscription that takes the publisher's slot.
    settings = recovery | prepared.lasting | {"max_logical_replication_workers": "0"}
    if any(not tablespace.location for tablespace in request.base.tablespaces):
        # Without it a server that becomes consistent takes a directory in pg_tblspc for a fault (xlogrecovery.c,
        # CheckTablespaceDirectory), and panics.
        settings["allow_in_place_tablespaces"] = "on"
    return settings


def size_text(size: int) -> str:
    """Return *size* bytes as people write it: ``412.3 MiB``."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{size} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


class _PhaseLog:
    """Counts the phases and says one line for each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._phase = 0

    def done(self, text: str) -> None:
        name = PHASES[self._phase]
        self._phase += 1
        self._say(f"RESTORE PHASE {self._phase}/{len(PHASES)} {name}: {text}")


def _tablespace_places(request: RestoreRequest) -> dict[int, Path | None]:
    places: dict[int, Path | None] = {}
    for tablespace in request.base.tablespaces:
        place = Path(tablespace.location) if tablespace.location else None
        places[tablespace.oid] = request.tablespaces.get(tablespace.oid, place)
    unknown = request.tablespaces.keys() - places.keys()
    if unknown:
        known = ", ".join(str(oid) for oid in sorted(places)) or "none"
        raise RestoreRefused(f"the backup has no tablespace {min(unknown)}: it has {known}")
    original = {Path(t.location): t.oid for t in request.base.tablespaces if t.location}
    for oid, place in places.items():
        if request.is_copy and place in original and oid not in request.tablespaces:
            raise RestoreRefused(
                f"tablespace {oid} would go to its original place {place}, but the data directory does not",
                hint=f"name a place: --tablespace-map {oid}:/directory",
            )
    return places


def _check_later_tablespaces(request: RestoreRequest, target: Target) -> list[Path]:
    """
    Return where the replay will make tablespaces that the base does not have; their places cannot be mapped.

    Raises:
        RestoreRefused: The original's own files are there: the copy would write into them.
    """
    places = []
    for tablespace in request.recovery.later_tablespaces:
        place = Path(tablespace.location)
        in_the_way = place if request.is_copy else place / target.version_directory
        if os.path.lexists(in_the_way) and (request.is_copy or not request.overwrite_existing):
            raise RestoreRefused(
                f'the replay would make tablespace {tablespace.oid} "{tablespace.name}" in {place}, which exists on '
                "this host and is not part of this restore",
                hint="restore from a newer Full or Differential, or to a moment before the tablespace was made, "
                "or on another host",
            )
        places.append(place)
    return places


def _sizes(request: RestoreRequest, target: Target) -> dict[Path, int]:
    outside = {t.oid: t.size_bytes for t in request.base.tablespaces if t.oid in target.outside}
    sizes = {target.outside[oid]: size for oid, size in outside.items()}
    sizes[target.data_directory] = request.tail.bytes - sum(outside.values())
    return sizes


def _lay_down(prepared: PreparedRestore, supply: Supply) -> tuple[int, int]:
    request = prepared.request
    prepared.target.begin()
    root = str(request.base.details["root"])
    with LayDown(prepared.target, root=root, workers=request.workers, expected_bytes=request.tail.bytes) as lay_down:
        for item in supply.items():
            lay_down.accept(item)
        laid = lay_down.finish()
    return laid.files, laid.bytes


def _write_recovery_files(prepared: PreparedRestore, settings: dict[str, str]) -> None:
    request, target = prepared.request, prepared.target
    base = request.base
    paths = parse_tablespace_map(base.tablespace_map, major=request.major)
    moved = remap(paths, {oid: str(directory) for oid, directory in target.outside.items() if oid in paths})
    data_directory = target.data_directory
    RecoveryFiles(
        backup_label=base.backup_label,
        tablespace_map=render_tablespace_map(moved, major=request.major) if moved else "",
        signal=Signal.RECOVERY,
        settings=settings,
    ).write(data_directory, owner=target.owner)
    needed = {name: value for name, value in base.settings.items() if name in _NEEDED_SETTINGS}
    for name in write_missing_configuration(data_directory, needed, owner=target.owner):
        request.warn(f"the backup held no {name}: wrote a minimal one; put your own in its place")
    for name, value in foreign_places(data_directory).items():
        request.warn(f"postgresql.conf sets {name} to {value}: mend it before starting the server by other means")
    wal_plan(request.recovery).write(request.wal_plan_path)
    if target.owner is not None:
        os.chown(request.wal_plan_path, target.owner.uid, target.owner.gid)
    target.complete()


_NEEDED_SETTINGS = frozenset(
    {
        "max_connections",
        "max_worker_processes",
        "max_wal_senders",
        "max_prepared_transactions",
        "max_locks_per_transaction",
        "wal_level",
        "shared_preload_libraries",
        "port",
    }
)


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
            end = recovery.archived_end if fork is None else Lsn(fork - fork % size)
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


def _describe(settings: dict[str, str]) -> str:
    chosen = [f"{n}={v}" for n, v in settings.items() if n.startswith("recovery_target") and v and n not in _MINOR]
    return ", ".join(chosen) or "to the end of the WAL"


_MINOR = frozenset({"recovery_target_inclusive", "recovery_target_action"})


class _FencedServer:
    """Phases 4 to 6: the restored server behind its fence, with pgkeep answering its restore_command."""

    def __init__(self, prepared: PreparedRestore, access: PrivateAccess, owner: Owner) -> None:
        request, data_directory = prepared.request, prepared.target.data_directory
        self._prepared = prepared
        self._request = request
        self._access = access
        self._owner = owner
        self._superuser = str(request.base.details.get("superuser", "postgres"))
        log_path = data_directory.with_name(f"{data_directory.name}.pgkeep-restore.log")
        self._instance = Instance(data_directory, bin_directory=request.toolbox.directory, log_path=log_path)
        self._fence = fence_settings(major=request.major, socket_directory=str(access.directory)) | access.settings()
        self.archive_socket = access.directory / "archive" / "socket"

    def run(self, log: _PhaseLog) -> tuple[ReplayEnd, tuple[str, ...]]:
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
        finally:
            if not finished:
                self._instance.stop()
        return end, databases

    def _finish(self, end: ReplayEnd, log: _PhaseLog) -> tuple[str, ...]:
        request, access = self._request, self._access
        if not end.is_promoted and request.target.action is TargetAction.SHUTDOWN:
            log.done("nothing to do: the server is shut down at the target")
            log.done("the server is shut down at the target, as asked")
            return ()
        log.done(_disable_subscriptions(access, self._superuser) if end.is_promoted else "waits for the promotion")
        databases = _ask_every_database(access, self._superuser)
        if not end.is_promoted:
            log.done(f"{len(databases)} databases answer; the server is paused behind its fence")
            request.say(f"to look: psql -h {access.directory} -p {access.port} -U {self._superuser}")
            request.say("to open it: SELECT pg_wal_replay_resume(), then restart it")
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
            return self._attempt(target)
        try:
            end = self._attempt(target)
        except RecoveryFailed as failure:
            if recovery.has_hole:
                raise
            end = self._replay_without(target, failure)
        if not end.is_target_met:
            if recovery.has_hole:
                raise RecoveryFailed(f"replay ended at {end.lsn}, before {target}, where WAL is missing")
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
        settings = _settings(self._prepared, latest, socket=self.archive_socket)
        append_settings(self._prepared.target.data_directory, settings, owner=self._prepared.target.owner)
        try:
            end = self._attempt(latest)
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
        self._instance.stop()
        settings = _settings(self._prepared, self._request.target, socket=self.archive_socket)
        remove_settings(data_directory, settings, owner=self._owner)
        remove_signals(data_directory)
        remove_file(self._request.wal_plan_path)
        append_settings(data_directory, lasting, owner=self._owner)
        self._instance.start(lasting)
        self._instance.wait_for({ServerStatus.READY}, timeout_seconds=300)


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
        return [database.name for database in queries.databases(server) if database.allows_connections]


def _ask_every_database(access: PrivateAccess, superuser: str) -> tuple[str, ...]:
    names = _database_names(access, superuser)
    for name in names:
        with open_private(access, superuser=superuser, dbname=name) as server:
            if not server.value("SELECT count(*) FROM pg_class"):
                raise BackupUnusable(f"database {name} has an empty catalog")
    return tuple(names)
