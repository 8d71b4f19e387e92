"""
Bringing dumps back into databases.

Each database is loaded under a temporary name and takes its own only when everything is in; what stood there before is
renamed, not dropped, unless it was empty. So a restore that fails leaves the server as it was. The exception is the
database that pgkeep itself is connected to, and template1: those cannot be exchanged, and are filled where they stand
when they are empty. Tables that are restored by themselves go another way: see ``table_restore.py``.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import BackupUnusable, ServerError
from pgkeep.modes.dump_items import Supply
from pgkeep.modes.dump_restore_plan import NAME_BYTES, TEMPORARY, DumpRestorePlan, DumpTarget, holds_nothing
from pgkeep.modes.dump_restore_programs import RestorePrograms, WorkshopPrograms
from pgkeep.modes.dump_staging import check_space, staging_directory, write_staged
from pgkeep.modes.parallel_restore import PartsLoader
from pgkeep.modes.parallel_restore_supply import load_parts
from pgkeep.modes.table_restore import restore_tables
from pgkeep.modes.table_workshop import TableWorkshop
from pgkeep.server.connection import Server
from pgkeep.server.database import (
    DatabaseProperties,
    apply_properties,
    create_database,
    drop_database,
    rename_database,
)
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.pg_restore import (
    finish_globals,
    finish_restore,
    script_arguments,
    with_tar_end,
    without_unknown_setting,
    writes_unknown_setting,
)
from pgkeep.server.tools import Toolbox, ToolVersion
from pgkeep.streams.compression import decompress
from pgkeep.streams.item import Buffer, ItemKind, content_of


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
    restorer = DumpRestorer(plan, server=server, say=say, warn=warn)
    if plan.options.include_globals:
        restorer.restore_globals(supply)
    for target in plan.targets:
        restorer.publish(restorer.load(target, supply))
    return tuple(target.name for target in plan.targets)


@dataclass(frozen=True, slots=True)
class LoadedDatabase:
    """
    A database whose content is in, under a name that is not yet its own.

    Attributes:
        target: What it will be.
        temporary: Its name now; empty when it was filled where it stands.
    """

    target: DumpTarget
    temporary: str = ""


class DumpRestorer:
    """
    Brings the databases of *plan* back, each in two steps, since some supplies are whole only at their end.

    ``load`` fills a database, ``publish`` gives it its name, ``drop`` takes it back before that.
    """

    def __init__(
        self, plan: DumpRestorePlan, *, server: Server, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._server = server
        self._say = say
        self._warn = warn
        self._programs = RestorePrograms(plan, server)

    def restore_globals(self, supply: Supply) -> None:
        """Run the script of roles and tablespaces."""
        arguments = script_arguments(self._plan.toolbox, self._server.sql.info.dbname, stops_at_error=False)
        content = self._only_item(supply, self._plan.details.globals_path)
        with self._programs.run("psql", "psql with the globals", arguments, reads_input=True) as child:
            child.feed(decompress(content, self._plan.compression))
            existed = finish_globals(child)
        self._say(f"globals: restored, {existed} roles and tablespaces existed already")
        if not self._plan.details.has_role_passwords:
            self._warn("globals: this backup holds no role passwords; set them by hand")

    def load(self, target: DumpTarget, supply: Supply) -> LoadedDatabase:
        """
        Load one database under a temporary name.

        The one that pgkeep is connected to, and template1, are filled where they stand: theirs must be a supply that
        is known to be whole.

        Raises:
            BackupUnusable: The supply lacks something.
            ToolError: pg_restore or psql failed; what was loaded is gone.
        """
        if self._plan.tables:
            self._load_tables(target, supply)
            return LoadedDatabase(target)
        if target.is_filled_in_place:
            self._load(target, target.name, supply)
            return self.complete(LoadedDatabase(target))
        loaded = self.begin(target)
        try:
            self._load(target, loaded.temporary, supply)
            return self.complete(loaded)
        except BaseException:
            self.drop(loaded)
            raise

    def begin(self, target: DumpTarget) -> LoadedDatabase:
        """Make the database of a temporary name that will be loaded."""
        temporary = f"{TEMPORARY}{secrets.token_hex(8)}"
        create_database(self._server.sql, temporary, _like(target), warn=self._warn)
        return LoadedDatabase(target, temporary)

    def complete(self, loaded: LoadedDatabase) -> LoadedDatabase:
        """Give a database whose content is in what a dump does not hold."""
        target = loaded.target
        like = _like(target) if loaded.temporary else target.properties
        apply_properties(self._server.sql, loaded.temporary or target.name, like, warn=self._warn)
        return loaded

    def parts_loader(self, target: DumpTarget, dbname: str, staging: Path) -> PartsLoader:
        """Return what loads the parts of a parallel dump into *dbname*, with files in *staging*."""

        def run_section(section: str, source: Path | Iterable[Buffer]) -> None:
            file = source if isinstance(source, Path) else None
            # Only indexes and constraints are made one beside the other; pg_restore reads a pipe by itself.
            jobs = self._plan.options.jobs if section == "post-data" else 1
            with self._programs.load(target.name, dbname, file, section=section, jobs=jobs) as child:
                if not isinstance(source, Path):
                    child.feed(source)
                finish_restore(child)

        return PartsLoader(
            dbname,
            target.path,
            compression=self._plan.compression,
            staging=staging,
            jobs=self._plan.options.jobs,
            connect=lambda: self._server.session(dbname=dbname),
            run_section=run_section,
            where=self._server.where,
            warn=self._warn,
        )

    def publish(self, loaded: LoadedDatabase) -> None:
        """Let a database take its name."""
        if loaded.temporary:
            self._take_name(loaded.target, loaded.temporary)
        elif not self._plan.tables:
            self._say(f'database "{loaded.target.name}": restored')

    def drop(self, loaded: LoadedDatabase) -> None:
        """Take back a database that has not got its name; where that fails, a warning says which one is left."""
        if loaded.temporary:
            try:
                drop_database(self._server.sql, loaded.temporary)
            except ServerError as error:
                # Why it is taken back is what counts.
                self._warn(f"{error.message}; it holds part of what was restored: drop it")

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
        if target.is_existing_empty and not holds_nothing(self._server, target.name):
            raise ServerError(f'database "{target.name}" was empty when the restore began, and is no longer')
        suffix = f".before-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
        stem = target.name.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore")
        rename_database(self._server.sql, target.name, stem + suffix)
        return stem + suffix

    def _load_tables(self, target: DumpTarget, supply: Supply) -> None:
        """Bring some tables back into a database that stays what it is."""
        plan = self._plan
        loaded = self.begin(target)
        try:
            with staging_directory(plan.options.tmpdir) as staging:
                workshop = TableWorkshop(
                    loaded.temporary,
                    target.path,
                    supply,
                    encoding=target.properties.encoding,
                    dump_format=plan.format,
                    compression=plan.compression,
                    is_parallel=plan.is_parallel,
                    staging=staging,
                    tmpdir=plan.options.tmpdir,
                    programs=WorkshopPrograms(
                        self._programs, plan, self._server, name=target.name, dbname=loaded.temporary
                    ),
                    knows_transaction_timeout=self._server.capabilities.has_transaction_timeout,
                    where=self._server.where,
                )
                restore_tables(
                    plan.tables,
                    workshop,
                    dbname=target.name,
                    overwrite_existing=plan.options.overwrite_existing,
                    server=self._server,
                    say=self._say,
                    warn=self._warn,
                )
        finally:
            self.drop(loaded)

    def _load(self, target: DumpTarget, dbname: str, supply: Supply) -> None:
        if self._plan.is_parallel:
            with (
                staging_directory(self._plan.options.tmpdir) as staging,
                self.parts_loader(target, dbname, staging) as loader,
            ):
                load_parts(loader, target.path, supply)
            return
        if self._plan.format is DumpFormat.DIRECTORY:
            self._load_staged(target, dbname, supply)
            return
        content = decompress(self._only_item(supply, target.path), self._plan.compression)
        if self._plan.format is DumpFormat.PLAIN and writes_unknown_setting(self._dumper, self._server.version):
            content = without_unknown_setting(content)
        if self._plan.format is DumpFormat.TAR:
            content = with_tar_end(content)
        with self._programs.load(target.name, dbname, None) as child:
            child.feed(content)
            finish_restore(child)

    def _load_staged(self, target: DumpTarget, dbname: str, supply: Supply) -> None:
        """Collect the files of a dump in directory format below ``tmpdir``, then load them in parallel."""
        options = self._plan.options
        purpose = f'staging the dump of database "{target.properties.name}"'
        with staging_directory(options.tmpdir) as directory:
            files = 0
            for item in supply(target.selects):
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
            with self._programs.load(target.name, dbname, directory) as child:
                finish_restore(child)

    @property
    def _dumper(self) -> Toolbox:
        """The toolbox that wrote a plain dump, as far as its version goes."""
        version = ToolVersion(*map(int, self._plan.details.tool_version.split(".")))
        return Toolbox(self._plan.toolbox.directory, version)

    def _only_item(self, supply: Supply, path: str) -> Iterator[Buffer]:
        """Yield the content of the item at *path*."""
        found = False
        for item in supply(lambda candidate: candidate == path):
            found = True
            yield from content_of(item)
        if not found:
            raise BackupUnusable(f"backup {self._plan.head.backup_id} lacks {path}")


def _like(target: DumpTarget) -> DatabaseProperties:
    """Return whose encoding, locale and owner are wanted: what an operator made empty beforehand says it."""
    return target.existing if target.existing and target.is_existing_empty else target.properties
