"""
Bringing dumps back into databases.

Each database is loaded under a temporary name and takes its own only when everything is in; what stood there before is
renamed, not dropped, unless it was empty. So a restore that fails leaves the server as it was. The exception is the
database that pgkeep itself is connected to, and template1: those cannot be exchanged, and are filled where they stand
when they are empty.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from pgkeep.errors import BackupUnusable, RestoreRefused, ServerError, UsageError
from pgkeep.modes.dump import DumpDetails, DumpMode
from pgkeep.modes.dump_names import select_names
from pgkeep.modes.dump_staging import check_space, size_text, staging_directory, write_staged
from pgkeep.server.client_program import ClientProgram, client_environment
from pgkeep.server.connection import Server
from pgkeep.server.database import (
    DatabaseProperties,
    apply_properties,
    create_database,
    drop_database,
    is_empty,
    list_databases,
    refusal_as_error,
    rename_database,
    sessions_in,
)
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.pg_restore import (
    finish_globals,
    finish_restore,
    restore_arguments,
    script_arguments,
    with_tar_end,
    without_unknown_setting,
    writes_unknown_setting,
)
from pgkeep.server.tools import Toolbox, ToolVersion, toolbox_for_restore
from pgkeep.streams.compression import Compression, decompress
from pgkeep.streams.item import EXTENT_BYTES, Buffer, DetachedItem, ItemKind, StreamedItem
from pgkeep.streams.record import RecordHead

Select = Callable[[str], bool]
Supply = Callable[[Select], Iterable[StreamedItem | DetachedItem]]
"""Gives a backup's items whose virtual path is selected, digests checked; may be called several times."""

_TEMPORARY = "pgkeep_restore_"
_NAME_BYTES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpRestoreOptions:
    """
    What is brought back, and how.

    Attributes:
        databases: Names and patterns among the backup's databases; empty means all.
        new_database: Another name for the one database that is chosen; empty for its own.
        overwrite_existing: Whether a database that is not empty may be replaced; it is renamed, not dropped.
        include_globals: Whether roles and tablespaces are created first; those that exist get the backup's attributes.
        jobs: Parallel tables of a dump in directory format.
        bin_dir: Where PostgreSQL's programs are; None to search.
        tmpdir: Where the directory format is staged.
    """

    databases: tuple[str, ...] = ()
    new_database: str = ""
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
        is_filled_in_place: Whether the existing one is filled, since it cannot be exchanged.
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

    @property
    def format(self) -> DumpFormat:
        """The dumps' format."""
        return DumpFormat(self.details.format)

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
            if target.is_filled_in_place:
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
    if head.mode != DumpMode.name:
        raise UsageError(f"backup {head.backup_id} is of mode {head.mode}, expected {DumpMode.name}")
    details = _details(head)
    by_name = {database.name: database for database in details.databases}
    paths = {database.name: database.path for database in head.databases}
    names = select_names(list(by_name), wanted=options.databases, excluded=(), warn=warn)
    if options.new_database and len(names) != 1:
        raise UsageError(
            f'new_database "{options.new_database}" needs one database, found {len(names)}: {", ".join(names)}',
            hint="choose it with target_database",
        )
    if len(options.new_database.encode()) > _NAME_BYTES:
        raise UsageError(f"new_database is longer than {_NAME_BYTES} bytes: {options.new_database}")
    if options.include_globals and not details.globals_path:
        raise UsageError(f"backup {head.backup_id} has no globals", hint="leave out the restore of globals")
    if server.version // 10000 < head.server_version // 10000:
        warn(f"the server is {server.version_text}, older than the backed-up {head.server_version_text}: it may refuse")
    with refusal_as_error("cannot list databases"):
        existing = {database.name: database for database in list_databases(server.sql)}
    for left in existing:
        if left.startswith(_TEMPORARY):
            warn(f'database "{left}" belongs to another restore, or is left from one that was killed: drop it then')
    tools = ToolVersion(*map(int, details.tool_version.split(".")))
    return DumpRestorePlan(
        head=head,
        details=details,
        options=options,
        toolbox=toolbox_for_restore(server.version, dumped_by=tools, bin_dir=options.bin_dir),
        targets=tuple(
            _target(server, by_name[name], paths[name], options.new_database or name, existing, options)
            for name in names
        ),
    )


