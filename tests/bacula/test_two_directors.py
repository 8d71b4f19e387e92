"""Two Directors that back up one cluster and keep their records in one state_dir: none builds on the other's job."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene
from tests.lab.bacula import JobResult
from tests.pitr_block.conftest import SUMMARIZING

pytestmark = pytest.mark.bacula

LAST_NUMBER = 100
"""Of the second Director's jobs before the test."""


@pytest.fixture
def both(make_scene: MakeScene) -> tuple[Scene, Scene]:
    """One cluster, two Directors; a daemon each, with one state_dir."""
    one = make_scene(name="one", settings=SUMMARIZING)
    state = {"state_dir": str(one.director.directory / "state")}
    two = make_scene(name="two", cluster=one.cluster, config=state)
    with closing(sqlite3.connect(two.director.catalog_file, timeout=30)) as catalog:
        catalog.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('Job', ?)", [LAST_NUMBER])
        catalog.commit()
    for scene in (one, two):
        scene.job("pg", scene.line("pitr_block", "start_fast=yes"))
    return one, two


def _started_in_the_same_second(one: Scene, two: Scene) -> tuple[JobResult, JobResult]:
    """Run a Full by each; that of *two* waits for its daemon until the other is through."""
    for _ in range(10):
        pid = two.director.pid("fd")
        os.kill(pid, signal.SIGSTOP)
        try:
            two.director.tick()
            ids = [scene.director.queue("pg", "Full") for scene in (one, two)]
            first = one.director.wait(ids[0]).must()
        finally:
            os.kill(pid, signal.SIGCONT)
        second = two.director.wait(ids[1])
        if first.unique_name == second.unique_name:
            return first, second
    raise AssertionError("the two jobs never had the same name")


def test_jobs_of_one_unique_name(both: tuple[Scene, Scene]) -> None:
    """A job with the name of another Director's is refused, and the chain of that one restores every row."""
    one, two = both
    _, second = _started_in_the_same_second(one, two)
    assert second.status == "f", second.text
    assert any("a job of another Director is called" in line for line in second.told), second.text
    one.transfer()
    one.backup(one.director.add_job("pg", one.line("pitr_block", "start_fast=yes")), "Incremental")
    mark = one.ledger.mark("end")
    one.backup(one.director.add_job("pg", one.line("pitr_block", "start_fast=yes")), "Incremental")
    where = one.directory / "out"
    one.director.restore("pg", where).must()
    one.assert_restored(where, mark)


def test_jobs_in_turn_are_said(both: tuple[Scene, Scene]) -> None:
    """A Director whose numbers are lower than those of the other hears of it in the log of its job."""
    one, two = both
    two.director.run("pg", "Full").must()
    result = one.director.run("pg", "Full").must()
    assert any("two Directors share this state_dir" in line for line in result.told), result.text
