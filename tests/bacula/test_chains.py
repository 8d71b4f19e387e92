"""Full, Differential and Incremental through a Director, and what they bring back: the rows of the last one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene, files_beneath
from tests.lab.bacula import JobResult
from tests.lab.bacula_config import JobDefinition
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation

pytestmark = pytest.mark.bacula

# What is true of the majors on both sides of it is true of 17, and a Director's jobs take seconds.
MAJORS = pytest.mark.pg("!=17")


def _levels(scene: Scene, job: JobDefinition, *levels: str) -> list[JobResult]:
    results = []
    for number, level in enumerate(levels):
        scene.transfer(10 + number)
        results.append(scene.backup(job, level))
    return results


@pytest.mark.parametrize(
    ("accurate", "levels"),
    [(True, ["Full", "Incremental", "Incremental"]), (False, ["Full", "Incremental", "Differential"])],
    ids=["accurate", "not-accurate"],
)
@MAJORS
def test_pitr_chain(major: int, accurate: bool, levels: list[str], make_scene: MakeScene) -> None:
    """A chain of mode pitr restores the rows of its last job, and deletes nothing that it needs."""
    scene = make_scene(major=major)
    job = scene.job("pitr", scene.line("pitr"), accurate=accurate)
    results = _levels(scene, job, *levels)
    scene.transfer()
    mark = scene.ledger.mark("end")
    results.append(scene.backup(job, "Incremental"))
    for result in results:
        assert [line for line in result.told if line.startswith("Warning")] == []
        if result.level == "I":
            assert [name for name, _, index in scene.director.files(result.job_id) if index <= 0] == []
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)
    scene.assert_nothing_is_left()


@pytest.mark.parametrize("accurate", [True, False], ids=["accurate", "not-accurate"])
@MAJORS
def test_dump_chain(major: int, accurate: bool, make_scene: MakeScene) -> None:
    """A database that was dropped between two dumps does not come back, and one that was made does."""
    scene = make_scene(major=major)
    for name in ("shop", "gone"):
        scene.cluster.sql(f"CREATE DATABASE {name}")
    scene.cluster.sql("CREATE TABLE item AS SELECT 1 AS n", dbname="shop")
    job = scene.job("dump", scene.line("dump"), accurate=accurate)
    scene.backup(job, "Full")
    scene.cluster.sql("DROP DATABASE gone")
    scene.cluster.sql("INSERT INTO item VALUES (2)", dbname="shop")
    last = scene.backup(job, "Incremental")
    scene.cluster.sql("CREATE DATABASE new")
    last = scene.backup(job, "Incremental")
    where = scene.directory / "out"
    restored = scene.director.restore(job, where).must()
    names = {path.rpartition("/")[2] for path in files_beneath(where)}
    assert {"shop.dump", "new.dump", "globals.sql"} <= names, restored.text
    # Without Accurate Bacula keeps no list of what is gone: its rule, for files of any kind.
    assert ("gone.dump" in names) == (not accurate)
    text = _archive_text(where, "shop.dump")
    assert "\n2\n" in text
    assert last.level == "I"


def _archive_text(where: Path, name: str) -> str:
    [path] = where.rglob(name)
    return server_user().run([newest_installation().program("pg_restore"), "-f", "-", path]).stdout


@MAJORS
def test_a_deleted_table_is_gone(major: int, make_scene: MakeScene) -> None:
    """A table dropped between two backups has no file in what comes back."""
    scene = make_scene(major=major)
    scene.cluster.sql("CREATE TABLE doomed AS SELECT generate_series(1, 1000) AS n")
    path = scene.cluster.value("SELECT pg_relation_filepath('doomed')")
    scene.cluster.sql("CHECKPOINT")
    job = scene.job("pitr", scene.line("pitr"))
    first = scene.backup(job, "Full")
    assert any(name.endswith(f"/{path}") for name, _, _ in scene.director.files(first.job_id))
    scene.cluster.sql("DROP TABLE doomed")
    scene.cluster.sql("CHECKPOINT")
    second = scene.backup(job, "Differential")
    gone = [name for name, _, index in scene.director.files(second.job_id) if index <= 0]
    assert any(name.endswith(f"/{path}") for name in gone), gone
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    assert not (scene.pgdata(where) / path).exists()
    scene.start(scene.pgdata(where)).wait_until_promoted()


@pytest.mark.parametrize("mode", ["pitr", "dump"])
def test_without_tls_and_compression(mode: str, make_scene: MakeScene) -> None:
    """Without TLS and without compression on the line, a Full and an Incremental restore as well."""
    scene = make_scene(transport=False)
    job = scene.job(mode, scene.line(mode))
    scene.backup(job, "Full")
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    if mode == "pitr":
        scene.assert_restored(where, mark)
    else:
        assert "ledger_entry" in _archive_text(where, "postgres.dump")
