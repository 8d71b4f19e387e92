"""Fixtures of the tests of mode pitr_block: those of the restore tests, with a server that summarizes its WAL."""

from __future__ import annotations

import pytest

from tests.restore.conftest import MakeKeeper, make_keeper
from tests.restore.keeper import Keeper
from tests.roll_forward.conftest import lab_directory

__all__ = ["keeper", "lab_directory", "make_keeper"]

SUMMARIZING = {"summarize_wal": "on", "wal_summary_keep_time": "30d"}


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    """A running cluster that summarizes its WAL, and a vault for it."""
    return make_keeper(settings=SUMMARIZING)
