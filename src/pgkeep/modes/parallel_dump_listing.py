"""What a parallel dump asks a database before it reads rows: which tables workers copy, and how."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pgkeep.modes.parallel_dump_plan import ParallelDumpPlan
from pgkeep.modes.parallel_dump_tables import MAX_TABLES, TablePlan
from pgkeep.server.table_facts import TableFacts, has_ctid_ranges, key_ends, list_tables

if TYPE_CHECKING:
    import psycopg


def worker_tables(
    plan: ParallelDumpPlan, session: psycopg.Connection[Any], *, among: Sequence[TablePlan] | None = None
) -> list[TableFacts]:
    """
    Return the tables of *session*'s database that workers copy, as they are now.

    Args:
        plan: Of the job.
        session: In the database.
        among: Ask for these only; None for all, which costs the server a look at every table's files.
    """
    if plan.undivided or (among is not None and not among):
        return []
    listed = list_tables(
        session,
        least_bytes=plan.options.whole_bytes,
        at_most=MAX_TABLES,
        with_keys=not has_ctid_ranges(session),
        among=None if among is None else [table.facts.oid for table in among],
    )
    return [table for table in listed if plan.division.is_for_workers(table, is_standby=plan.is_standby)]


def planned_tables(
    plan: ParallelDumpPlan, session: psycopg.Connection[Any], tables: Sequence[TableFacts]
) -> list[TablePlan]:
    """Return how *tables* are copied."""
    has_ranges = has_ctid_ranges(session)
    return [plan.division.plan(table, has_ctid_ranges=has_ranges, ends=partial(key_ends, session)) for table in tables]
