"""
Mode ``dump``: one logical dump of each database by pg_dump, and the globals by pg_dumpall.

A dump goes straight from the child's pipe to the sink. Each database is dumped in a snapshot of its own, one after the
other: consistent in itself, not with its neighbours. Only the directory format is staged, one database at a time.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pgkeep.errors import ServerError, ToolError
from pgkeep.modes.contract import BackupRequest, History, Plan
from pgkeep.modes.dump_names import GLOBALS, encode_name, is_named, select_names
from pgkeep.modes.dump_staging import check_space, size_text, staging_directory
from pgkeep.server.client_program import ClientProgram, ProgramFailed, client_environment
from pgkeep.server.connection import Server
from pgkeep.server.database import DatabaseProperties, list_databases, lock_holders, refusal_as_error
from pgkeep.server.pg_dump import (
    DumpCommand,
    DumpFormat,
    can_compress,
    check_attribute_options,
    check_extra_options,
    globals_arguments,
)
from pgkeep.server.tools import toolbox_for_dump
from pgkeep.streams.compression import Compression, compress
from pgkeep.streams.item import CHUNK_BYTES, UNKNOWN_SIZE, Buffer, Item, ItemHeader, ItemKind
from pgkeep.streams.record import Database, Level, RecordHead, new_backup_id

_WARNINGS_TOLD = 20
"""How many of one child's warnings go into the job log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """
    What is dumped, and how.

    Attributes:
        databases: Names and patterns; empty means all.
        excluded: Names and patterns.
        format: pg_dump's output format.
        compression: With ``NONE``, a *compression_level* above 0 means gzip.
        compression_level: 0 for the algorithm's default.
        include_blobs: Whether large objects are dumped.
        include_globals: Whether roles and tablespaces are dumped.
        lock_wait_timeout_seconds: How long to wait for a table's lock; 0 for ever.
        jobs: Parallel tables of a dump in directory format.
        extra: Further options of pg_dump.
        bin_dir: Where PostgreSQL's programs are; None to search.
        tmpdir: Where the directory format is staged.
    """

    databases: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    format: DumpFormat = DumpFormat.CUSTOM
    compression: Compression = Compression.NONE
    compression_level: int = 0
    include_blobs: bool = True
    include_globals: bool = True
    lock_wait_timeout_seconds: float = 300
    jobs: int = 1
    extra: tuple[str, ...] = ()
    bin_dir: Path | None = None
    tmpdir: Path = Path("/var/tmp/pgkeep")  # noqa: S108  made with mode 0700, and not followed when it is a link


class DumpDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What a dump's record says beyond other records (``details``).

    Attributes:
        format: Name of the format.
        compression: Name of the compression; ``none`` for none.
        is_compressed_by_pg_dump: Whether pg_dump did it, inside its format, and pg_restore undoes it.
        tool_version: Version of the pg_dump that was used, ``15.20``.
        globals_path: Virtual path of the globals; empty when they were not asked for.
        has_role_passwords: Whether the globals hold the roles' password hashes.
        databases: What the dumps do not hold of their databases.
    """

    format: str
    compression: str
    is_compressed_by_pg_dump: bool
    tool_version: str
    globals_path: str = ""
    has_role_passwords: bool = False
    databases: list[DatabaseProperties] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpPlan(Plan):
    """
    What a dump job is about to do.

    Attributes:
        options: What was asked for.
        command: How each database is dumped.
        compression: What is done to the whole, by pg_dump or by pgkeep.
        compression_level: Within its range.
        databases: By name.
        role_passwords: Whether password hashes may be read.
        system_identifier: The cluster's.
    """

    options: DumpOptions
    command: DumpCommand
    compression: Compression
    compression_level: int
    databases: tuple[DatabaseProperties, ...]
    role_passwords: bool
    system_identifier: str

    @property
    def is_compressed_by_pg_dump(self) -> bool:
        """Whether pg_dump itself compresses."""
        return self.command.compression is not Compression.NONE

    @property
    def suffix(self) -> str:
        """What pgkeep's own compression adds to a file's name."""
        return "" if self.is_compressed_by_pg_dump else self.compression.suffix

    @property
    def globals_path(self) -> str:
        """Virtual path of the globals."""
        return f"{self.request.root}/{GLOBALS}.sql{self.suffix}"

    def path(self, database: str) -> str:
        """Return the virtual path of the dump of *database*; that of a directory for the directory format."""
        suffix = "" if self.command.format is DumpFormat.DIRECTORY else self.suffix
        return f"{self.request.root}/{encode_name(database)}{self.command.format.suffix}{suffix}"


