"""Backups follow each other whatever the clock says: in one second, or when it went back."""

from __future__ import annotations

import datetime as dt
import itertools
import sys
from pathlib import Path

import pytest

from tests.lab.ledger import Ledger, Mark
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import PGKEEP, Keeper

BY_CLOCK = Path(__file__).with_name("by_clock.py")
NOON = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)

_counter = itertools.count()


def back_up_at(keeper: Keeper, ledger: Ledger, moment: dt.datetime, *levels: str) -> list[tuple[str, Mark]]:
    """Make backups while the clock stands at *moment*; return the id of each, and a mark that was made before it."""
    made = []
    for level in levels:
        ledger.transfer(5)
        mark = ledger.mark(f"mark {next(_counter)}")
        keeper.program = [sys.executable, BY_CLOCK, moment.isoformat()]
        made.append((str(keeper.backup(level, "local").report["backup_id"]), mark))
        keeper.program = [PGKEEP]
    return made


def test_backups_of_one_second_and_of_a_clock_that_went_back_stay_in_order(make_keeper: MakeKeeper) -> None:
    """Each backup's id is greater than all before it, and base, WAL and retention follow that order."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    made = back_up_at(keeper, ledger, NOON, "full", "incremental", "differential", "incremental", "full")
    made += back_up_at(keeper, ledger, NOON - dt.timedelta(hours=1), "differential", "incremental")
    made += back_up_at(keeper, ledger, NOON + dt.timedelta(hours=1), "full")
    assert [backup_id for backup_id, _ in made] == [
        "20261120T120000Z-F",
        "20261120T120001Z-I",
        "20261120T120002Z-D",
        "20261120T120003Z-I",
        "20261120T120004Z-F",
        "20261120T120005Z-D",
        "20261120T120006Z-I",
        "20261120T130000Z-F",
    ]
    ids = [backup_id for backup_id, _ in made]
    backups = keeper.info()["backups"]
    assert [backup["backup_id"] for backup in backups] == ids
    assert [backup["base"] for backup in backups] == ["", ids[0], ids[0], ids[2], "", ids[4], ids[5], ""]
    assert keeper.must("verify").warnings == []
    # Before the Differential that an Incremental of the same second precedes, and after the clock went back.
    for number, base in ((3, ids[2]), (7, ids[5])):
        restored = keeper.restore(f"--target-lsn={made[number][1].lsn}")
        restored.assert_is_at(made[number][1])
        restored.stop()
        assert restored.report["backup_id"] == base
    keeper.must("expire", "--retention-count=2")
    assert [backup["backup_id"] for backup in keeper.info()["backups"]] == ids[4:]


@pytest.mark.parametrize("level", ["full", "incremental"])
def test_what_a_killed_job_left_keeps_its_id(make_keeper: MakeKeeper, level: str) -> None:
    """A backup of the same second as one that was killed is another one; the leftover is told of and goes later."""
    keeper = make_keeper()
    ledger = Ledger(keeper.cluster)
    [(first, _)] = back_up_at(keeper, ledger, NOON, "full")
    left = keeper.vault / keeper.name / "backups" / "20261120T120001Z-F"
    left.mkdir()
    [(second, mark)] = back_up_at(keeper, ledger, NOON, level)
    assert (first, second[:-1]) == ("20261120T120000Z-F", "20261120T120002Z-")
    assert keeper.info()["leftovers"] == [left.name]
    keeper.must("expire", "--retention-count=1")
    assert keeper.info()["leftovers"] == []
    keeper.restore().assert_is_at(mark)
