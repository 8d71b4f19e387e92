"""In which zone a target time without an offset is meant."""

from __future__ import annotations

import pytest

from pgkeep.jobs.restoring.settings import zone_named
from tests.restore.keeper import Keeper


@pytest.mark.parametrize("name", ["CET-1CEST", "Europe", "", "/etc/localtime", "No/Where"])
def test_name_of_no_zone(name: str) -> None:
    """What names no zone is no error of Python's."""
    assert zone_named(name) is None


@pytest.mark.parametrize("zone", [":/etc/localtime", "CET-1CEST"])
def test_odd_variable(keeper: Keeper, zone: str) -> None:
    """A TZ that names no zone does not end a restore; this host's own zone counts."""
    outcome = keeper.run("restore", "--target-time=2020-01-01 00:00:00", env={"TZ": zone})
    assert outcome.refusal[0] == "error: no base backup to restore from"
