"""
Mode ``parallel_dump``: logical dumps by several workers, large tables in pieces, nothing on disk.

Databases are dumped at the same time, each in one snapshot of its own. Within a database pg_dump writes the schema and
the rows of small tables; workers copy the larger tables, the largest in ranges. Everything becomes chunks of bounded
size, which are sent when they are complete, so that all workers run at full speed although the stream is sequential.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from pgkeep.errors import ServerError
from pgkeep.modes.contract import BackupRequest, History
from pgkeep.modes.dump import DumpMode, plan_dump
from pgkeep.modes.parallel_dump_listing import planned_tables, worker_tables
from pgkeep.modes.parallel_dump_plan import ParallelDumpOptions, ParallelDumpPlan
from pgkeep.modes.parallel_dump_source import ParallelDumpSource
from pgkeep.modes.parallel_dump_tables import Division, TablePlan
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.database import DatabaseProperties, refusal_as_error
from pgkeep.server.dump_snapshot import check_no_pooler, set_lock_timeout, waiting_for_locks
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.table_facts import filtered_tables
from pgkeep.streams.compression import Compression
from pgkeep.streams.item import ItemHeader, ItemKind
from pgkeep.streams.record import Level

_HARMLESS = frozenset(
    {
        "--no-comments",
        "--no-owner",
        "--no-privileges",
        "--no-acl",
        "--no-publications",
        "--no-security-labels",
        "--no-subscriptions",
        "--no-tablespaces",
        "--quote-all-identifiers",
        "--verbose",
        "-O",
        "-x",
        "-v",
    }
)
"""Options of pg_dump that choose nothing among tables and rows."""


class ParallelDumpMode:
    """Logical dumps, all databases and large tables in parallel."""

    name = "parallel_dump"
    levels = frozenset({Level.FULL})
    needs_server = True

    def options(self, value_of: Callable[[str], Any]) -> ParallelDumpOptions:
        """Return the options of a parallel dump."""
        usual = {one.name: value for one, value in _fields(DumpMode().options(value_of))}
        compression = Compression.ZSTD if value_of("compress") == "auto" else usual["compression"]
        return ParallelDumpOptions(
            **usual
            | {
                # Its archives are always pg_dump's custom format.
                "format": DumpFormat.CUSTOM,
                "compression": compression,
                "workers": value_of("parallel_tables"),
                "threshold_bytes": value_of("large_table_threshold"),
            }
        )

    def plan(self, request: BackupRequest, *, server: Server, history: History) -> ParallelDumpPlan:
        """
        Choose databases and tables, and refuse what could not be dumped whole.

        Raises:
            SettingsError: A database does not exist, or an option contradicts.
            ToolError: There is no pg_dump that fits the server.
            ServerError: The role lacks a right, or the server cannot be reached but through a pooler.
        """
        options: ParallelDumpOptions = request.options
        check_no_pooler(server.sql, where=server.where)
        usual = plan_dump(self.name, request, server=server, history=history, is_piped=True)
        at_once = min(options.jobs, len(usual.databases))
        workers = _possible_workers(server, options.workers, at_once, warn=request.warn)
        plan = ParallelDumpPlan(
            **{one.name: value for one, value in _fields(usual)}
            | {"command": dataclasses.replace(usual.command, compression=Compression.NONE, compression_level=0)},
            workers=workers,
            databases_at_once=min(at_once, workers),
            division=Division(
                threshold_bytes=options.threshold_bytes,
                whole_bytes=options.whole_bytes,
                workers=workers,
                range_bytes=options.range_bytes,
            ),
            undivided=_why_undivided(options),
            is_standby=queries.is_in_recovery(server),
        )
        for database in plan.databases:
            plan.tables[database.name] = _tables(plan, server, database)
        if plan.is_standby:
            request.warn("the server is a standby: rows of unlogged tables are not in this backup")
        for line in plan.lines():
            request.say(line)
        return plan

    def foresee(
        self,
        plan: ParallelDumpPlan,
        *,
        server: Server,  # noqa: ARG002 - the plan has it all
    ) -> Iterator[ItemHeader]:
        """Yield a header for each database, with its size: nobody knows how many chunks there will be."""
        now = time.time_ns()
        if plan.options.include_globals:
            yield ItemHeader(plan.globals_path, mtime_ns=now)
        for database in plan.databases:
            yield ItemHeader(plan.path(database.name), ItemKind.DIRECTORY, size=database.size_bytes, mtime_ns=now)

    @contextlib.contextmanager
    def open(self, plan: ParallelDumpPlan, *, server: Server) -> Iterator[ParallelDumpSource]:
        """Begin the dumps of *plan*; leaving ends all sessions and children that still run."""
        with contextlib.closing(ParallelDumpSource(plan, server)) as source:
            yield source


def _tables(plan: ParallelDumpPlan, server: Server, database: DatabaseProperties) -> list[TablePlan]:
    """Return which tables of *database* workers copy; refuse when rows would be missing."""
    limit = plan.options.lock_wait_timeout_seconds
    with (
        contextlib.closing(server.session(dbname=database.name)) as session,
        waiting_for_locks(server, database.name, limit),
        refusal_as_error(f'cannot read database "{database.name}"'),
    ):
        set_lock_timeout(session, limit)
        hidden = filtered_tables(session)
        if hidden and not plan.undivided:
            more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
            raise ServerError(
                f'row level security hides rows of {hidden[0]}{more} in database "{database.name}" from role '
                f'"{session.info.user}"',
                hint='give the role BYPASSRLS: run "pgkeep grants --mode parallel_dump"',
            )
        return planned_tables(plan, session, worker_tables(plan, session))


def _possible_workers(server: Server, wanted: int, databases: int, *, warn: Callable[[str], None]) -> int:
    """Return how many workers the server has connections for; each open database holds one more."""
    free = int(
        server.value(
            """
            SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                   - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
            """
        )
    )
    possible = max(1, min(wanted, free - databases))
    if possible < wanted:
        warn(f"{possible} workers instead of parallel_tables={wanted}: the server has {max(free, 0)} connections free")
    return possible


def _why_undivided(options: ParallelDumpOptions) -> str:
    for word in options.extra:
        if word not in _HARMLESS:
            return f'dump_options has "{word}", which may choose among tables'
    return ""


def _fields(value: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    for one in dataclasses.fields(value):
        yield one, getattr(value, one.name)
