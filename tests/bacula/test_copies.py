"""What Bacula does with jobs afterwards: Copy, Migration, VirtualFull, and jobs that share a volume."""

from __future__ import annotations

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene
from tests.lab.cluster import wait_for
from tests.pitr_block.conftest import SUMMARIZING

pytestmark = pytest.mark.bacula


def _move(scene: Scene, kind: str, job: str) -> int:
    """Run a job of type Copy or Migrate over all jobs of *job*; return the id of the newest job there is then."""
    scene.director.add_resource(
        f"zz-{kind.lower()}",
        f"""Job {{
  Name = {kind}
  Type = {kind}
  Selection Type = Job
  Selection Pattern = "^{job}$"
  Client = lab-fd
  FileSet = Nothing
  Storage = lab-sd
  Pool = Default
  Messages = Standard
  Maximum Concurrent Jobs = 10
}}
""",
    )
    scene.director.run(kind, "Full")
    director = scene.director
    wait_for(
        lambda: not director.catalog("SELECT 1 FROM Job WHERE JobStatus IN ('C', 'R')"),
        "all jobs are over",
        timeout_seconds=90,
    )
    bad = director.catalog("SELECT JobId, Name, Type, JobStatus FROM Job WHERE JobStatus NOT IN ('T')")
    assert bad == [], [director.result(row[0]).text for row in bad]
    return director.last_job_id()


@pytest.mark.parametrize("kind", ["Copy", "Migrate"])
def test_a_chain_that_was_moved(kind: str, make_scene: MakeScene) -> None:
    """A chain comes back from the volumes to which it was migrated, or from its copies."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    full = scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("end")
    incremental = scene.backup(job, "Incremental")
    _move(scene, kind, "pitr")
    where = scene.directory / "out"
    if kind == "Copy":
        copies = scene.director.catalog("SELECT JobId FROM Job WHERE Type = 'C' ORDER BY PriorJobId")
        for path in scene.director.layout.volume_directory.iterdir():
            path.unlink()
        select = "jobid=" + ",".join(str(row[0]) for row in copies)
        assert len(copies) == 2
        result = scene.director.restore(job, where, select=select)
    else:
        for path in scene.director.layout.volume_directory.iterdir():
            path.unlink()
        result = scene.director.restore(job, where)
    result.must()
    assert full.job_id < incremental.job_id
    scene.assert_restored(where, mark)


def test_an_incremental_after_a_migration(make_scene: MakeScene) -> None:
    """The next Incremental builds on jobs that were migrated, and the whole comes back."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    _move(scene, "Migrate", "pitr")
    scene.transfer()
    mark = scene.ledger.mark("end")
    last = scene.director.run("pitr", "Incremental").must()
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    assert last.level in ("I", "F")
    scene.assert_restored(where, mark)


@pytest.mark.parametrize("accurate", [True, False], ids=["accurate", "not-accurate"])
def test_a_virtual_full(accurate: bool, make_scene: MakeScene) -> None:
    """A VirtualFull of a chain either restores the rows of its last job, or its restore is refused; never less."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"), accurate=accurate)
    scene.backup(job, "Full")
    scene.transfer()
    scene.backup(job, "Differential")
    scene.transfer()
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    virtual = scene.director.run("pitr", "VirtualFull")
    assert virtual.status == "T", virtual.text
    where = scene.directory / "out"
    result = scene.director.restore(job, where)
    if result.status == "T":
        assert result.errors == 0, result.text
        scene.assert_restored(where, mark)
    else:
        assert "pgkeep" in result.text


@pytest.mark.parametrize("level", ["Differential", "Incremental"])
def test_a_job_after_a_virtual_full(level: str, make_scene: MakeScene) -> None:
    """A Differential is made as a Full, for pgkeep has no record of the VirtualFull; an Incremental goes on."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    scene.transfer()
    scene.backup(job, "Incremental")
    virtual = scene.director.run("pitr", "VirtualFull").must()
    scene.transfer()
    mark = scene.ledger.mark("end")
    last = scene.director.run("pitr", level).must()
    if level == "Differential":
        assert f"job {virtual.unique_name}, which this Differential builds on, has no record" in last.text
        assert "making a Full instead of the Differential asked for" in last.text
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)


