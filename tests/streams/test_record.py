"""Backup ids: in order, whatever the clock says."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from pgkeep.streams.record import Level, new_backup_id
from pgkeep.vault.layout import is_backup_id

SECONDS_UP_TO_9998 = 253_339_228_800
MOMENTS = st.builds(
    lambda seconds, minutes: dt.datetime.fromtimestamp(seconds, dt.timezone(dt.timedelta(minutes=minutes))),
    st.floats(86_400, SECONDS_UP_TO_9998),
    st.integers(-900, 900),
)
LEVELS = st.sampled_from(Level)


@given(st.lists(st.tuples(MOMENTS, LEVELS), min_size=2, max_size=20))
def test_ids_sort_as_they_were_made(begins: list[tuple[dt.datetime, Level]]) -> None:
    """Each id is a valid one, and greater than the one before it."""
    newest = ""
    for begin, level in begins:
        made = new_backup_id(begin, level, newest=newest)
        assert is_backup_id(made)
        assert made > newest
        assert made[:-1] > newest[:-1]
        newest = made


@given(MOMENTS, LEVELS)
def test_an_id_says_when_the_backup_began(begin: dt.datetime, level: Level) -> None:
    """Without an earlier one in the way, the id is the second of the beginning, in UTC."""
    made = new_backup_id(begin, level, newest=new_backup_id(begin - dt.timedelta(seconds=1), Level.INCREMENTAL))
    assert made == new_backup_id(begin, level)
    assert dt.datetime.fromisoformat(made[:-2]) == begin.replace(microsecond=0)
