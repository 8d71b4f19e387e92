"""PostgreSQL's programs as a restore of dumps runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pgkeep.modes.dump_restore_plan import DumpRestorePlan
from pgkeep.server.client_program import ClientProgram, client_environment
from pgkeep.server.connection import Server
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.pg_restore import restore_arguments
from pgkeep.server.table_catalog import TableName
from pgkeep.server.table_ddl import definition_arguments
from pgkeep.server.tools import toolbox_for_dump


class RestorePrograms:
    """
    Runs the programs of the restore that *plan* describes.

    Args:
        plan: The restore's.
        server: Where they connect to.
    """

    def __init__(self, plan: DumpRestorePlan, server: Server) -> None:
        self._plan = plan
        self._server = server

    @contextlib.contextmanager
    def run(
        self, program: str, task: str, arguments: list[str | Path], *, reads_input: bool, gives_output: bool = False
    ) -> Iterator[ClientProgram]:
        """Run one of them on the server; end it on leaving."""
        role = self._server.target.role if program == "psql" else ""
        # The last commit of a parallel load waits for the disk, and with it all before.
        waits = program != "pg_restore" or not self._plan.is_parallel or bool(self._plan.tables)
        with (
            client_environment(self._server.sql, program=program, role=role, waits_for_disk=waits) as environment,
            ClientProgram(
                arguments, environment, task=task, reads_input=reads_input, gives_output=gives_output
            ) as child,
        ):
            yield child

    @contextlib.contextmanager
    def load(
        self,
        name: str,
        dbname: str,
        archive: Path | None,
        *,
        section: str = "",
        jobs: int = 0,
        listing: Path | None = None,
    ) -> Iterator[ClientProgram]:
        """Let psql or pg_restore load a dump into *dbname*, which messages call *name*."""
        arguments = restore_arguments(
            self._plan.toolbox,
            self._plan.format,
            dbname,
            server_version=self._server.version,
            role=self._server.target.role,
            directory=archive,
            jobs=jobs or self._plan.options.jobs,
            section=section,
            listing=listing,
        )
        program = "psql" if self._plan.format is DumpFormat.PLAIN else "pg_restore"
        task = f'{program} of database "{name}"'
        with self.run(program, task, arguments, reads_input=archive is None) as child:
            yield child


class WorkshopPrograms:
    """
    The same for the workshop of a restore of tables.

    Args:
        programs: Of the restore.
        plan: The restore's.
        server: Where they connect to.
        name: What messages call the database.
        dbname: What it is called.
    """

    def __init__(
        self, programs: RestorePrograms, plan: DumpRestorePlan, server: Server, *, name: str, dbname: str
    ) -> None:
        self._programs = programs
        self._plan = plan
        self._server = server
        self._name = name
        self._dbname = dbname

    @contextlib.contextmanager
    def load(self, archive: Path | None, *, section: str, listing: Path | None = None) -> Iterator[ClientProgram]:
        """Let pg_restore load one section."""
        with self._programs.load(self._name, self._dbname, archive, section=section, jobs=1, listing=listing) as child:
            yield child

    @contextlib.contextmanager
    def list(self, archive: Path | None) -> Iterator[ClientProgram]:
        """Let pg_restore list an archive."""
        words: list[str | Path] = [
            self._plan.toolbox.program("pg_restore"),
            f"--format={self._plan.format.value}",
            "--list",
            *([] if archive is None else [archive]),
        ]
        task = f'the list of the dump of database "{self._name}"'
        with self._programs.run("pg_restore", task, words, reads_input=archive is None, gives_output=True) as child:
            yield child

    @contextlib.contextmanager
    def define(self, relations: Sequence[TableName], section: str) -> Iterator[ClientProgram]:
        """Let pg_dump write the definitions of *relations*."""
        toolbox = toolbox_for_dump(self._server.version, bin_dir=self._plan.options.bin_dir)
        role = self._server.target.role
        words = definition_arguments(toolbox, self._dbname, relations, section=section, role=role)
        task = f'pg_dump of table definitions of database "{self._name}"'
        with self._programs.run("pg_dump", task, words, reads_input=False, gives_output=True) as child:
            yield child
