"""Which tables a parallel dump copies by its own workers, in how many ranges, by what, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from psycopg import sql

from pgkeep.modes.dump_names import encode_name
from pgkeep.modes.dump_staging import size_text
from pgkeep.pg.table_ranges import chosen_bounds, ctid_conditions, even_bounds, key_conditions, ranges_for
from pgkeep.server.table_facts import TableFacts

LARGEST_RANGE_BYTES = 1 << 30
MAX_TABLES = 1_000
"""Tables of one database that workers copy; each is an argument of pg_dump, and a lock of each session."""

Ends = Callable[[TableFacts], tuple[Decimal, Decimal] | None]


@dataclass(frozen=True, slots=True)
class TablePlan:
    """
    How one table is copied.

    Attributes:
        facts: The table.
        conditions: One for each range; a single empty one for the whole table.
        reason: By what it is divided, or why it is not; for people.
    """

    facts: TableFacts
    conditions: tuple[str, ...]
    reason: str

    @property
    def directory(self) -> str:
        """Name of the directory of its chunks; no two tables of a database share one."""
        # A dot in a name would make "a.b"."c" of "a"."b.c".
        parts = (self.facts.schema, self.facts.name)
        return ".".join(encode_name(part).replace(".", "%2E") for part in parts)

    @property
    def line(self) -> str:
        """What is done with it, for people."""
        ranges = len(self.conditions)
        how = f"{ranges} ranges" if ranges > 1 else "whole"
        return f"{self.facts} {size_text(self.facts.size_bytes)}: {how}, {self.reason}"

    def copies(self, encoding: str) -> list[str]:
        """Return the commands that copy it, one for each range, in *encoding*."""
        table, columns = self.facts.quoted(), quoted_columns(self.facts.columns)
        options = f"TO STDOUT (ENCODING {sql.Literal(encoding).as_string(None)})"
        return [
            f"COPY (SELECT {columns} FROM ONLY {table} WHERE {condition}) {options}"
            if condition
            else f"COPY {table} ({columns}) {options}"
            for condition in self.conditions
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """
    The rules of one job.

    Attributes:
        threshold_bytes: Larger tables are copied in ranges; 0 for none.
        whole_bytes: Tables from this size on are copied by workers, smaller ones by pg_dump.
        workers: Of the job.
        range_bytes: A range is not smaller: what is worth a query.
    """

    threshold_bytes: int
    whole_bytes: int
    workers: int
    range_bytes: int

    def is_for_workers(self, table: TableFacts, *, is_standby: bool) -> bool:
        """Whether workers copy *table* at all."""
        if table.is_of_extension or table.is_placed_by_oid or not table.columns:
            # An extension says which of its rows are dumped, and pg_dump asks it. And pg_dump loads through the
            # partitioned table where OIDs place rows.
            return False
        return not (table.is_unlogged and is_standby)

    def plan(self, table: TableFacts, *, has_ctid_ranges: bool, ends: Ends) -> TablePlan:
        """Return how *table* is copied; *ends* gives the least and the greatest key where there are no statistics."""
        if not self.threshold_bytes:
            return TablePlan(table, ("",), "large_table_threshold is 0")
        if table.size_bytes <= self.threshold_bytes:
            return TablePlan(table, ("",), f"not larger than {size_text(self.threshold_bytes)}")
        if self.workers == 1:
            # Nobody would share the ranges, and a row of a query costs the server more than one of a whole table.
            return TablePlan(table, ("",), "there is one worker")
        ranges = ranges_for(
            table.size_bytes,
            workers=self.workers,
            smallest_bytes=self.range_bytes,
            largest_bytes=LARGEST_RANGE_BYTES,
        )
        if has_ctid_ranges and table.access_method == "heap":
            return _divided(table, ctid_conditions(table.pages, ranges), "by ctid")
        if not table.key:
            return TablePlan(table, ("",), f"{_no_ctid(table)}, and it has no primary key that begins with a number")
        bounds, source = chosen_bounds(table.histogram, ranges), "statistics"
        if not bounds:
            found = ends(table)
            bounds, source = (even_bounds(*found, ranges) if found is not None else []), "least and greatest key"
        conditions = key_conditions(quoted_columns([table.key]), table.key_type, bounds)
        return _divided(table, conditions, f"by key {table.key}, bounds from its {source}")


def quoted_columns(columns: Sequence[str]) -> str:
    """Return *columns* as SQL has them: ``id, "Odd"``."""
    return ", ".join(sql.Identifier(column).as_string(None) for column in columns)


def _divided(table: TableFacts, conditions: list[str], reason: str) -> TablePlan:
    if len(conditions) == 1:
        return TablePlan(table, ("",), f"{reason} there is nothing to divide")
    return TablePlan(table, tuple(conditions), reason)


def _no_ctid(table: TableFacts) -> str:
    if table.access_method != "heap":
        return f"access method {table.access_method} has no ranges of ctid"
    return "PostgreSQL before 14 reads no ranges of ctid"
