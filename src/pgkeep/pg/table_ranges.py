"""
How a large table is divided into ranges that can be copied at the same time.

Ranges cover every row exactly once, whatever the statistics say and however the table has grown since they were taken:
the first has no lower and the last no upper bound, and where one ends the next begins. Statistics decide only how even
the ranges are.

Two divisions exist. By ``ctid``, the place of a row: PostgreSQL 14 reads a range of pages without looking at the
others, and a snapshot's rows stay where they are while the table is locked against rewriting. By the first column of
the primary key, which no row lacks: rows for which a comparison is neither true nor false would be in no range.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

MAX_RANGES = 10_000


def ranges_for(size_bytes: int, *, workers: int, smallest_bytes: int, largest_bytes: int) -> int:
    """
    Return into how many ranges a table of *size_bytes* is divided, at least 1.

    Several for each worker, so that none waits long for the last; but each of a size that is worth a query.
    """
    wanted = max(smallest_bytes, min(largest_bytes, size_bytes // (4 * workers)))
    return max(1, min(MAX_RANGES, -(-size_bytes // wanted)))


def ctid_conditions(pages: int, ranges: int) -> list[str]:
    """Return the conditions that divide a table of *pages* pages into at most *ranges* ranges of ``ctid``."""
    bounds = sorted({pages * number // ranges for number in range(1, ranges)} - {0})
    return _conditions("ctid", [f"'({bound},0)'::pg_catalog.tid" for bound in bounds])


def key_conditions(column: str, type_name: str, bounds: Sequence[Decimal]) -> list[str]:
    """
    Return the conditions that divide a table at *bounds* of its key.

    Args:
        column: Name of the column, quoted for SQL.
        type_name: Of its type, as SQL has it; the bounds are of that type, or an index would not serve.
        bounds: Any numbers, in any order, finite.
    """
    return _conditions(column, [f"'{bound:f}'::{type_name}" for bound in sorted(set(bounds))])


def chosen_bounds(histogram: Sequence[Decimal], ranges: int) -> list[Decimal]:
    """Return up to *ranges* - 1 bounds out of a column's *histogram*, whose values are equally many rows apart."""
    inner = sorted({value for value in histogram if value.is_finite()})
    if len(inner) < ranges:
        return inner[1:] if len(inner) > 1 else []
    return sorted({inner[len(inner) * number // ranges] for number in range(1, ranges)})


def even_bounds(lowest: Decimal, highest: Decimal, ranges: int) -> list[Decimal]:
    """Return up to *ranges* - 1 bounds that divide *lowest* to *highest* evenly; whole numbers."""
    if not lowest.is_finite() or not highest.is_finite():
        return []
    low, high = int(lowest), int(highest)
    return [
        Decimal(bound) for bound in sorted({low + (high - low) * n // ranges for n in range(1, ranges)}) if bound > low
    ]


def _conditions(column: str, bounds: Sequence[str]) -> list[str]:
    if not bounds:
        return [""]
    lower = ["", *(f"{column} >= {bound}" for bound in bounds)]
    upper = [*(f"{column} < {bound}" for bound in bounds), ""]
    return [" AND ".join(filter(None, pair)) for pair in zip(lower, upper, strict=True)]
