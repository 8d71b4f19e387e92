"""Ranges divide: every row is in exactly one of them."""

from __future__ import annotations

import re
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from pgkeep.pg.table_ranges import chosen_bounds, ctid_conditions, even_bounds, key_conditions, ranges_for

numbers = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**20), max_value=10**20)


def matching(conditions: list[str], value: Decimal, pattern: str) -> int:
    """Return how many of *conditions* hold for *value*; a number in them is what *pattern* finds."""
    found = 0
    for condition in conditions:
        terms = re.findall(rf"(>=|<) {pattern}", condition)
        found += all(value >= Decimal(n) if sign == ">=" else value < Decimal(n) for sign, n in terms)
    return found


@given(pages=st.integers(0, 10**9), ranges=st.integers(1, 200), page=st.integers(0, 2 * 10**9))
def test_every_page_is_in_one_range(pages: int, ranges: int, page: int) -> None:
    """A page within or beyond the size that was seen belongs to exactly one range of ctid."""
    conditions = ctid_conditions(pages, ranges)
    assert len(conditions) <= ranges
    assert matching(conditions, Decimal(page), r"'\((\d+),0\)'") == 1


@given(bounds=st.lists(numbers, max_size=20), value=numbers)
def test_every_number_is_in_one_range(bounds: list[Decimal], value: Decimal) -> None:
    """Negative, sparse, repeated: a key belongs to exactly one range, whatever the bounds."""
    conditions = key_conditions("id", "numeric", bounds)
    assert matching(conditions, value, r"'(-?[0-9.]+)'::numeric") == 1


@given(histogram=st.lists(numbers | st.sampled_from([Decimal("NaN"), Decimal("Infinity")]), max_size=101))
def test_bounds_come_from_the_histogram(histogram: list[Decimal]) -> None:
    """Bounds are finite, ascending, of the histogram, and fewer than the ranges."""
    bounds = chosen_bounds(histogram, 8)
    assert len(bounds) < 8
    assert bounds == sorted(set(bounds))
    assert all(bound.is_finite() and bound in histogram for bound in bounds)


@given(lowest=numbers, highest=numbers)
def test_even_bounds_lie_between(lowest: Decimal, highest: Decimal) -> None:
    """Without statistics the bounds lie between the ends."""
    bounds = even_bounds(min(lowest, highest), max(lowest, highest), 8)
    assert len(bounds) < 8
    assert all(int(min(lowest, highest)) < bound <= max(lowest, highest) for bound in bounds)


@given(size=st.integers(0, 10**16), workers=st.integers(1, 64))
def test_ranges_are_worth_a_query(size: int, workers: int) -> None:
    """A range is never smaller than what is worth a query, but for the last one."""
    count = ranges_for(size, workers=workers, smallest_bytes=16 << 20, largest_bytes=1 << 30)
    assert 1 <= count <= 10_000
    assert count == 1 or size / count > 8 << 20