class DumpMode:
    """Logical dumps, database by database."""

    name = "dump"
    levels = frozenset({Level.FULL})

    def options(self, value_of: Callable[[str], Any]) -> DumpOptions:
        """Return the options of a dump."""
        bin_dir = value_of("bin_dir")
        return DumpOptions(
            databases=value_of("database"),
            excluded=value_of("exclude_database"),
            format=DumpFormat(value_of("dump_format")),
            compression=Compression(value_of("compress")),
            compression_level=value_of("compression_level"),
            include_blobs=value_of("include_blobs"),
            include_globals=value_of("include_globals"),
            lock_wait_timeout_seconds=value_of("lock_wait_timeout"),
            jobs=value_of("parallel_jobs"),
            extra=value_of("dump_options"),
            bin_dir=Path(bin_dir) if bin_dir else None,
            tmpdir=Path(value_of("tmpdir")),
        )

    def plan(self, request: BackupRequest, *, server: Server, history: History) -> DumpPlan:
        """
        Choose the databases and the pg_dump, and refuse what could not be restored or would not fit.

        Raises:
            SettingsError: A database does not exist, an option contradicts, or ``tmpdir`` is too small.
            ToolError: There is no pg_dump that fits the server.
            ServerError: The role lacks a right.
        """
        options: DumpOptions = request.options
        check_extra_options(options.extra)
        compression = options.compression
        if compression is Compression.NONE and options.compression_level:
            compression = Compression.GZIP
        compression_level = compression.level(options.compression_level)
        toolbox = toolbox_for_dump(server.version, bin_dir=options.bin_dir)
        by_pg_dump = options.format.compresses and can_compress(toolbox, compression)
        command = DumpCommand(
            toolbox=toolbox,
            format=options.format,
            compression=compression if by_pg_dump else Compression.NONE,
            compression_level=compression_level,
            include_blobs=options.include_blobs,
            lock_wait_timeout_seconds=options.lock_wait_timeout_seconds,
            jobs=options.jobs,
            role=server.target.role,
            extra=options.extra,
        )
        databases = _chosen_databases(server, options, warn=request.warn)
        for database in databases:
            with contextlib.closing(server.session(dbname=database.name)) as session:
                check_attribute_options(session, toolbox=toolbox)
        if options.format is DumpFormat.DIRECTORY:
            largest = max(databases, key=lambda database: database.size_bytes)
            check_space(options.tmpdir, largest.size_bytes, purpose=f'staging database "{largest.name}"')
        role_passwords = options.include_globals and _may_read_passwords(server)
        if options.include_globals and not role_passwords:
            request.warn("role passwords are not in this backup: the role may not read pg_authid")
        request.say(f"pg_dump {toolbox.version} of server {server.version_text}: {len(databases)} databases")
        return DumpPlan(
            request=request,
            level=Level.FULL,
            backup_id=new_backup_id(request.begin, Level.FULL),
            reason="" if request.level is Level.FULL else f"mode dump has no {request.level.word}: this is a Full",
            options=options,
            command=command,
            compression=compression,
            compression_level=compression_level,
            databases=databases,
            role_passwords=role_passwords,
            system_identifier=str(server.value("SELECT system_identifier FROM pg_control_system()")),
        )

    @contextlib.contextmanager
    def open(self, plan: DumpPlan, *, server: Server) -> Iterator[DumpSource]:
        """Begin the dumps of *plan*; leaving ends a child that still runs and removes what is staged."""
        with contextlib.ExitStack() as held:
            staging = None
            if plan.command.format is DumpFormat.DIRECTORY:
                staging = held.enter_context(staging_directory(plan.options.tmpdir))
            source = DumpSource(plan, server, staging)
            held.callback(source.close)
            yield source