def _assert_it_comes_back_from_virtual_fulls(scene: Scene, *lines: str, accurate: bool) -> None:
    """Make one VirtualFull of the other and an Incremental, keep nothing but the newest of each, and restore."""
    kept = ["Backups To Keep = 1", "Delete Consolidated Jobs = yes"]
    job = scene.job("job", *lines, accurate=accurate, more=kept)
    for level in ["Full", "Incremental", "Incremental", "VirtualFull", *["Incremental", "VirtualFull"] * 2]:
        scene.transfer()
        scene.cluster.sql(f"CREATE TABLE made_{scene.director.last_job_id()} (n int PRIMARY KEY)")
        if level == "Incremental":
            mark = scene.ledger.mark(str(scene.director.last_job_id()))
        result = scene.director.run("job", level).must()
        assert "making a Full instead" not in result.text
    assert scene.director.catalog("SELECT Level FROM Job ORDER BY JobId") == [("I",), ("F",)]
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)


@pytest.mark.parametrize("mode", ["pitr", "pitr_block"])
@pytest.mark.parametrize("accurate", [True, False], ids=["accurate", "not-accurate"])
def test_a_virtual_full_of_a_virtual_full(mode: str, accurate: bool, make_scene: MakeScene) -> None:
    """What Bacula loses of the first VirtualFull's restore objects stands in those of the Incrementals."""
    scene = make_scene(settings=SUMMARIZING)
    _assert_it_comes_back_from_virtual_fulls(scene, scene.line(mode, "start_fast=yes"), accurate=accurate)


def test_virtual_fulls_with_wal_of_another_line(make_scene: MakeScene) -> None:
    """The line of mode cdp knows the base backup, too, whose restore object was lost, and gives its WAL to it."""
    scene = make_scene(settings={"max_slot_wal_keep_size": "512MB"})
    lines = scene.line("pitr", "switch_wal=no"), scene.line("cdp", f"spool_dir={scene.directory / 'none'}")
    _assert_it_comes_back_from_virtual_fulls(scene, *lines, accurate=True)


def test_jobs_that_share_a_volume(make_scene: MakeScene) -> None:
    """Jobs that were written to one volume at the same time, block by block in turn, each come back whole."""
    scene = make_scene()
    names = ("one", "two", "three")
    jobs = [scene.job(name, scene.line("pitr", f"cluster_id={name}"), more=["Storage = shared-sd"]) for name in names]
    marks = {}
    for level in ("Full", "Incremental"):
        scene.transfer()
        marks[level] = scene.ledger.mark(level)
        for job_id in [scene.director.queue(job.name, level) for job in jobs]:
            scene.director.wait(job_id).must()
    volumes = scene.director.catalog("SELECT DISTINCT MediaId FROM JobMedia")
    assert len(volumes) == 1
    for job in jobs:
        where = scene.directory / job.name
        scene.director.restore(job, where).must()
        scene.assert_restored(where, marks["Incremental"])


@pytest.mark.parametrize("level", ["VolumeToCatalog", "Data"])
def test_verify_needs_no_server(level: str, scene: Scene) -> None:
    """A Verify job reads a job back and finds it as the catalog says, with PostgreSQL stopped."""
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    scene.transfer()
    scene.backup(job, "Incremental")
    scene.cluster.stop()
    scene.director.add_resource(
        "zz-verify",
        f"""Job {{
  Name = Verify
  Type = Verify
  Level = {level}
  Verify Job = {job.name}
  Client = lab-fd
  FileSet = {job.fileset}
  Storage = lab-sd
  Pool = Default
  Messages = Standard
}}
""",
    )
    result = scene.director.run("Verify", level)
    assert result.status == "T", result.text
    assert result.files > 0
