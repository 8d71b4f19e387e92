"""Phase 1 of a restore: refuse whatever can be known to fail; nothing is touched."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.datadir.owner import owner_of_restored_files
from pgkeep.datadir.postmaster import read_control_file
from pgkeep.datadir.service import Service, ServiceKind
from pgkeep.datadir.service_search import find_service
from pgkeep.datadir.supervisor import find_supervisor
from pgkeep.datadir.target import Target, spaces
from pgkeep.errors import PgkeepError, RestoreRefused
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.restoring.foreign_tablespaces import check_not_foreign
from pgkeep.jobs.restoring.original_cluster import OriginalCluster
from pgkeep.jobs.restoring.request import RestoreRequest
from pgkeep.jobs.restoring.restored_checks import WantedChecks
from pgkeep.jobs.restoring.set_aside import Aside, directories_in_the_way, set_aside
from pgkeep.jobs.restoring.topology import plan_line
from pgkeep.jobs.restoring.wipe import check_nothing_mounted
from pgkeep.pg.data_directory import CONTROL_FILE
from pgkeep.pg.wal import DEFAULT_SEGMENT_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRestore:
    """
    A restore that passed phase 1.

    Attributes:
        request: What was asked for.
        target: The directories.
        aside: What would be moved away.
        wiped: What would be removed instead.
        applied: Which of the chain an earlier run has laid down for good, oldest first.
        lasting: For ``postgresql.auto.conf``, also when recovery is over.
        service: What runs the server of the data directory.
    """

    request: RestoreRequest
    target: Target
    aside: Sequence[Aside]
    wiped: Sequence[Path] = ()
    applied: Sequence[str] = ()
    lasting: dict[str, str]
    service: Service = field(default_factory=Service)

    def lines(self) -> Iterator[str]:
        """Yield the plan for people."""
        request, recovery = self.request, self.request.recovery
        base = request.base
        if request.unfinished is not None:
            state = request.unfinished
            yield f"goes on with the restore {state.restore_id}, of which phase {state.phases_done} is done"
        yield f"backup: {base.backup_id} ({base.level.word}, PostgreSQL {base.server_version_text}, {base.transport})"
        if request.combine is not None:
            yield f"  combined by {request.combine}: {', '.join(request.chain)}"
        elif len(request.chain) > 1:
            yield f"  rolled forward in place: {', '.join(request.chain)}"
        elif base.base:
            yield f"  unchanged files come from {base.base}"
        if self.applied:
            yield f"  applied already: {', '.join(self.applied)}"
        yield f"files: {request.tail.files}, {request.expected_bytes} bytes, into {request.data_directory}"
        yield from self._place_lines()
        if request.standby is not None:
            yield from request.standby.lines()
        else:
            yield f"recovery target: {recovery.target}, timeline {int(recovery.timeline)}"
        yield f"wal: from {recovery.wal_start} to {recovery.wal_end}, {self._segments}"
        yield f"programs: {request.toolbox or f'none of PostgreSQL {request.major} on this host'}"
        service = f" by {self.service}" if self.service.kind is not ServiceKind.NONE else ""
        left = f"started behind a fence, checked, left running{service}"
        yield f"server: {left if request.start else 'not started'}"
        yield from self._archiving_lines()
        if line := plan_line(recovery.replication or base.replication, request.options):
            yield line
        for tablespace in recovery.later_tablespaces:
            yield f"tablespace {tablespace.oid}: made by the replay, in {tablespace.location}"
        for note in recovery.notes:
            yield f"note: {note}"

    def _place_lines(self) -> Iterator[str]:
        """Say where the files go, and what becomes of what stands there."""
        for oid, directory in self.target.outside.items():
            yield f"tablespace {oid}: into {directory}"
        for space in spaces(_sizes(self.request, self.target)):
            needed, free = size_text(space.needed_bytes), size_text(space.free_bytes)
            yield f"disk: {needed} are needed on the file system of {space.place}, {free} are free"
        if self.service.was_running:
            yield f"stopped first: the server in {self.request.data_directory}, {self.service}"
            yield "  what it writes from now on is no part of this restore; stop it yourself before to have that, too"
        for aside in self.aside:
            yield f"moved away first: {aside}"
        for path in self.wiped:
            yield f"removed first, for ever: what is in {path}"

    @property
    def _segments(self) -> str:
        """How many WAL segments the replay reads at most."""
        base, recovery = self.request.base, self.request.recovery
        size = base.wal.segment_size if base.wal is not None else DEFAULT_SEGMENT_SIZE
        return f"{-(-recovery.wal_end // size) - recovery.wal_start // size} segments of {size_text(size)}"

    def _archiving_lines(self) -> Iterator[str]:
        """Say where the WAL will go when the place alone does not tell whether this is a copy."""
        request, base = self.request, self.request.base
        if request.is_copy:
            return
        if request.is_elsewhere:
            yield f"archiving: off, since the backup was made on {base.host} and this is another host"
        elif base.transport != "local" and base.settings.get("archive_mode", "off") != "off":
            yield f"archiving: on, by {base.settings.get('archive_command') or base.settings.get('archive_library')}"
            yield "  if the original still runs on another host: keep this one from archiving before it is started"


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
    service = _service(request)
    if request.unfinished is not None and request.unfinished.phases_done > 1:
        # The files are there; what is left needs the state alone.
        return PreparedRestore(request=request, target=target, aside=(), lasting={}, service=service)
    if request.start and request.toolbox is not None:
        owner_uid = owner.uid if owner is not None else os.geteuid()
        wanted = WantedChecks.of_options(request.options)
        wanted.check(bin_directory=request.toolbox.directory, owner_uid=owner_uid)
    later = check_later_tablespaces(request, target)
    original = OriginalCluster.of(base) if request.is_copy else None
    if original is not None:
        check_clear_of(original, target)
    aside, wiped = _cleared(request, target, later, now)
    applied = _applied(request, target)
    target.check(
        # What an earlier run has laid down takes its room already.
        sizes={} if applied else _sizes(request, target),
        is_overwritten=bool(aside or wiped),
        may_stop=request.overwrite_existing,
        is_resumed=request.unfinished is not None,
    )
    # What is never opened takes no port.
    if original is not None and request.start and not request.is_drill:
        _check_port(original, request)
    lasting: dict[str, str] = {}
    if request.is_elsewhere:
        # A copy must never write into the archive of the server that it was copied from.
        lasting["archive_mode"] = "off"
    if request.port:
        lasting["port"] = str(request.port)
    return PreparedRestore(
        request=request, target=target, aside=aside, wiped=wiped, applied=applied, lasting=lasting, service=service
    )


def _applied(request: RestoreRequest, target: Target) -> tuple[str, ...]:
    """Return which backups of the chain need not be laid down again."""
    if request.unfinished is None or not target.is_marked:
        return ()
    # What was written of the others is put right by doing them again, and by no other backups.
    begun, found = tuple(request.unfinished.chain), tuple(request.unfinished.applied)
    is_same = begun == request.chain[: len(begun)] and found == request.chain[: len(found)]
    return found if is_same else ()


def _service(request: RestoreRequest) -> Service:
    """
    Return what runs the server of the target; for an unfinished restore, what ran it when that began.

    Raises:
        RestoreRefused: A program minds the cluster that would undo the restore, or be misled by it.
    """
    unfinished = request.unfinished
    is_known = unfinished is not None and bool(unfinished.server)
    service = Service.from_dict(unfinished.server) if is_known and unfinished else find_service(request.data_directory)
    supervisor = find_supervisor(request.data_directory, service)
    if supervisor is not None:
        raise RestoreRefused(
            f"{request.data_directory} is in the hands of {supervisor.name}: {supervisor.evidence}",
            hint=supervisor.hint,
        )
    return service


def _cleared(
    request: RestoreRequest, target: Target, later: Sequence[Path], now: dt.datetime
) -> tuple[Sequence[Aside], Sequence[Path]]:
    """Return what is moved out of the way, and what is removed; of an unfinished restore what that had decided."""
    if request.unfinished is not None and (request.unfinished.asides or request.unfinished.wiped):
        # A second name for what was renamed already would make the first one forgotten.
        return request.unfinished.moved, [Path(path) for path in request.unfinished.wiped]
    if not request.overwrite_existing:
        return (), ()
    leftovers = {os.path.realpath(directory) for directory in target.own_leftovers()}
    in_the_way = [path for path in directories_in_the_way(target, later) if str(path) not in leftovers]
    if in_the_way:
        _check_identity(request)
        check_not_foreign(
            in_the_way,
            data_directory=request.data_directory,
            version_directory=target.version_directory,
            is_wiped=request.wipe,
        )
    if request.wipe:
        check_nothing_mounted(in_the_way)
    return ((), in_the_way) if request.wipe else (set_aside(in_the_way, now=now), ())


def _check_identity(request: RestoreRequest) -> None:
    """Refuse to take the place of another cluster, whatever may be overwritten."""
    if not (request.data_directory / CONTROL_FILE).exists():
        return
    try:
        found = str(int(read_control_file(request.data_directory).system_identifier))
    except PgkeepError:
        return
    if found != request.base.system_identifier:
        raise RestoreRefused(
            f"{request.data_directory} holds another cluster: its system identifier is {found}, "
            f"that of the backup {request.base.system_identifier}",
            hint="name another directory in pgdata_dir, or move that cluster away yourself",
        )


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


def check_later_tablespaces(request: RestoreRequest, target: Target) -> list[Path]:
    """
    Return where the replay will make tablespaces that the base does not have; their places cannot be mapped.

    Raises:
        RestoreRefused: Somebody's files are there, and the replay would write into them; or nothing is there at all.
    """
    places = []
    for tablespace in request.recovery.later_tablespaces:
        place = Path(tablespace.location)
        name = f' "{tablespace.name}"' if tablespace.name else ""
        makes = f"the replay would make tablespace {tablespace.oid}{name} in {place}, which"
        if request.recovery.stop is not None and not place.is_dir():
            # The server makes its own directory in it, never the place itself.
            raise RestoreRefused(
                f"{makes} does not exist on this host",
                hint=f"make {place}, empty and the property of the server's account, or restore to a moment before the "
                "tablespace was made",
            )
        in_the_way = _is_in_use(place) if request.is_copy else os.path.lexists(place / target.version_directory)
        if in_the_way and (request.is_copy or not request.overwrite_existing):
            raise RestoreRefused(
                f"{makes} exists on this host and is not part of this restore",
                hint="restore from a newer Full or Differential, or to a moment before the tablespace was made, "
                "or on another host",
            )
        places.append(place)
    return places


def _is_in_use(place: Path) -> bool:
    try:
        return any(place.iterdir())
    except OSError:
        return True


def check_clear_of(original: OriginalCluster, target: Target) -> None:
    """Refuse a copy that would be laid down in a tablespace of its running *original*; raise RestoreRefused."""
    if original.postmaster is not None:
        used = {os.path.realpath(place): oid for oid, place in original.tablespaces().items()}
        for directory in target.outside.values():
            oid_of_original = used.get(os.path.realpath(directory))
            if oid_of_original is not None:
                raise RestoreRefused(
                    f"{directory} is in use: it is tablespace {oid_of_original} of the server in "
                    f"{original.data_directory}",
                    hint="name another directory in the tablespace map",
                )


def _check_port(original: OriginalCluster, request: RestoreRequest) -> None:
    postmaster = original.postmaster
    port = request.port or int(request.base.settings.get("port", "0"))
    if postmaster is not None and port and port == postmaster.port:
        raise RestoreRefused(
            f"port {port} is in use by the server in {original.data_directory}",
            hint="give the copy its own: --port=NUMBER",
        )


def _sizes(request: RestoreRequest, target: Target) -> dict[Path, int]:
    outside = {oid: request.tablespace_bytes.get(oid, 0) for oid in target.outside}
    sizes = {target.outside[oid]: size for oid, size in outside.items()}
    sizes[target.data_directory] = max(0, request.expected_bytes - sum(outside.values()))
    for directory, size in request.beside.items():
        sizes[directory] = sizes.get(directory, 0) + size
    return sizes