class DumpSource:
    """One dump job being read."""

    def __init__(self, plan: DumpPlan, server: Server, staging: Path | None) -> None:
        self._plan = plan
        self._server = server
        self._staging = staging
        self._dumped: list[DatabaseProperties] = []
        self._reading: _ChildItem | None = None
        self._begin = 0.0

    def items(self) -> Iterator[Item]:
        """Yield the globals, then the databases by name."""
        if self._plan.options.include_globals:
            yield self._globals()
        for database in self._plan.databases:
            if not self._still_exists(database):
                self._plan.request.warn(f'database "{database.name}" was dropped before it was dumped')
                continue
            if self._staging is None:
                yield self._streamed(database)
            else:
                yield from self._staged(database, self._staging / "dump")
            self._dumped.append(database)

    def finish(self) -> RecordHead:
        """Return the record's head."""
        plan = self._plan
        if not self._dumped:
            raise ServerError("no database was dumped: every one was dropped meanwhile")
        details = DumpDetails(
            format=plan.command.format.value,
            compression=plan.compression.value,
            is_compressed_by_pg_dump=plan.is_compressed_by_pg_dump,
            tool_version=str(plan.command.toolbox.version),
            globals_path=plan.globals_path if plan.options.include_globals else "",
            has_role_passwords=plan.role_passwords,
            databases=self._dumped,
        )
        return RecordHead(
            backup_id=plan.backup_id,
            cluster=plan.request.cluster,
            mode=DumpMode.name,
            level=plan.level,
            files_from=plan.backup_id,
            server_version=self._server.version,
            server_version_text=self._server.version_text,
            system_identifier=plan.system_identifier,
            begin_time=_iso(plan.request.begin),
            end_time=_iso(dt.datetime.now(dt.UTC)),
            databases=[
                Database(name=one.name, oid=one.oid, size_bytes=one.size_bytes, path=plan.path(one.name))
                for one in self._dumped
            ],
            details=msgspec.to_builtins(details),
        )

    def confirm(self) -> None:
        """Release nothing: a dump holds nothing on the server."""

    def close(self) -> None:
        """End a child that is still being read."""
        if self._reading is not None:
            self._reading.close()

    def _globals(self) -> _ChildItem:
        plan = self._plan
        arguments = globals_arguments(
            plan.command.toolbox,
            dbname=self._server.sql.info.dbname,
            role=self._server.target.role,
            role_passwords=plan.role_passwords,
        )
        return self._child(plan.globals_path, "pg_dumpall", "pg_dumpall of the globals", arguments, self._tell_globals)

    def _streamed(self, database: DatabaseProperties) -> _ChildItem:
        def tell(size_bytes: int, seconds: float) -> None:
            self._tell(database, size_bytes, seconds)

        arguments = self._plan.command.arguments(database.name)
        item = self._child(self._plan.path(database.name), "pg_dump", _task(database), arguments, tell)
        item.explain = lambda error: self._with_blockers(error, database)
        return item

    def _child(
        self,
        path: str,
        program: str,
        task: str,
        arguments: list[str | Path],
        tell: Callable[[int, float], None],
    ) -> _ChildItem:
        header = ItemHeader(path=path, size=UNKNOWN_SIZE, mtime_ns=time.time_ns())
        self._reading = _ChildItem(header, self, program, task, arguments, tell)
        return self._reading

    def _staged(self, database: DatabaseProperties, directory: Path) -> Iterator[Item]:
        """Let pg_dump write *directory*, then yield its files, each removed when it has been read."""
        check_space(self._plan.options.tmpdir, database.size_bytes, purpose=f'staging database "{database.name}"')
        begin = time.monotonic()
        arguments = self._plan.command.arguments(database.name, directory=directory)
        try:
            with self.run("pg_dump", _task(database), arguments, gives_output=False) as program:
                program.finish()
                self.tell_warnings(program)
        except ToolError as error:
            raise self._with_blockers(error, database) from error
        root = self._plan.path(database.name)
        yield _DirectoryItem(ItemHeader(root, ItemKind.DIRECTORY, mtime_ns=time.time_ns(), file_mode=0o700))
        size_bytes = 0
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            status = (directory / name).stat()
            size_bytes += status.st_size
            yield _StagedFile(
                ItemHeader(
                    path=f"{root}/{name}{self._plan.suffix}",
                    size=UNKNOWN_SIZE if self._plan.suffix else status.st_size,
                    mtime_ns=status.st_mtime_ns,
                ),
                directory / name,
                self._plan,
            )
            (directory / name).unlink()
        directory.rmdir()
        self._tell(database, size_bytes, time.monotonic() - begin)

    @contextlib.contextmanager
    def run(
        self, program: str, task: str, arguments: list[str | Path], *, gives_output: bool
    ) -> Iterator[ClientProgram]:
        """Run one of PostgreSQL's programs on the server; end it on leaving."""
        self._begin = time.monotonic()
        with (
            client_environment(self._server.sql, program=program) as environment,
            ClientProgram(arguments, environment, task=task, gives_output=gives_output) as child,
        ):
            yield child

    def compressed(self, chunks: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield *chunks* as pgkeep compresses them, if it is pgkeep that does."""
        if self._plan.is_compressed_by_pg_dump:
            return chunks
        return compress(chunks, self._plan.compression, self._plan.compression_level)

    def tell_warnings(self, child: ClientProgram) -> None:
        """Pass on what a child that succeeded complained of."""
        for line in child.complaints[:_WARNINGS_TOLD]:
            self._plan.request.warn(f"{child.task}: {line}")

    def _still_exists(self, database: DatabaseProperties) -> bool:
        query = "SELECT count(*) FROM pg_database WHERE oid = %s AND datname = %s"
        return bool(self._server.value(query, [database.oid, database.name]))

    def _with_blockers(self, error: ToolError, database: DatabaseProperties) -> ToolError:
        """Return the error that names who holds the lock that pg_dump waited for, where that was the trouble."""
        if not isinstance(error, ProgramFailed) or not self._was_lock_refused(error):
            return error
        holders: list[str] = []
        with contextlib.suppress(ServerError):
            session = self._server.session(dbname=database.name)
            with contextlib.closing(session), refusal_as_error("cannot look for the holder"):
                holders = lock_holders(session)
        waited = f"{self._plan.command.lock_wait_timeout_seconds:g} s"
        advice = "raise lock_wait_timeout or run the job at another time"
        return ToolError(
            f'{_task(database)} did not get its lock on a table within {waited}',
            hint="; ".join([*holders, advice]),
        )

    def _was_lock_refused(self, error: ProgramFailed) -> bool:
        # The server's part of the message may be translated, and LOCK TABLE also fails for want of a right: at once.
        limit = self._plan.command.lock_wait_timeout_seconds
        is_late = bool(limit) and time.monotonic() - self._begin >= limit
        text = "\n".join(error.complaints)
        return (is_late and "LOCK TABLE" in text) or "could not obtain lock on relation" in text

    def _tell(self, database: DatabaseProperties, size_bytes: int, seconds: float) -> None:
        self._plan.request.say(
            f'database "{database.name}": {size_text(size_bytes)} dumped in {seconds:.1f} s, '
            f"database size {size_text(database.size_bytes)}"
        )

    def _tell_globals(self, size_bytes: int, seconds: float) -> None:
        self._plan.request.say(f"globals: {size_text(size_bytes)} in {seconds:.1f} s")


class _ChildItem:
    """A streamed item whose content is what a child writes."""

    def __init__(
        self,
        header: ItemHeader,
        source: DumpSource,
        program: str,
        task: str,
        arguments: list[str | Path],
        tell: Callable[[int, float], None],
    ) -> None:
        self.header = header
        self.explain: Callable[[ToolError], ToolError] = lambda error: error
        self._chunks = self._read(source, program, task, arguments, tell)

    def chunks(self) -> Iterator[Buffer]:
        """Yield what the child writes; raise ToolError when it fails, also after its last byte."""
        return self._chunks

    def close(self) -> None:
        """End the child if it runs."""
        self._chunks.close()

    def _read(
        self,
        source: DumpSource,
        program: str,
        task: str,
        arguments: list[str | Path],
        tell: Callable[[int, float], None],
    ) -> Generator[Buffer, None, None]:
        begin = time.monotonic()
        size_bytes = 0
        try:
            with source.run(program, task, arguments, gives_output=True) as child:
                for chunk in source.compressed(_finished(child)):
                    size_bytes += len(chunk)
                    yield chunk
                source.tell_warnings(child)
        except ToolError as error:
            raise self.explain(error) from error
        tell(size_bytes, time.monotonic() - begin)


def _finished(child: ClientProgram) -> Iterator[Buffer]:
    """Yield the child's output, and look at its exit status before the compressor writes its end."""
    yield from child.chunks()
    child.finish()


@dataclass(frozen=True, slots=True)
class _DirectoryItem:
    header: ItemHeader

    def chunks(self) -> Iterator[Buffer]:
        return iter(())


@dataclass(frozen=True, slots=True)
class _StagedFile:
    """One file of a staged dump, read once."""

    header: ItemHeader
    file: Path
    plan: DumpPlan

    def chunks(self) -> Iterator[Buffer]:
        if self.plan.is_compressed_by_pg_dump:
            return self._read()
        return compress(self._read(), self.plan.compression, self.plan.compression_level)

    def _read(self) -> Iterator[Buffer]:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with open(self.file, "rb", buffering=0) as stream:
            while length := stream.readinto(buffer):
                yield buffer[:length]


def _chosen_databases(
    server: Server, options: DumpOptions, *, warn: Callable[[str], None]
) -> tuple[DatabaseProperties, ...]:
    with refusal_as_error("cannot list databases"):
        existing = {database.name: database for database in list_databases(server.sql)}
    names = select_names(list(existing), wanted=options.databases, excluded=options.excluded, warn=warn)
    chosen = []
    for database in map(existing.__getitem__, names):
        named = is_named(database.name, options.databases)
        trouble = _trouble(database)
        if trouble and named:
            raise ServerError(f'cannot dump database "{database.name}": {trouble}')
        if trouble:
            if database.name != "template0":
                warn(f'database "{database.name}" is not in this backup: {trouble}')
            continue
        if not database.may_connect:
            raise ServerError(
                f'role "{server.sql.info.user}" may not connect to database "{database.name}"',
                hint=f'grant it CONNECT, or leave the database out: exclude_database={database.name}',
            )
        chosen.append(database)
    if not chosen:
        raise ServerError("no database is left to dump: none of those chosen accepts connections")
    return tuple(chosen)


def _trouble(database: DatabaseProperties) -> str:
    if not database.is_valid:
        return "it is what an interrupted DROP DATABASE left"
    return "" if database.allows_connections else "it does not accept connections"


def _may_read_passwords(server: Server) -> bool:
    return bool(server.value("SELECT has_table_privilege('pg_authid', 'SELECT')"))


def _task(database: DatabaseProperties) -> str:
    return f'pg_dump of database "{database.name}"'


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
