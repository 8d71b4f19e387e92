"""The rows of some tables on their way into a transaction: chunks that workers made, and what pg_dump copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from psycopg import sql

from pgkeep.errors import BackupUnusable
from pgkeep.modes.dump_items import Supply
from pgkeep.modes.parallel_dump_plan import (
    COMPLETE_FILE,
    TABLES_DIRECTORY,
    TABLES_FILE,
    PartsComplete,
    PartsTable,
    PartsTables,
)
from pgkeep.modes.parallel_dump_recipe import copy_in_command
from pgkeep.modes.parallel_dump_tables import quoted_columns
from pgkeep.modes.parallel_restore import decoded, number_of
from pgkeep.server.copy_in import copy_in
from pgkeep.server.copy_out import Chunk, copy_out
from pgkeep.server.table_catalog import CatalogTable, TableName
from pgkeep.streams.compression import Compression, decompress
from pgkeep.streams.item import CHUNK_BYTES, Buffer, content_of

if TYPE_CHECKING:
    import psycopg

_FREEZE = "FREEZE"
"""Legal, since each table is made in the very transaction; nobody will have to freeze its rows later."""


class Chunks:
    """
    The chunks of one database of a parallel dump; none for a dump of another format.

    Args:
        root: Virtual path of the directory of the parts.
        supply: Gives them.
        compression: Of them.
    """

    def __init__(self, root: str, supply: Supply, compression: Compression) -> None:
        self._root = root
        self._supply = supply
        self._compression = compression
        described = [decoded(item, PartsTables) for item in supply(f"{root}/{TABLES_FILE}".__eq__)]
        complete = [decoded(item, PartsComplete) for item in supply(f"{root}/{COMPLETE_FILE}".__eq__)]
        if not described or not complete:
            lacking = COMPLETE_FILE if described else TABLES_FILE
            raise BackupUnusable(f"{root}/{lacking} is missing", hint="use another backup")
        self.encoding = described[0].encoding
        self.is_one_archive = described[0].is_one_archive
        self.complete = complete[0]
        self._counts = {table.directory: table for table in complete[0].tables}
        self._tables = {TableName(table.schema, table.name): table for table in described[0].tables}

    def __contains__(self, table: TableName) -> bool:
        return table in self._tables

    def load(self, table: TableName, session: psycopg.Connection[Any], *, where: str) -> int:
        """Load all chunks of *table*; return the rows, which are as many as were dumped."""
        announced = self._tables[table]
        count = self._counts[announced.directory]
        rows, seen = 0, set[int]()
        directory = f"{self._root}/{TABLES_DIRECTORY}/{announced.directory}/"
        for item in self._supply(lambda path: path.startswith(directory)):
            number = number_of(item.header.path.removeprefix(directory), f".copy{self._compression.suffix}")
            if not 1 <= number <= count.chunks or number in seen:
                raise BackupUnusable(f"{item.header.path} came twice, or is one too many", hint="use another backup")
            seen.add(number)
            content = decompress(content_of(item), self._compression)
            rows += copy_in(session, self._command(announced), content, where=where)
        if len(seen) != count.chunks or rows != count.rows:
            raise BackupUnusable(
                f"{directory.rstrip('/')} has {len(seen)} chunks with {rows} rows, expected {count.chunks} with "
                f"{count.rows}",
                hint="restore again; if they are lost, use another backup",
            )
        return rows

    def _command(self, table: PartsTable) -> str:
        return copy_in_command(table.schema, table.name, table.columns, self.encoding, options=_FREEZE)


class RowSource:
    """
    Where the rows of *tables* are; a context manager.

    Args:
        tables: Whose rows.
        chunks: What workers copied; None for none.
        workshop: A session in the database that holds the other rows, and the values of sequences.
        fill: Puts the rows of tables there.
        where: The server's place, for messages.
    """

    def __init__(
        self,
        tables: Sequence[CatalogTable],
        chunks: Chunks | None,
        workshop: psycopg.Connection[Any],
        *,
        fill: Callable[[Sequence[TableName]], None],
        where: str,
    ) -> None:
        self._tables = [table for table in tables if table.has_rows]
        self._entrances = {table.oid: table.name for table in tables}
        self._chunks = chunks
        self._workshop = workshop
        self._fill = fill
        self._where = where

    def __enter__(self) -> Self:
        """Fill the workshop, before anything in the target is locked."""
        others = [table.name for table in self._tables if not self._is_in_chunks(table.name)]
        for name in others:
            # What would look at a row, or hide it, has been written down by now.
            for what in ("DISABLE TRIGGER USER", "NO FORCE ROW LEVEL SECURITY", "DISABLE ROW LEVEL SECURITY"):
                self._workshop.execute(f"ALTER TABLE {name.quoted} {what}".encode())
        self._fill(others)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing: the workshop goes as a whole."""

    def load(self, session: psycopg.Connection[Any]) -> dict[TableName, int]:
        """Load all rows in *session*, in which the tables have just been made; return how many each took in."""
        found: dict[TableName, int] = {}
        for table in self._tables:
            if self._chunks is not None and table.name in self._chunks:
                found[table.name] = self._chunks.load(table.name, session, where=self._where)
            elif table.entrance:
                entrance = self._entrances[table.entrance]
                found[entrance] = found.get(entrance, 0) + self._transfer(table, session, entrance)
            else:
                found[table.name] = self._transfer(table, session)
        return found

    def sequence_values(
        self, made: Iterable[TableName], sequences: Sequence[tuple[TableName, bool]]
    ) -> Iterator[tuple[TableName, int, bool]]:
        """Yield the state of those *sequences* that belong to a table or are among those *made*."""
        loose = set(made)
        for name, is_owned in sequences:
            if is_owned or name in loose:
                row = self._workshop.execute(f"SELECT last_value, is_called FROM {name.quoted}".encode()).fetchone()
                assert row is not None
                yield name, row[0], row[1]

    def _is_in_chunks(self, name: TableName) -> bool:
        return self._chunks is not None and name in self._chunks

    def _encoding(self) -> str:
        """Return the encoding in which rows go over as they are."""
        row = self._workshop.execute("SHOW server_encoding").fetchone()
        assert row is not None
        return str(row[0])

    def _transfer(
        self, table: CatalogTable, session: psycopg.Connection[Any], entrance: TableName | None = None
    ) -> int:
        """Copy the rows of one table out of the workshop, and in through *entrance* if there is one."""
        columns = f" ({quoted_columns(list(table.columns))})" if table.columns else ""
        encoding = sql.Literal(self._encoding()).as_string(None)
        command = f"COPY {table.name.quoted}{columns} TO STDOUT (ENCODING {encoding})"
        answer = copy_out(self._workshop, command, where=self._where)
        # A partitioned table takes no frozen rows.
        options = f"ENCODING {encoding}" if entrance else f"ENCODING {encoding}, {_FREEZE}"
        command = f"COPY {(entrance or table.name).quoted}{columns} FROM STDIN ({options})"
        rows = 0

        def content() -> Iterator[Buffer]:
            nonlocal rows
            is_over = False
            while not is_over:
                chunk = Chunk(CHUNK_BYTES)
                is_over = answer.read(chunk)
                rows += chunk.rows
                yield chunk.content

        taken = copy_in(session, command, content(), where=self._where)
        if taken != rows:
            raise BackupUnusable(f"table {table.name.quoted} took {taken} rows, expected {rows}")
        return taken
