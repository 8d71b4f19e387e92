"""What a restore of dumps is about to do: chosen and checked before anything is touched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pgkeep.errors import BackupUnusable, RestoreRefused, UsageError
from pgkeep.modes.dump_names import select_names
from pgkeep.modes.dump_plan import DumpDetails
from pgkeep.modes.dump_staging import size_text
from pgkeep.modes.parallel_dump_plan import FORMATS
from pgkeep.modes.table_names import TableFilter, parse_filters
from pgkeep.server.connection import Server
from pgkeep.server.database import (
    DatabaseProperties,
    is_empty,
    list_databases,
    refusal_as_error,
    users_of,
)
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.relations import listed
from pgkeep.server.tools import Toolbox, ToolVersion, toolbox_for_restore
from pgkeep.streams.compression import Compression
from pgkeep.streams.record import RecordHead

DUMP_MODES = ("dump", "parallel_dump")
TEMPORARY = "pgkeep_restore_"
"""How the name of a database begins that is being filled."""
NAME_BYTES = 63
"""``NAMEDATALEN - 1``: the longest name, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpRestoreOptions:
    """
    What is brought back, and how.

    Attributes:
        databases: Names and patterns among the backup's databases; empty means all.
        new_database: Another name for the one database that is chosen; empty for its own.
        tables: Filters of the tables that alone are brought back, into a database that stays; empty for all of it.
        overwrite_existing: Whether a database that is not empty, or a table, may be replaced; it is not dropped.
        include_globals: Whether roles and tablespaces are created first; those that exist get the backup's attributes.
        jobs: Parallel tables of a dump in directory format.
        bin_dir: Where PostgreSQL's programs are; None to search.
        tmpdir: Where the directory format is staged.
    """

    databases: tuple[str, ...] = ()
    new_database: str = ""
    tables: str = ""
    overwrite_existing: bool = False
    include_globals: bool = False
    jobs: int = 1
    bin_dir: Path | None = None
    tmpdir: Path = Path("/var/tmp/pgkeep")  # noqa: S108  made with mode 0700, and not followed when it is a link


