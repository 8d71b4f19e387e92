"""Chains of mode pitr_block restored through a Director: rolled forward while they arrive, refused when one is lost."""

from __future__ import annotations

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene
from tests.lab.server_user import server_user
from tests.pitr_block.conftest import SUMMARIZING

pytestmark = pytest.mark.bacula


def live(scene: Scene, number: int) -> None:
    """Let rows change, a table come and one go."""
    scene.cluster.sql("UPDATE big SET t = repeat('y', 200) WHERE g %% 4000 = %s", [number])
    scene.cluster.sql(f"DROP TABLE t{number - 1}")
    scene.cluster.sql(f"CREATE TABLE t{number} AS SELECT g FROM generate_series(1, 3000) AS g")
    scene.transfer()


@pytest.mark.pg(">= 17")
def test_chain_arrives_and_is_rolled_forward(major: int, make_scene: MakeScene) -> None:
    """Full, Differential and Incremental come back by one restore, with a tablespace made between; not without one."""
    scene = make_scene(major=major, settings=SUMMARIZING)
    job = scene.job("block", scene.line("pitr_block", "start_fast=yes"))
    doomed = scene.directory / "doomed"
    later = scene.directory / "later"
    for place in (doomed, later):
        place.mkdir()
        server_user().own(place)
    scene.cluster.sql(f"CREATE TABLESPACE doomed LOCATION '{doomed}'")
    scene.cluster.sql("CREATE TABLE t0 TABLESPACE doomed AS SELECT 1 AS g")
    scene.cluster.sql("CREATE TABLE big AS SELECT g, repeat('x', 200) AS t FROM generate_series(1, 30000) AS g")
    jobs = []
    for number, level in enumerate(("Full", "Incremental", "Differential", "Incremental"), start=1):
        live(scene, number)
        if number == 3:
            scene.cluster.sql("DROP TABLESPACE doomed")
            scene.cluster.sql(f"CREATE TABLESPACE later LOCATION '{later}'")
            scene.cluster.sql("ALTER TABLE big SET TABLESPACE later")
        mark = scene.ledger.mark(f"at {number}")
        jobs.append(scene.backup(job, level))
        if number == 3:
            scene.transfer()
            between = scene.ledger.mark("between")

    where = scene.directory / "out"
    result = scene.director.restore(job, where).must()
    assert sum(" applied backup " in f" {line}" for line in result.told) == 3, result.text
    scene.assert_restored(where, mark)
    assert not list(where.rglob("INCREMENTAL.*"))

    # The last job's files are of a later moment; its WAL leads to this one.
    where = scene.directory / "between"
    options = {"target_time": between.time.isoformat()}
    result = scene.director.restore(job, where, options=options).must()
    assert sum(" applied backup " in f" {line}" for line in result.told) == 2, result.text
    scene.assert_restored(where, between)

    refused = scene.director.restore(job, scene.directory / "not", select=f"jobid={jobs[0].job_id},{jobs[3].job_id}")
    assert refused.status in ("E", "f"), refused.text
    assert any(" builds on backup " in line and "which is not there" in line for line in refused.told), refused.text
    assert not list((scene.directory / "not").rglob("PG_VERSION"))
    scene.assert_nothing_is_left()
