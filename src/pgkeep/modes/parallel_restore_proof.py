"""The proof that every part of a parallel dump is in, before a database takes its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pgkeep.errors import BackupUnusable
from pgkeep.modes.parallel_dump_plan import (
    COMPLETE_FILE,
    DATA_DIRECTORY,
    TABLES_DIRECTORY,
    TABLES_FILE,
    PartsComplete,
    PartsTable,
)

_HINT = "restore again; if it is lost, use another backup"


@dataclass
class LoadingTable:
    """
    One table on its way in.

    Attributes:
        announced: What ``tables.json`` says of it.
        chunks: Numbers of those that have come.
        rows: How many the server has taken.
    """

    announced: PartsTable
    chunks: set[int] = field(default_factory=set)
    rows: int = 0


def check_chunks(root: str, complete: PartsComplete, *, pieces: int, tables: Mapping[str, LoadingTable]) -> None:
    """
    Raise BackupUnusable when a part is missing, or is one that was not dumped.

    Args:
        root: Virtual path of the directory of the parts.
        complete: What there should be.
        pieces: How many of what pg_dump copied have come.
        tables: By directory, what has come.
    """
    if pieces != complete.data_pieces:
        raise BackupUnusable(
            f"{root}/{DATA_DIRECTORY} has {pieces} pieces, expected {complete.data_pieces}", hint=_HINT
        )
    expected = {table.directory: table.chunks for table in complete.tables}
    if expected.keys() != tables.keys():
        raise BackupUnusable(f"{root}/{COMPLETE_FILE} names other tables than {TABLES_FILE}", hint=_HINT)
    for directory, count in expected.items():
        wrong = tables[directory].chunks ^ set(range(1, count + 1))
        if wrong:
            what = "is missing" if min(wrong) not in tables[directory].chunks else "is one too many"
            raise BackupUnusable(
                f"{root}/{TABLES_DIRECTORY}/{directory}: chunk {min(wrong)} of {count} {what}", hint=_HINT
            )


def check_rows(root: str, complete: PartsComplete, tables: Mapping[str, LoadingTable]) -> None:
    """Raise BackupUnusable when a table has not as many rows as were dumped."""
    for table in complete.tables:
        found = tables[table.directory].rows
        if found != table.rows:
            raise BackupUnusable(
                f"{root}/{TABLES_DIRECTORY}/{table.directory} has {found} rows, expected {table.rows}", hint=_HINT
            )
