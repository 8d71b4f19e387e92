"""The parts of one database in a parallel dump: their names, and how many there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from pgkeep.modes.parallel_dump_plan import (
    COMPLETE_FILE,
    DATA_DIRECTORY,
    RECIPE_FILE,
    SCHEMA_FILE,
    TABLES_DIRECTORY,
    TABLES_FILE,
    PartsComplete,
    PartsTable,
    PartsTables,
    TableCount,
)
from pgkeep.modes.parallel_dump_tables import TablePlan
from pgkeep.server.database import DatabaseProperties


class TableParts:
    """The chunks of one table, counted."""

    def __init__(self, plan: TablePlan) -> None:
        self.plan = plan
        self.chunks = 0
        self.rows = 0


class DatabaseParts:
    """
    The parts of one database; ``next_…`` and ``add_bytes`` may be called from any thread.

    Args:
        database: Which.
        root: Virtual path of their directory.

    Attributes:
        is_gone: Whether it was dropped before it was held still.
        encoding: Of the chunks.
        tables: Those that workers copy.
        pieces: Of what pg_dump copies.
        bytes: Of what has been made, as it is stored.
    """

    def __init__(self, database: DatabaseProperties, root: str) -> None:
        self.database = database
        self.is_gone = False
        self.encoding = ""
        self.tables: list[TableParts] = []
        self.pieces = 0
        self.bytes = 0
        self._root = root
        self._begin = 0.0
        self._lock = threading.Lock()

    def begin(self, tables: Sequence[TablePlan], *, encoding: str) -> None:
        """Take what is now known for good."""
        self._begin = time.monotonic()
        self.encoding = encoding
        self.tables = [TableParts(table) for table in tables]

    @property
    def schema_path(self) -> str:
        """Virtual path of the schema."""
        return f"{self._root}/{SCHEMA_FILE}"

    @property
    def tables_path(self) -> str:
        """Virtual path of the list of tables."""
        return f"{self._root}/{TABLES_FILE}"

    @property
    def complete_path(self) -> str:
        """Virtual path of the counts."""
        return f"{self._root}/{COMPLETE_FILE}"

    @property
    def recipe_path(self) -> str:
        """Virtual path of the recipe."""
        return f"{self._root}/{RECIPE_FILE}"

    @property
    def chunks(self) -> int:
        """How many chunks there are of all tables."""
        return sum(table.chunks for table in self.tables)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._begin

    def next_piece(self, suffix: str) -> str:
        """Return the virtual path of the next piece of what pg_dump copies."""
        with self._lock:
            self.pieces += 1
            return f"{self._root}/{DATA_DIRECTORY}/{self.pieces:06}.dump{suffix}"

    def next_chunk(self, table: TableParts, rows: int, suffix: str) -> str:
        """Return the virtual path of the next chunk of *table*, which has *rows* rows."""
        with self._lock:
            table.chunks += 1
            table.rows += rows
            return f"{self._root}/{TABLES_DIRECTORY}/{table.plan.directory}/{table.chunks:06}.copy{suffix}"

    def add_bytes(self, count: int) -> None:
        """Count what has been made."""
        with self._lock:
            self.bytes += count

    def describe(self) -> PartsTables:
        """Return what a restore must know before the first chunk."""
        return PartsTables(
            encoding=self.encoding,
            tables=[
                PartsTable(
                    directory=table.plan.directory,
                    schema=table.plan.facts.schema,
                    name=table.plan.facts.name,
                    columns=list(table.plan.facts.columns),
                )
                for table in self.tables
            ],
            is_one_archive=True,
        )

    def count(self) -> PartsComplete:
        """Return what a restore must know after the last part."""
        return PartsComplete(
            data_pieces=self.pieces,
            tables=[
                TableCount(directory=table.plan.directory, chunks=table.chunks, rows=table.rows)
                for table in self.tables
            ],
        )
