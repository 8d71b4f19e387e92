"""
A parallel dump being read: workers fill chunks, the thread that reads the source takes them.

Each worker takes a database to open, or a range of an open one. Opening means: lock the tables, export a snapshot, hand
out the ranges, then have pg_dump write in that snapshot what is left. It runs once, since it reads the whole catalog:
what it writes is divided into the definitions, which go before everything else, and the rows that no worker copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pgkeep.errors import ServerError, ToolError
from pgkeep.modes.dump_child import DumpChildren, finished, task_of
from pgkeep.modes.dump_staging import size_text
from pgkeep.modes.parallel_dump_archive import DividedArchive
from pgkeep.modes.parallel_dump_chunks import copied_chunks, piped_chunks
from pgkeep.modes.parallel_dump_listing import planned_tables, worker_tables
from pgkeep.modes.parallel_dump_outbox import ChunkItem, LiveItem, Outbox, Stopped
from pgkeep.modes.parallel_dump_parts import DatabaseParts, TableParts
from pgkeep.modes.parallel_dump_plan import FORMAT, ParallelDumpPlan
from pgkeep.modes.parallel_dump_recipe import render_recipe
from pgkeep.modes.parallel_dump_schedule import Opened, Schedule
from pgkeep.modes.parallel_dump_tables import TablePlan
from pgkeep.server.client_program import ClientProgram
from pgkeep.server.connection import Server
from pgkeep.server.copy_out import copy_out
from pgkeep.server.database import DatabaseProperties
from pgkeep.server.dump_snapshot import DumpSnapshot, with_recovery_advice
from pgkeep.server.table_facts import names_in_encoding
from pgkeep.server.waiting import let_arrivals_gather
from pgkeep.streams.item import Buffer, BytesItem, Item, ItemHeader
from pgkeep.streams.record import RecordHead

if TYPE_CHECKING:
    import psycopg

_Work = Callable[["_Importer"], None]
_Opened = Opened[DatabaseParts, _Work]


class ParallelDumpSource:
    """
    One parallel dump being read.

    Args:
        plan: What is to be done.
        server: Where.
    """

    def __init__(self, plan: ParallelDumpPlan, server: Server) -> None:
        self._outbox = Outbox(plan.workers + 1)
        request = plan.request
        telling = dataclasses.replace(
            request, say=partial(self._outbox.tell, request.say), warn=partial(self._outbox.tell, request.warn)
        )
        self._plan = plan = dataclasses.replace(plan, request=telling)
        self._server = server
        self._children = DumpChildren(plan, server)
        largest_first = sorted(plan.databases, key=lambda one: -one.size_bytes)
        self._schedule: Schedule[DatabaseParts, _Work] = Schedule(
            [DatabaseParts(one, plan.path(one.name)) for one in largest_first], at_once=plan.databases_at_once
        )
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._running: set[ClientProgram] = set()
        self._live: set[LiveItem] = set()
        self._snapshots: dict[str, DumpSnapshot] = {}
        self._dumped: list[DatabaseProperties] = []
        self._threads: list[threading.Thread] = []
        self._working = plan.workers

    def items(self) -> Iterator[Item]:
        """Yield the globals, then the parts of all databases as they become ready."""
        for number in range(self._plan.workers):
            thread = threading.Thread(target=self._work, name=f"dump-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        if self._plan.options.include_globals:
            item = self._children.globals_item()
            try:
                yield item
            finally:
                item.close()
        yield from self._outbox.items()

    def finish(self) -> RecordHead:
        """Return the record's head."""
        dumped = sorted(self._dumped, key=lambda one: one.name)
        return self._children.head(dumped, format_name=FORMAT)

    def confirm(self) -> None:
        """Release nothing: what was held on the server went with its session."""

    def close(self) -> None:
        """End all that still runs."""
        self._cancelled.set()
        self._schedule.stop()
        self._outbox.end(Stopped())
        while any(thread.is_alive() for thread in self._threads):
            # A child may have been started since: it is asked, until its worker has seen the end.
            with self._lock:
                for child in self._running:
                    child.terminate()
                for live in self._live:
                    live.close()
            for thread in self._threads:
                thread.join(0.1)
        for snapshot in self._snapshots.values():
            snapshot.close()

    def _work(self) -> None:
        """Be one of the workers."""
        error: BaseException | None = None
        let_arrivals_gather()
        try:
            with _Importer(self._snapshots) as importer:
                while (work := self._schedule.next()) is not None:
                    opened, part = work
                    if part is None:
                        self._open(opened)
                    else:
                        part(importer)
                    self._schedule.done(opened, partial(self._complete, opened.database))
        except Stopped:
            pass
        except BaseException as met:  # noqa: BLE001 - carried to the thread that reads the source, whatever it is
            error = with_recovery_advice(met) if isinstance(met, ServerError) else met
            self._schedule.stop()
            self._cancelled.set()
        with self._lock:
            self._working -= 1
            is_last = not self._working
        if error is not None or is_last:
            self._outbox.end(error)

    def _open(self, opened: _Opened) -> None:
        """Hold a database still, hand out its ranges, and run pg_dump on it."""
        parts, plan = opened.database, self._plan
        database = parts.database
        if not self._children.still_exists(database):
            plan.request.warn(f'database "{database.name}" was dropped before it was dumped')
            parts.is_gone = True
            return
        self._outbox.hold(database.name)
        snapshot = DumpSnapshot(
            self._server,
            database.name,
            list_tables=partial(worker_tables, plan, among=plan.tables[database.name]),
            lock_wait_timeout_seconds=plan.options.lock_wait_timeout_seconds,
        )
        self._snapshots[database.name] = snapshot
        tables = snapshot.query(lambda session: planned_tables(plan, session, snapshot.tables))
        parts.begin(tables, encoding=database.encoding)
        ranges: list[_Work] = [
            partial(self._copy, parts, table, copy)
            for table in parts.tables
            for copy in table.plan.copies(database.encoding)
        ]
        self._schedule.add(opened, ranges)
        self._dump_rest(parts, snapshot, tables)

    def _dump_rest(self, parts: DatabaseParts, snapshot: DumpSnapshot, tables: Sequence[TablePlan]) -> None:
        """Send the definitions, then the list of tables, let the chunks go, and send what workers do not copy."""
        plan = self._plan
        # A name in another encoding is none that pg_dump finds: it would copy the rows once more.
        quoted, encoding = [table.facts.quoted() for table in tables], parts.database.encoding
        names: list[bytes] = snapshot.query(partial(names_in_encoding, names=quoted, encoding=encoding))
        arguments = plan.command.arguments(
            parts.database.name,
            snapshot=snapshot.name,
            tables_without_data=[os.fsdecode(name) for name in names],
            encoding=encoding if names else "",
            via_root=parts.database.name in plan.via_root,
        )
        with self._pg_dump(parts, arguments) as child:
            archive = DividedArchive(finished(child), task=task_of(parts.database))
            self._send_schema(parts, archive.head())
            self._outbox.put_first(_small(parts.tables_path, msgspec.json.encode(parts.describe())))
            self._outbox.release(parts.database.name)
            for pieces, close in piped_chunks(archive.rows(), plan, self._outbox):
                item = ChunkItem(parts.next_piece(plan.suffix), pieces, close)
                parts.add_bytes(item.header.size)
                self._outbox.put(item, database=parts.database.name)

    def _send_schema(self, parts: DatabaseParts, head: Iterator[Buffer]) -> None:
        # Its output begins when it has asked the server for everything: until then others may be sent.
        first = bytes(next(head))
        live = LiveItem(parts.schema_path)
        with self._lock:
            self._live.add(live)
        self._outbox.put_first(live)
        live.feed(_with_first(first, head))
        with self._lock:
            self._live.discard(live)

    def _copy(self, parts: DatabaseParts, table: TableParts, command: str, importer: _Importer) -> None:
        """Copy one range."""
        plan = self._plan
        session = importer.session(parts.database.name)
        answer = copy_out(session, command, where=self._server.where, cancelled=self._cancelled)
        for pieces, rows, close in copied_chunks(answer, plan, self._outbox):
            item = ChunkItem(parts.next_chunk(table, rows, plan.suffix), pieces, close)
            parts.add_bytes(item.header.size)
            self._outbox.put(item, database=parts.database.name)

    def _complete(self, parts: DatabaseParts) -> None:
        """Say how much there should be, and let the database go."""
        if parts.is_gone:
            return
        plan, database = self._plan, parts.database
        snapshot = self._snapshots[database.name]
        snapshot.confirm()
        self._outbox.put(_small(parts.complete_path, msgspec.json.encode(parts.count())), database=database.name)
        recipe = render_recipe(parts, plan.suffix)
        self._outbox.put(_small(parts.recipe_path, recipe.encode()), database=database.name)
        snapshot.close()
        with self._lock:
            self._dumped.append(database)
        plan.request.say(
            f'database "{database.name}": {size_text(parts.bytes)} dumped in {parts.seconds:.1f} s, '
            f"{parts.chunks} chunks of {len(parts.tables)} tables, database size {size_text(database.size_bytes)}"
        )

    @contextlib.contextmanager
    def _pg_dump(self, parts: DatabaseParts, arguments: list[Any]) -> Iterator[ClientProgram]:
        begin = time.monotonic()
        try:
            with self._children.run("pg_dump", task_of(parts.database), arguments, gives_output=True) as child:
                with self._lock:
                    self._running.add(child)
                try:
                    yield child
                    self._children.tell_warnings(child)
                finally:
                    with self._lock:
                        self._running.discard(child)
        except ToolError as error:
            if self._cancelled.is_set():
                raise Stopped from error
            raise self._children.with_blockers(error, parts.database, begin=begin) from error


class _Importer:
    """A worker's session in the snapshot of one database, kept for its next range."""

    def __init__(self, snapshots: dict[str, DumpSnapshot]) -> None:
        self._snapshots = snapshots
        self._session: psycopg.Connection[Any] | None = None
        self._dbname = ""

    def __enter__(self) -> _Importer:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def session(self, dbname: str) -> psycopg.Connection[Any]:
        """Return a session in the snapshot of database *dbname*."""
        if self._session is None or self._dbname != dbname:
            self._end()
            self._session, self._dbname = self._snapshots[dbname].importer(), dbname
        return self._session

    def _end(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def _with_first(first: bytes, chunks: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from chunks


def _small(path: str, content: bytes) -> BytesItem:
    return BytesItem(ItemHeader(path=path, size=len(content), mtime_ns=time.time_ns()), content)
