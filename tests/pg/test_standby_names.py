"""The names in synchronous_standby_names."""

from __future__ import annotations

import pytest

from pgkeep.pg.standby_names import is_synchronous, standby_names


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("", []),
        ("pgkeep_main", ["pgkeep_main"]),
        ("a, b", ["a", "b"]),
        ("2 (a, b)", ["a", "b"]),
        ("FIRST 1 (pgkeep_main)", ["pgkeep_main"]),
        ("any 2 ( a,\nb,c )", ["a", "b", "c"]),
        ('ANY 1 ("a ""b"", (c)", *)', ['a "b", (c)', "*"]),
        ('"first", any', ["first", "any"]),
    ],
)
def test_names(setting: str, names: list[str]) -> None:
    """Names are found in each of the forms that the server takes."""
    assert standby_names(setting) == names


@pytest.mark.parametrize(
    ("setting", "is_one"),
    [("", False), ("*", True), ("FIRST 1 (PgKeep_Main)", True), ("ANY 1 (other, pgkeep_mainly)", False)],
)
def test_a_name_is_one_that_commits_wait_for(setting: str, is_one: bool) -> None:
    """Names are compared without case, and a star stands for any."""
    assert is_synchronous("pgkeep_main", setting) is is_one
