"""What a parallel dump is asked to do, and what it is about to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from pgkeep.modes.dump_names import encode_name
from pgkeep.modes.dump_plan import DumpOptions, DumpPlan
from pgkeep.modes.parallel_dump_tables import Division, TablePlan

FORMAT = "parallel-2"
"""What ``DumpDetails.format`` says of such a dump; another one since the pieces of ``data/`` go on with the schema."""
FORMATS = frozenset({"parallel", FORMAT})
"""What this version reads."""
SUFFIX = ".parts"
SCHEMA_FILE = "schema.dump"
TABLES_FILE = "tables.json"
COMPLETE_FILE = "complete.json"
RECIPE_FILE = "restore.sh"
DATA_DIRECTORY = "data"
TABLES_DIRECTORY = "tables"
_LINES = 100
"""Of the plan of one database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelDumpOptions(DumpOptions):
    """
    What is dumped, and how.

    Attributes:
        workers: Sessions that copy at once, over all databases; pg_dump counts as one.
        threshold_bytes: Larger tables are copied in ranges; 0 for none.
        whole_bytes: Tables from this size on are copied by workers, smaller ones by pg_dump.
        range_bytes: A range of a table is not smaller.
        chunk_bytes: Of a chunk before compression.
    """

    workers: int = 8
    threshold_bytes: int = 10 << 30
    whole_bytes: int = 16 << 20
    range_bytes: int = 16 << 20
    chunk_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelDumpPlan(DumpPlan):
    """
    What a parallel dump is about to do.

    Attributes:
        options: What was asked for.
        workers: Sessions that copy at once.
        databases_at_once: How many databases are held still at a time.
        division: Which tables are divided, and how far.
        divides: Whether workers copy tables at all; else *undivided* says why not.
        undivided: Why pg_dump copies all tables; empty when it doesn't.
        is_standby: Whether the server is one.
        tables: By database, as they were when the plan was made.
    """

    options: ParallelDumpOptions
    workers: int
    databases_at_once: int
    division: Division
    undivided: str = ""
    is_standby: bool = False
    tables: dict[str, list[TablePlan]] = field(default_factory=dict)

    def path(self, database: str) -> str:
        """Return the virtual path of the directory of *database*'s parts."""
        return f"{self.request.root}/{encode_name(database)}{SUFFIX}"

    def lines(self) -> Iterator[str]:
        """Yield the plan for people."""
        at_once = min(self.databases_at_once, len(self.databases))
        yield f"{self.workers} workers, {len(self.databases)} databases, {at_once} of them at once"
        if self.undivided:
            yield f"all tables by pg_dump: {self.undivided}"
        for name, tables in self.tables.items():
            for table in tables[:_LINES]:
                yield f'database "{name}": {table.line}'
            if len(tables) > _LINES:
                yield f'database "{name}": {len(tables) - _LINES} more tables whole'
            rest = "the rest by pg_dump" if tables else "all by pg_dump"
            yield f'database "{name}": {rest}'


class PartsTable(msgspec.Struct, frozen=True, kw_only=True):
    """
    One table that workers copy.

    Attributes:
        directory: Where its chunks are, beneath ``tables/``.
        schema: Name of its schema.
        name: Its name.
        columns: Those that its chunks hold, in order.
    """

    directory: str
    schema: str
    name: str
    columns: list[str]


class PartsTables(msgspec.Struct, frozen=True, kw_only=True):
    """
    The content of ``tables.json``, which comes before the first chunk.

    Attributes:
        encoding: Of the chunks: that of the database.
        tables: Those that workers copy.
        is_one_archive: Whether the schema is the head of the archive that the pieces of ``data/`` go on with; each
            was an archive by itself before.
    """

    encoding: str
    tables: list[PartsTable]
    is_one_archive: bool = False


class TableCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many chunks and rows one table has."""

    directory: str
    chunks: int
    rows: int


class PartsComplete(msgspec.Struct, frozen=True, kw_only=True):
    """
    The content of ``complete.json``, which comes after the last part.

    Attributes:
        data_pieces: Pieces of what pg_dump copied.
        tables: Every table of ``tables.json``.
    """

    data_pieces: int
    tables: list[TableCount]
