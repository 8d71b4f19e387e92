"""A dump job being read: one child after the other, its output on the way to the sink."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pgkeep.errors import ServerError, ToolError
from pgkeep.modes.dump_plan import DumpDetails, DumpPlan
from pgkeep.modes.dump_staging import check_space, size_text
from pgkeep.server.client_program import ClientProgram, ProgramFailed, client_environment
from pgkeep.server.connection import Server
from pgkeep.server.database import DatabaseProperties, lock_holders, refusal_as_error
from pgkeep.server.pg_dump import (
    globals_arguments,
)
from pgkeep.streams.compression import compress
from pgkeep.streams.item import CHUNK_BYTES, UNKNOWN_SIZE, Buffer, Item, ItemHeader, ItemKind
from pgkeep.streams.record import Database, RecordHead

_WARNINGS_TOLD = 20
"""How many of one child's warnings go into the job log."""


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
            mode=plan.request.mode,
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
        self._reading = _ChildItem(header, self, program=program, task=task, arguments=arguments, tell=tell)
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
            f"{_task(database)} did not get its lock on a table within {waited}",
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
        *,
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


def _task(database: DatabaseProperties) -> str:
    return f'pg_dump of database "{database.name}"'


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