@dataclass(frozen=True, slots=True)
class DumpTarget:
    """
    One database to be made.

    Attributes:
        properties: Of the database as it was backed up.
        path: Virtual path of its dump.
        name: The name that it gets.
        existing: What has that name now; None for nothing.
        is_existing_empty: Whether that holds nothing.
        is_filled_in_place: Whether the existing one is filled, since it cannot be exchanged, or only tables come.
    """

    properties: DatabaseProperties
    path: str
    name: str
    existing: DatabaseProperties | None = None
    is_existing_empty: bool = False
    is_filled_in_place: bool = False

    def selects(self, path: str) -> bool:
        """Whether the item at *path* belongs to this database."""
        return path == self.path or path.startswith(f"{self.path}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpRestorePlan:
    """What a restore of dumps is about to do; ``lines`` says it."""

    head: RecordHead
    details: DumpDetails
    options: DumpRestoreOptions
    toolbox: Toolbox
    targets: tuple[DumpTarget, ...]
    tables: tuple[TableFilter, ...] = ()

    @property
    def format(self) -> DumpFormat:
        """The dumps' format; that of its archives for a parallel dump."""
        return DumpFormat.CUSTOM if self.is_parallel else DumpFormat(self.details.format)

    @property
    def is_parallel(self) -> bool:
        """Whether the backup holds the parts of parallel dumps."""
        return self.details.format in FORMATS

    @property
    def compression(self) -> Compression:
        """What pgkeep has to undo before PostgreSQL's programs can read the dumps."""
        return Compression.NONE if self.details.is_compressed_by_pg_dump else Compression(self.details.compression)

    def selects(self, path: str) -> bool:
        """Whether the item at *path* is needed."""
        if self.options.include_globals and path == self.details.globals_path:
            return True
        return any(target.selects(path) for target in self.targets)

    def lines(self) -> Iterator[str]:
        """Yield the plan for people, a line for each database."""
        yield f"pg_restore {self.toolbox.version} of backup {self.head.backup_id}, format {self.details.format}"
        if self.options.include_globals:
            yield "globals: create roles and tablespaces, give existing ones the backup's attributes"
        for target in self.targets:
            size = size_text(target.properties.size_bytes)
            source = f'database "{target.properties.name}" ({size} when backed up)'
            if self.tables:
                tables = ", ".join(one.text for one in self.tables)
                yield f'{source}: tables {tables} into database "{target.name}"'
            elif target.is_filled_in_place:
                yield f'{source}: fill the empty database "{target.name}" where it stands'
            elif target.existing is None:
                yield f'{source}: create as "{target.name}"'
            elif target.is_existing_empty:
                yield f'{source}: replace the empty database "{target.name}"'
            else:
                yield f'{source}: rename the existing "{target.name}" and take its place'


def plan_restore(
    head: RecordHead, options: DumpRestoreOptions, *, server: Server, warn: Callable[[str], None]
) -> DumpRestorePlan:
    """
    Choose databases, names and programs, and refuse what would overwrite or could not work; nothing is touched.

    Raises:
        UsageError: The options contradict each other or the backup.
        RestoreRefused: A database of that name exists and is not empty, or is in use.
        ToolError: There is no pg_restore for this dump.
    """
    if head.mode not in DUMP_MODES:
        raise UsageError(f"backup {head.backup_id} is of mode {head.mode}, expected {' or '.join(DUMP_MODES)}")
    details = _details(head)
    by_name = {database.name: database for database in details.databases}
    paths = {database.name: database.path for database in head.databases}
    names = select_names(list(by_name), wanted=options.databases, excluded=(), warn=warn)
    tables = parse_filters(options.tables) if options.tables else ()
    if tables:
        _check_tables(details, names)
    if options.new_database and len(names) != 1:
        raise UsageError(
            f'new_database "{options.new_database}" needs one database, found {len(names)}: {", ".join(names)}',
            hint="choose it with target_database",
        )
    if len(options.new_database.encode()) > NAME_BYTES:
        raise UsageError(f"new_database is longer than {NAME_BYTES} bytes: {options.new_database}")
    if options.include_globals and not details.globals_path:
        raise UsageError(f"backup {head.backup_id} has no globals", hint="leave out the restore of globals")
    if server.version // 10000 < head.server_version // 10000:
        warn(f"the server is {server.version_text}, older than the backed-up {head.server_version_text}: it may refuse")
    with refusal_as_error("cannot list databases"):
        existing = {database.name: database for database in list_databases(server.sql)}
    for left in existing:
        if left.startswith(TEMPORARY):
            warn(f'database "{left}" belongs to another restore, or is left from one that was killed: drop it then')
    tools = ToolVersion(*map(int, details.tool_version.split(".")))
    return DumpRestorePlan(
        head=head,
        details=details,
        options=options,
        toolbox=toolbox_for_restore(server.version, dumped_by=tools, bin_dir=options.bin_dir),
        tables=tables,
        targets=tuple(
            _target(
                server,
                by_name[name],
                paths[name],
                options.new_database or name,
                existing=existing,
                options=options,
            )
            for name in names
        ),
    )


def _check_tables(details: DumpDetails, names: list[str]) -> None:
    if len(names) != 1:
        raise UsageError(
            f"target_table needs one database, found {len(names)}: {', '.join(names)}",
            hint="choose it with target_database",
        )
    if details.format == DumpFormat.PLAIN.value:
        raise RestoreRefused(
            "a dump in plain format is a script, of which no table can be restored by itself",
            hint="restore the database beside the original with new_database, and copy the table",
        )


def _details(head: RecordHead) -> DumpDetails:
    try:
        details = msgspec.convert(head.details, DumpDetails)
    except msgspec.ValidationError as error:
        raise BackupUnusable(f"record of backup {head.backup_id} is not that of a dump: {error}") from error
    known = FORMATS.union(one.value for one in DumpFormat)
    if details.format not in known:
        raise BackupUnusable(
            f"backup {head.backup_id} has dumps in format {details.format}, expected {', '.join(sorted(known))}",
            hint="restore it by the version of pgkeep that made it, or a newer one",
        )
    return details


def _target(
    server: Server,
    properties: DatabaseProperties,
    path: str,
    name: str,
    *,
    existing: dict[str, DatabaseProperties],
    options: DumpRestoreOptions,
) -> DumpTarget:
    there = existing.get(name)
    if there is None and options.tables:
        raise RestoreRefused(
            f'database "{name}" does not exist, into which tables are to come',
            hint="create it first, or restore the whole database: leave out target_table",
        )
    if there is None:
        return DumpTarget(properties, path, name)
    if not there.allows_connections or not there.is_valid:
        raise RestoreRefused(f'database "{name}" exists and does not accept connections')
    if options.tables:
        return DumpTarget(properties, path, name, there, is_filled_in_place=True)
    fixed = name in (server.sql.info.dbname, "template1")
    empty = holds_nothing(server, name)
    if fixed and not empty:
        raise RestoreRefused(
            f'database "{name}" is not empty, and pgkeep cannot exchange it',
            hint="give another dbname to connect to, or restore under another name with new_database",
        )
    if not empty and not options.overwrite_existing:
        raise RestoreRefused(
            f'database "{name}" exists and is not empty',
            hint="overwrite_existing=yes renames it first; new_database restores beside it",
        )
    users = [] if fixed else users_of(server.sql, name)
    if users:
        raise RestoreRefused(
            f'database "{name}" is in use by {listed(users)}',
            hint="end them first, a prepared transaction with ROLLBACK PREPARED or COMMIT PREPARED; it must be renamed",
        )
    return DumpTarget(properties, path, name, there, is_existing_empty=empty, is_filled_in_place=fixed)


def holds_nothing(server: Server, name: str) -> bool:
    """Whether database *name* is empty."""
    with contextlib.closing(server.session(dbname=name)) as session, refusal_as_error(f'cannot read database "{name}"'):
        return is_empty(session)