def restore(
    plan: DumpRestorePlan,
    supply: Supply,
    *,
    server: Server,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> tuple[str, ...]:
    """
    Bring every database of *plan* back, one after the other.

    Returns:
        The names that the databases have now.

    Raises:
        BackupUnusable: The supply lacks something.
        ToolError: pg_restore or psql failed; that database is as it was, those before it are restored.
    """
    restorer = _Restorer(plan, supply, server, say, warn)
    if plan.options.include_globals:
        restorer.restore_globals()
    for target in plan.targets:
        restorer.restore(target)
    return tuple(target.name for target in plan.targets)


class _Restorer:
    def __init__(
        self,
        plan: DumpRestorePlan,
        supply: Supply,
        server: Server,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._supply = supply
        self._server = server
        self._say = say
        self._warn = warn

    def restore_globals(self) -> None:
        """Run the script of roles and tablespaces."""
        arguments = script_arguments(self._plan.toolbox, self._server.sql.info.dbname, stops_at_error=False)
        content = self._only_item(self._plan.details.globals_path)
        with self._run("psql", "psql with the globals", arguments, reads_input=True) as child:
            child.feed(decompress(content, self._plan.compression))
            existed = finish_globals(child)
        self._say(f"globals: restored, {existed} roles and tablespaces existed already")
        if not self._plan.details.has_role_passwords:
            self._warn("globals: this backup holds no role passwords; set them by hand")

    def restore(self, target: DumpTarget) -> None:
        """Load one database and let it take its name."""
        connection = self._server.sql
        if target.is_filled_in_place:
            self._load(target, target.name)
            apply_properties(connection, target.name, target.properties, warn=self._warn)
            self._say(f'database "{target.name}": restored')
            return
        # What an operator made empty beforehand says which encoding, locale and owner are wanted.
        like = target.existing if target.existing and target.is_existing_empty else target.properties
        temporary = f"{_TEMPORARY}{secrets.token_hex(8)}"
        create_database(connection, temporary, like, warn=self._warn)
        try:
            self._load(target, temporary)
            apply_properties(connection, temporary, like, warn=self._warn)
        except BaseException:
            with contextlib.suppress(ServerError):
                drop_database(connection, temporary)
            raise
        self._take_name(target, temporary)

    def _take_name(self, target: DumpTarget, temporary: str) -> None:
        connection = self._server.sql
        try:
            kept = self._move_away(target) if target.existing is not None else ""
            try:
                rename_database(connection, temporary, target.name)
            except ServerError:
                if kept:
                    rename_database(connection, kept, target.name)
                raise
        except ServerError as error:
            raise ServerError(
                error.message, hint=f'database "{temporary}" holds the restored content: rename or drop it'
            ) from error
        if kept and target.is_existing_empty:
            drop_database(connection, kept)
            kept = ""
        aside = f'; what was there is now "{kept}": drop it when it is not needed' if kept else ""
        self._say(f'database "{target.name}": restored{aside}')

    def _move_away(self, target: DumpTarget) -> str:
        """Rename what has the target's name and return its new name."""
        if target.is_existing_empty and not _is_empty(self._server, target.name):
            raise ServerError(f'database "{target.name}" was empty when the restore began, and is no longer')
        suffix = f".before-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
        stem = target.name.encode()[: _NAME_BYTES - len(suffix)].decode(errors="ignore")
        rename_database(self._server.sql, target.name, stem + suffix)
        return stem + suffix

    def _load(self, target: DumpTarget, dbname: str) -> None:
        if self._plan.format is DumpFormat.DIRECTORY:
            self._load_staged(target, dbname)
            return
        content = decompress(self._only_item(target.path), self._plan.compression)
        if self._plan.format is DumpFormat.PLAIN and writes_unknown_setting(self._dumper, self._server.version):
            content = without_unknown_setting(content)
        if self._plan.format is DumpFormat.TAR:
            content = with_tar_end(content)
        with self._loader(target, dbname, None) as child:
            child.feed(content)
            finish_restore(child)

    def _load_staged(self, target: DumpTarget, dbname: str) -> None:
        """Collect the files of a dump in directory format below ``tmpdir``, then load them in parallel."""
        options = self._plan.options
        purpose = f'staging the dump of database "{target.properties.name}"'
        with staging_directory(options.tmpdir) as directory:
            files = 0
            for item in self._supply(target.selects):
                if item.header.kind is not ItemKind.FILE:
                    continue
                check_space(options.tmpdir, max(item.header.size, 0), purpose=purpose)
                name = item.header.path.removeprefix(f"{target.path}/").removesuffix(self._plan.compression.suffix)
                if "/" in name:
                    raise BackupUnusable(f"not a file of a dump in directory format: {item.header.path}")
                write_staged(directory / name, decompress(content_of(item), self._plan.compression))
                files += 1
            if not files:
                raise BackupUnusable(f"backup {self._plan.head.backup_id} lacks {target.path}")
            with self._loader(target, dbname, directory) as child:
                finish_restore(child)

    @property
    def _dumper(self) -> Toolbox:
        """The toolbox that wrote a plain dump, as far as its version goes."""
        version = ToolVersion(*map(int, self._plan.details.tool_version.split(".")))
        return Toolbox(self._plan.toolbox.directory, version)

    @contextlib.contextmanager
    def _loader(self, target: DumpTarget, dbname: str, directory: Path | None) -> Iterator[ClientProgram]:
        arguments = restore_arguments(
            self._plan.toolbox,
            self._plan.format,
            dbname,
            server_version=self._server.version,
            role=self._server.target.role,
            directory=directory,
            jobs=self._plan.options.jobs,
        )
        program = "psql" if self._plan.format is DumpFormat.PLAIN else "pg_restore"
        task = f'{program} of database "{target.name}"'
        with self._run(program, task, arguments, reads_input=directory is None) as child:
            yield child

    @contextlib.contextmanager
    def _run(
        self, program: str, task: str, arguments: list[str | Path], *, reads_input: bool
    ) -> Iterator[ClientProgram]:
        role = self._server.target.role if program == "psql" else ""
        with (
            client_environment(self._server.sql, program=program, role=role) as environment,
            ClientProgram(arguments, environment, task=task, reads_input=reads_input) as child,
        ):
            yield child

    def _only_item(self, path: str) -> Iterator[Buffer]:
        """Yield the content of the item at *path*."""
        found = False
        for item in self._supply(lambda candidate: candidate == path):
            found = True
            yield from content_of(item)
        if not found:
            raise BackupUnusable(f"backup {self._plan.head.backup_id} lacks {path}")


def content_of(item: StreamedItem | DetachedItem) -> Iterator[Buffer]:
    """Yield an item's content in order, whichever kind it is."""
    if not hasattr(item, "read_extent"):
        yield from item.chunks()
        return
    detached = cast(DetachedItem, item)
    try:
        size = item.header.size
        for offset in range(0, size, EXTENT_BYTES):
            yield detached.read_extent(offset, min(EXTENT_BYTES, size - offset))
    finally:
        detached.close()


def _details(head: RecordHead) -> DumpDetails:
    try:
        return msgspec.convert(head.details, DumpDetails)
    except msgspec.ValidationError as error:
        raise BackupUnusable(f"record of backup {head.backup_id} is not that of a dump: {error}") from error


def _target(
    server: Server,
    properties: DatabaseProperties,
    path: str,
    name: str,
    existing: dict[str, DatabaseProperties],
    options: DumpRestoreOptions,
) -> DumpTarget:
    there = existing.get(name)
    if there is None:
        return DumpTarget(properties, path, name)
    if not there.allows_connections or not there.is_valid:
        raise RestoreRefused(f'database "{name}" exists and does not accept connections')
    fixed = name in (server.sql.info.dbname, "template1")
    # Counted before we look inside: our own session takes a moment to be gone.
    sessions = 0 if fixed else sessions_in(server.sql, name)
    empty = _is_empty(server, name)
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
    if sessions:
        raise RestoreRefused(
            f'database "{name}" is in use by {sessions} sessions', hint="end them first; it must be renamed"
        )
    return DumpTarget(properties, path, name, there, is_existing_empty=empty, is_filled_in_place=fixed)


def _is_empty(server: Server, name: str) -> bool:
    with contextlib.closing(server.session(dbname=name)) as session, refusal_as_error(f'cannot read database "{name}"'):
        return is_empty(session)
