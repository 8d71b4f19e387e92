"""
Loading the parts of a parallel dump into a database that nobody knows of yet.

The order: schema without indexes and constraints; then, at the same time, chunks of tables by several sessions and what
pg_dump copied by pg_restore; then, when every part is proved to be in, indexes and constraints in parallel, and after
them statistics. A part that comes twice, that nobody announced, or that is missing ends the load; so does a table whose
rows are not as many as were dumped.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from pgkeep.errors import BackupUnusable
from pgkeep.modes.dump_staging import read_staged, write_staged
from pgkeep.modes.parallel_dump_outbox import Stopped
from pgkeep.modes.parallel_dump_plan import (
    COMPLETE_FILE,
    DATA_DIRECTORY,
    RECIPE_FILE,
    SCHEMA_FILE,
    TABLES_DIRECTORY,
    TABLES_FILE,
    PartsComplete,
    PartsTables,
)
from pgkeep.modes.parallel_dump_recipe import copy_in_command
from pgkeep.modes.parallel_restore_feed import Gate, Parts, Pieces
from pgkeep.modes.parallel_restore_proof import LoadingTable, check_chunks, check_rows
from pgkeep.server.copy_in import copy_in
from pgkeep.server.database import refusal_as_error
from pgkeep.server.statistics import analyze_database
from pgkeep.streams.compression import Compression, decompress
from pgkeep.streams.item import Buffer, DetachedItem, StreamedItem, content_of

AnyItem = StreamedItem | DetachedItem
RunSection = Callable[[str, "Path | Iterable[Buffer]"], None]
Kind = TypeVar("Kind", PartsTables, PartsComplete)

_SETTINGS = (
    "SET row_security TO off",
    "SET xmloption TO content",
    # As in all sessions but the last, whose last commit waits for the disk, and with it all before.
    "SET synchronous_commit TO off",
)
_FLUSH = "SELECT pg_catalog.pg_logical_emit_message(true, 'pgkeep', '')"
"""A commit that writes WAL of its own, and so waits for the disk."""


@dataclass(frozen=True)
class _Chunk:
    """One chunk on its way in: an item that may be read later, or its content."""

    table: LoadingTable
    path: str
    item: DetachedItem | None
    content: Sequence[Buffer] = ()

    def stored(self) -> Iterator[Buffer]:
        """Yield what is stored."""
        if self.item is None:
            return iter(self.content)
        return content_of(self.item)


class PartsLoader:
    """
    One database being loaded; use it as a context manager, which ends what is unfinished.

    Args:
        dbname: The database, under its temporary name; empty but for what template0 has.
        root: Virtual path of the directory of the parts.
        compression: Of chunks and pieces.
        staging: A directory for the schema, which is read twice.
        jobs: Sessions that load at once.
        connect: Returns a session in the database.
        run_section: Runs pg_restore for one section: from a file, or from what it is given.
        where: The server's place, for messages.
        warn: Called for what is no reason to end.
    """

    def __init__(
        self,
        dbname: str,
        root: str,
        *,
        compression: Compression,
        staging: Path,
        jobs: int,
        connect: Callable[[], Any],
        run_section: RunSection,
        where: str,
        warn: Callable[[str], None],
    ) -> None:
        self._dbname = dbname
        self._root = root
        self._compression = compression
        self._schema = staging / f"schema-{id(self):x}.dump"
        self._jobs = jobs
        self._connect = connect
        self._run_section = run_section
        self._where = where
        self._warn = warn
        self._encoding = ""
        self._is_one_archive = False
        self._tables: dict[str, LoadingTable] | None = None
        self._complete: PartsComplete | None = None
        self._has_schema = False
        self._pieces = 0
        self._gate = Gate()
        self._data = Pieces(self._gate)
        self._parts: Parts[_Chunk] = Parts(self._gate, jobs + 1)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> PartsLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, item: AnyItem) -> None:
        """
        Take over one part; parts of data come in order, and the schema and the list of tables before them.

        Raises:
            BackupUnusable: It is not one that belongs here now.
            ServerError: This part, or one taken before, could not be loaded.
        """
        path = item.header.path
        name = path.removeprefix(f"{self._root}/")
        directory, _, file = name.rpartition("/")
        if name == SCHEMA_FILE and not self._has_schema:
            write_staged(self._schema, content_of(item))
            self._has_schema = True
            self._run_section("pre-data", self._schema)
        elif name == TABLES_FILE and self._has_schema and self._tables is None:
            self._begin(decoded(item, PartsTables))
        elif name == COMPLETE_FILE and self._complete is None:
            self._complete = decoded(item, PartsComplete)
        elif name == RECIPE_FILE:
            _drain(item)
        elif self._tables is None:
            raise BackupUnusable(f"{path} came before the schema, or twice", hint="use another backup")
        elif directory == DATA_DIRECTORY:
            self._take_data(item, file)
        elif directory.startswith(f"{TABLES_DIRECTORY}/"):
            self._take_chunk(item, directory.removeprefix(f"{TABLES_DIRECTORY}/"), file)
        else:
            raise BackupUnusable(f"{path} is no part of this database, or came twice", hint="use another backup")

    def finish(self) -> None:
        """
        Wait until all parts are in, prove that they are all, and complete the database.

        Raises:
            BackupUnusable: A part is missing, or a table has not the rows that were dumped.
            ServerError: A part could not be loaded, or an index could not be built.
        """
        if self._tables is None or self._complete is None:
            lacking = COMPLETE_FILE if self._tables is not None else TABLES_FILE if self._has_schema else SCHEMA_FILE
            raise BackupUnusable(f"{self._root}/{lacking} is missing", hint="use another backup")
        check_chunks(self._root, self._complete, pieces=self._pieces, tables=self._tables)
        self._data.end()
        self._parts.end()
        for thread in self._threads:
            thread.join()
        if self._gate.error is not None:
            raise self._gate.error
        check_rows(self._root, self._complete, self._tables)
        self._run_section("post-data", self._schema)
        self._analyze()

    def fail(self, error: BaseException) -> None:
        """End the load with *error*, from any thread: what is taken next raises it."""
        self._gate.fail(error)

    def close(self) -> None:
        """End what is unfinished."""
        self._gate.fail(Stopped())
        for thread in self._threads:
            thread.join()
        self._schema.unlink(missing_ok=True)

    def _analyze(self) -> None:
        """Collect statistics by as many sessions as may load, then wait for the disk."""
        with contextlib.ExitStack() as stack, refusal_as_error(f'cannot analyze database "{self._dbname}"'):
            sessions = [stack.enter_context(contextlib.closing(self._connect())) for _ in range(self._jobs)]
            for session in sessions:
                session.execute("SET synchronous_commit TO off")
            for refused in analyze_database(sessions):
                self._warn(f"not analyzed: {refused}")
            sessions[0].execute("RESET synchronous_commit")
            sessions[0].execute(_FLUSH)

    def _begin(self, described: PartsTables) -> None:
        self._encoding = described.encoding
        self._is_one_archive = described.is_one_archive
        self._tables = {table.directory: LoadingTable(table) for table in described.tables}
        self._start(self._load_data)
        for _ in range(self._jobs if self._tables else 0):
            self._start(self._load_chunks)

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - carried to the thread that takes the parts
                self._gate.fail(error)

        thread = threading.Thread(target=run, name=f"load-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _take_data(self, item: AnyItem, file: str) -> None:
        number = number_of(file, f".dump{self._compression.suffix}")
        if number != self._pieces + 1:
            raise BackupUnusable(
                f"{item.header.path} came where piece {self._pieces + 1} was expected", hint="use another backup"
            )
        self._data.put(decompress(content_of(item), self._compression))
        self._pieces = number

    def _take_chunk(self, item: AnyItem, directory: str, file: str) -> None:
        assert self._tables is not None
        table = self._tables.get(directory)
        number = number_of(file, f".copy{self._compression.suffix}")
        if table is None or not number:
            raise BackupUnusable(f"{item.header.path} is a chunk that nobody announced", hint="use another backup")
        if number in table.chunks:
            raise BackupUnusable(f"{item.header.path} came twice", hint="use another backup")
        table.chunks.add(number)
        self._parts.reserve()
        if hasattr(item, "read_extent"):
            chunk = _Chunk(table, item.header.path, cast(DetachedItem, item))
        else:
            chunk = _Chunk(table, item.header.path, None, [bytes(piece) for piece in item.chunks()])
        self._parts.put(chunk)

    def _load_data(self) -> None:
        """Be the thread that loads what pg_dump copied."""
        pieces = iter(self._data)
        first = next(pieces, None)
        # The head is needed without a piece, too: the values of sequences are in it.
        head = read_staged(self._schema) if self._is_one_archive else iter(())
        if self._is_one_archive or first is not None:
            self._run_section("data", itertools.chain(head, [first or b""], pieces))

    def _load_chunks(self) -> None:
        """Be one of the threads that load chunks."""
        session = self._connect()
        try:
            with refusal_as_error(f'cannot load into database "{self._dbname}"'):
                for setting in _SETTINGS:
                    session.execute(setting.encode())
            while (chunk := self._parts.take()) is not None:
                self._load(session, chunk)
                self._parts.done()
        finally:
            session.close()

    def _load(self, session: Any, chunk: _Chunk) -> None:
        announced = chunk.table.announced
        command = copy_in_command(announced.schema, announced.name, announced.columns, self._encoding)
        content = decompress(chunk.stored(), self._compression)
        rows = copy_in(session, command, content, where=self._where, cancelled=self._gate.cancelled)
        with self._gate.changed:
            chunk.table.rows += rows


def decoded(item: AnyItem, kind: type[Kind]) -> Kind:
    """Return the content of a list of parts; raise BackupUnusable when it is none."""
    content = b"".join(bytes(piece) for piece in content_of(item))
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackupUnusable(f"{item.header.path} is damaged: {error}", hint="use another backup") from error


def number_of(file: str, suffix: str) -> int:
    """Return the number in the name of a *file* that ends with *suffix*; 0 for a name that has none."""
    stem = file.removesuffix(suffix)
    has_suffix = file.endswith(suffix)
    return int(stem) if has_suffix and stem.isascii() and stem.isdigit() else 0


def _drain(item: AnyItem) -> None:
    for _ in content_of(item):
        pass
