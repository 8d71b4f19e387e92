"""What a job of Bacula's says that it has taken from a spool."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.spool.taken import TAKEN_FILE, read_taken, write_taken

POSITIONS = st.builds(
    lambda timeline, lsn: WalPosition(Timeline(timeline), Lsn(lsn)),
    st.integers(1, (1 << 31) - 1),
    st.integers(0, 1 << 62),
)


@given(POSITIONS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_it_is_read_as_it_was_written(tmp_path: Path, position: WalPosition) -> None:
    """The newest position is the one that counts."""
    write_taken(tmp_path, position)
    assert read_taken(tmp_path) == position
    assert [path.name for path in tmp_path.iterdir()] == [TAKEN_FILE]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"timeline": 1}', '{"timeline": 1, "lsn": "x"}', '{"timeline": 0, "lsn": "0/0"}']
)
def test_what_nobody_can_read_counts_as_nothing(tmp_path: Path, content: str) -> None:
    """It is for telling people: a damaged one is as good as none."""
    assert read_taken(tmp_path) is None
    (tmp_path / TAKEN_FILE).write_text(content)
    assert read_taken(tmp_path) is None
