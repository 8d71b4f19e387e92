"""A chain that is combined by PostgreSQL's program, where it cannot begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.datadir.combined import CombinedLayDown
from pgkeep.datadir.target import Target
from pgkeep.errors import PgkeepError


def test_what_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A place of the restore that is not there is named, not the staging directory, which goes again."""
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "data").mkdir()
    target = Target(data_directory=tmp_path / "data", version_directory="PG_18_202506291", tablespaces={1: elsewhere})
    with pytest.raises(PgkeepError) as failure:
        CombinedLayDown(target, root="@postgresql", chain=["F", "I"], workers=1, expected_bytes=0, combine=_never)
    assert failure.value.message == f"cannot make {elsewhere}: No such file or directory"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def _never(*_: object) -> None:
    pytest.fail("nothing has come")
