"""What pg_dump and pg_dumpall do for a dump job: they run as children, and what they write becomes items."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import msgspec

from pgkeep.errors import ServerError, ToolError
from pgkeep.modes.dump_plan import DumpDetails, DumpPlan
from pgkeep.modes.dump_staging import size_text
from pgkeep.server.client_program import ClientProgram, ProgramFailed, client_environment
from pgkeep.server.connection import Server
from pgkeep.server.database import DatabaseProperties, lock_holders, refusal_as_error
from pgkeep.server.pg_dump import globals_arguments
from pgkeep.streams.compression import compress
from pgkeep.streams.item import UNKNOWN_SIZE, Buffer, ItemHeader
from pgkeep.streams.record import Database, RecordHead

_WARNINGS_TOLD = 20
"""How many of one child's warnings go into the job log."""


class DumpChildren:
    """
    Runs PostgreSQL's programs for the job that *plan* describes; its methods may be called from any thread.

    Args:
        plan: The job's.
        server: Where they connect to.
    """

    def __init__(self, plan: DumpPlan, server: Server) -> None:
        self.plan = plan
        self.server = server

    @contextlib.contextmanager
    def run(
        self, program: str, task: str, arguments: list[str | Path], *, gives_output: bool
    ) -> Iterator[ClientProgram]:
        """Run one of PostgreSQL's programs on the server; end it on leaving."""
        with (
            client_environment(self.server.sql, program=program) as environment,
            ClientProgram(arguments, environment, task=task, gives_output=gives_output) as child,
        ):
            yield child

    def compressed(self, chunks: Iterator[Buffer]) -> Iterator[Buffer]:
        """Yield *chunks* as pgkeep compresses them, if it is pgkeep that does."""
        if self.plan.is_compressed_by_pg_dump:
            return chunks
        return compress(chunks, self.plan.compression, self.plan.compression_level)

    def tell_warnings(self, child: ClientProgram) -> None:
        """Pass on what a child that succeeded complained of."""
        for line in child.complaints[:_WARNINGS_TOLD]:
            self.plan.request.warn(f"{child.task}: {line}")

    def still_exists(self, database: DatabaseProperties) -> bool:
        """Whether *database* is still there under its name."""
        query = "SELECT count(*) FROM pg_database WHERE oid = %s AND datname = %s"
        return bool(self.server.value(query, [database.oid, database.name]))

    def with_blockers(self, error: ToolError, database: DatabaseProperties, *, begin: float) -> ToolError:
        """
        Return the error that names who holds the lock that pg_dump waited for, where that was the trouble.

        *begin* is when it was started, on the monotonic clock.
        """
        if not isinstance(error, ProgramFailed) or not self._was_lock_refused(error, begin):
            return error
        holders: list[str] = []
        with contextlib.suppress(ServerError):
            session = self.server.session(dbname=database.name)
            with contextlib.closing(session), refusal_as_error("cannot look for the holder"):
                holders = lock_holders(session)
        waited = f"{self.plan.command.lock_wait_timeout_seconds:g} s"
        advice = "raise lock_wait_timeout or run the job at another time"
        return ToolError(
            f"{task_of(database)} did not get its lock on a table within {waited}",
            hint="; ".join([*holders, advice]),
        )

    def globals_item(self) -> ChildItem:
        """Return the item of roles and tablespaces."""
        plan = self.plan
        arguments = globals_arguments(
            plan.command.toolbox,
            dbname=self.server.sql.info.dbname,
            role=self.server.target.role,
            role_passwords=plan.role_passwords,
        )

        def tell(size_bytes: int, seconds: float) -> None:
            plan.request.say(f"globals: {size_text(size_bytes)} in {seconds:.1f} s")

        task = "pg_dumpall of the globals"
        return ChildItem(plan.globals_path, self, program="pg_dumpall", task=task, arguments=arguments, tell=tell)

    def head(self, dumped: Sequence[DatabaseProperties], *, format_name: str) -> RecordHead:
        """Return the head of the record of a job that dumped these databases."""
        plan = self.plan
        if not dumped:
            raise ServerError("no database was dumped: every one was dropped meanwhile")
        details = DumpDetails(
            format=format_name,
            compression=plan.compression.value,
            is_compressed_by_pg_dump=plan.is_compressed_by_pg_dump,
            tool_version=str(plan.command.toolbox.version),
            globals_path=plan.globals_path if plan.options.include_globals else "",
            has_role_passwords=plan.role_passwords,
            databases=list(dumped),
        )
        return RecordHead(
            backup_id=plan.backup_id,
            cluster=plan.request.cluster,
            mode=plan.request.mode,
            level=plan.level,
            files_from=plan.backup_id,
            server_version=self.server.version,
            server_version_text=self.server.version_text,
            system_identifier=plan.system_identifier,
            begin_time=_iso(plan.request.begin),
            end_time=_iso(dt.datetime.now(dt.UTC)),
            databases=[
                Database(name=one.name, oid=one.oid, size_bytes=one.size_bytes, path=plan.path(one.name))
                for one in dumped
            ],
            details=msgspec.to_builtins(details),
        )

    def _was_lock_refused(self, error: ProgramFailed, begin: float) -> bool:
        # The server's part of the message may be translated, and LOCK TABLE also fails for want of a right: at once.
        limit = self.plan.command.lock_wait_timeout_seconds
        is_late = bool(limit) and time.monotonic() - begin >= limit
        text = "\n".join(error.complaints)
        return (is_late and "LOCK TABLE" in text) or "could not obtain lock on relation" in text


class ChildItem:
    """A streamed item whose content is what a child writes."""

    def __init__(
        self,
        path: str,
        children: DumpChildren,
        *,
        program: str,
        task: str,
        arguments: list[str | Path],
        tell: Callable[[int, float], None],
        explain: Callable[[ToolError, float], ToolError] = lambda error, _: error,
    ) -> None:
        self.header = ItemHeader(path=path, size=UNKNOWN_SIZE, mtime_ns=time.time_ns())
        self._children = children
        self._tell = tell
        self._explain = explain
        self._chunks = self._read(program, task, arguments)

    def chunks(self) -> Iterator[Buffer]:
        """Yield what the child writes; raise ToolError when it fails, also after its last byte."""
        return self._chunks

    def close(self) -> None:
        """End the child if it runs."""
        self._chunks.close()

    def _read(self, program: str, task: str, arguments: list[str | Path]) -> Generator[Buffer, None, None]:
        begin = time.monotonic()
        size_bytes = 0
        try:
            with self._children.run(program, task, arguments, gives_output=True) as child:
                for chunk in self._children.compressed(finished(child)):
                    size_bytes += len(chunk)
                    yield chunk
                self._children.tell_warnings(child)
        except ToolError as error:
            raise self._explain(error, begin) from error
        self._tell(size_bytes, time.monotonic() - begin)


def finished(child: ClientProgram) -> Iterator[Buffer]:
    """Yield the child's output, and look at its exit status before the compressor writes its end."""
    yield from child.chunks()
    child.finish()


def task_of(database: DatabaseProperties) -> str:
    """Return what pg_dump does for *database*, for messages."""
    return f'pg_dump of database "{database.name}"'


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
