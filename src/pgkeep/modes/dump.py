"""
Mode ``dump``: one logical dump of each database by pg_dump, and the globals by pg_dumpall.

A dump goes straight from the child's pipe to the sink. Each database is dumped in a snapshot of its own, one after the
other: consistent in itself, not with its neighbours. Only the directory format is staged, one database at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pgkeep.errors import ServerError
from pgkeep.modes.contract import BackupRequest, History
from pgkeep.modes.dump_names import is_named, select_names
from pgkeep.modes.dump_plan import DumpOptions, DumpPlan
from pgkeep.modes.dump_source import DumpSource
from pgkeep.modes.dump_staging import check_space, staging_directory
from pgkeep.server.connection import Server
from pgkeep.server.database import DatabaseProperties, list_databases, refusal_as_error
from pgkeep.server.pg_dump import (
    DumpCommand,
    DumpFormat,
    can_compress,
    check_attribute_options,
    check_extra_options,
)
from pgkeep.server.table_facts import needs_load_via_root
from pgkeep.server.tools import toolbox_for_dump
from pgkeep.streams.compression import Compression
from pgkeep.streams.item import ItemHeader, ItemKind
from pgkeep.streams.record import Level


class DumpMode:
    """Logical dumps, database by database."""

    name = "dump"
    levels = frozenset({Level.FULL})
    needs_server = True

    def options(self, value_of: Callable[[str], Any]) -> DumpOptions:
        """Return the options of a dump."""
        bin_dir = value_of("bin_dir")
        return DumpOptions(
            databases=value_of("database"),
            excluded=value_of("exclude_database"),
            format=DumpFormat(value_of("dump_format")),
            compression=Compression.NONE if value_of("compress") == "auto" else Compression(value_of("compress")),
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
        return plan_dump(self.name, request, server=server, history=history)

    def foresee(self, plan: DumpPlan, *, server: Server) -> Iterator[ItemHeader]:  # noqa: ARG002 - the plan has it all
        """Yield the headers of the dumps, with the sizes of the databases: nobody knows those of the dumps."""
        now = time.time_ns()
        if plan.options.include_globals:
            yield ItemHeader(plan.globals_path, mtime_ns=now)
        is_directory = plan.command.format is DumpFormat.DIRECTORY
        kind = ItemKind.DIRECTORY if is_directory else ItemKind.FILE
        for database in plan.databases:
            yield ItemHeader(plan.path(database.name), kind, size=database.size_bytes, mtime_ns=now)

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


def plan_dump(
    mode: str, request: BackupRequest, *, server: Server, history: History, is_piped: bool = False
) -> DumpPlan:
    """
    Choose the databases and the pg_dump of a job of *mode*; see ``DumpMode.plan``.

    *is_piped*: what pg_dump writes passes through pgkeep's own compression, in whatever format.
    """
    options: DumpOptions = request.options
    check_extra_options(options.extra)
    compression = options.compression
    if compression is Compression.NONE and options.compression_level:
        compression = Compression.GZIP
    compression_level = compression.level(options.compression_level)
    toolbox = toolbox_for_dump(server.version, bin_dir=options.bin_dir)
    by_pg_dump = not is_piped and options.format.compresses and can_compress(toolbox, compression)
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
    via_root = set()
    for database in databases:
        with contextlib.closing(server.session(dbname=database.name)) as session:
            check_attribute_options(session, toolbox=toolbox)
            if needs_load_via_root(session):
                via_root.add(database.name)
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
        backup_id=history.new_backup_id(request.begin, Level.FULL),
        reason="" if request.level is Level.FULL else f"mode {mode} has no {request.level.word}: this is a Full",
        options=options,
        command=command,
        compression=compression,
        compression_level=compression_level,
        databases=databases,
        via_root=frozenset(via_root),
        role_passwords=role_passwords,
        system_identifier=str(server.value("SELECT system_identifier FROM pg_control_system()")),
    )


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
                hint=f"grant it CONNECT, or leave the database out: exclude_database={database.name}",
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
