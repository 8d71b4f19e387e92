"""Chains of which the catalog has lost a part, or that changed on their way: restored whole, or refused; never less."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene, forget_files
from tests.lab.bacula import JobResult
from tests.lab.server_user import server_user
from tests.pitr_block.conftest import SUMMARIZING

pytestmark = pytest.mark.bacula


def _restore_whole_jobs(scene: Scene, where: Path, *jobs: JobResult) -> JobResult:
    chosen = ",".join(str(job.job_id) for job in jobs)
    return scene.director.restore("pitr", where, select=f"jobid={chosen}")


def test_a_tablespace_that_was_dropped(make_scene: MakeScene) -> None:
    """Without Accurate its files still come, and are passed over; also when the catalog has no file of the jobs."""
    scene = make_scene()
    place = scene.directory / "place"
    place.mkdir()
    server_user().own(place)
    scene.cluster.sql(f"CREATE TABLESPACE old LOCATION '{place}'")
    scene.cluster.sql("CREATE TABLE aside TABLESPACE old AS SELECT 1 AS n")
    job = scene.job("pitr", scene.line("pitr"), accurate=False)
    full = scene.backup(job, "Full")
    scene.cluster.sql("DROP TABLE aside")
    scene.cluster.sql("DROP TABLESPACE old")
    differential = scene.backup(job, "Differential")
    scene.transfer()
    mark = scene.ledger.mark("end")
    incremental = scene.backup(job, "Incremental")
    out, again = scene.directory / "out", scene.directory / "again"
    scene.director.restore(job, out).must()
    scene.assert_restored(out, mark)
    assert not (scene.pgdata(out).parent / "tblspc").exists()
    forget_files(scene)
    result = _restore_whole_jobs(scene, again, full, differential, incremental)
    assert result.status == "T", result.text
    scene.assert_restored(again, mark)


def test_an_incremental_that_is_gone(make_scene: MakeScene) -> None:
    """WAL beyond a hole is not passed over in silence: what would end before it is refused."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    full = scene.backup(job, "Full")
    scene.cluster.switch_wal()
    scene.transfer()
    scene.cluster.switch_wal()
    lost = scene.backup(job, "Incremental")
    scene.transfer()
    scene.backup(job, "Incremental")
    scene.director.console(f"delete jobid={lost.job_id} yes")
    out, less = scene.directory / "out", scene.directory / "less"
    result = scene.director.restore(job, out)
    assert result.status != "T", result.text
    assert "later WAL is there" in result.text
    assert not out.exists()
    _restore_whole_jobs(scene, less, full).must()
    scene.start(scene.pgdata(less)).wait_until_promoted()


def test_a_changed_line(make_scene: MakeScene) -> None:
    """A Plugin line that was changed under Ignore FileSet Changes makes a Full: two lines' files are two restores."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    job = scene.job("pitr", scene.line("pitr", "verify_checksum=no"))
    changed = scene.director.run("pitr", "Incremental").must()
    assert any("was made with another Plugin line" in line for line in changed.told)
    scene.transfer()
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)


def test_a_moment_between_two_chains(make_scene: MakeScene) -> None:
    """With the older chain and the WAL of the Differential after it the manual's recipe reaches what lies between."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    full = scene.backup(job, "Full")
    incremental = scene.backup(job, "Incremental")
    scene.transfer()
    mark = scene.ledger.mark("between")
    scene.transfer()
    differential = scene.backup(job, "Differential")
    out, more = scene.directory / "out", scene.directory / "more"
    _restore_whole_jobs(scene, out, full, incremental).must()
    scene.director.restore(job, more, select=f"jobid={differential.job_id}", mark=["/@postgresql/pitr/wal"])
    pgdata = scene.pgdata(out)
    for segment in (more / "@postgresql/pitr/wal").iterdir():
        shutil.copy(segment, pgdata / "pg_wal")
    with (pgdata / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"\nrecovery_target_lsn = '{mark.lsn}'\n")
    server_user().own(pgdata)
    scene.assert_restored(out, mark)


def test_another_host_has_another_configuration(make_scene: MakeScene) -> None:
    """A cluster_id that stood in the configuration of the lost host is not needed to restore what it names."""
    scene = make_scene(config={"cluster_id": "lost"})
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    config = scene.director.directory / "pgkeep.conf"
    config.write_text(config.read_text().replace("cluster_id = lost\n", ""))
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)


@pytest.mark.parametrize("mode", ["pitr", "pitr_block"])
def test_a_chain_that_lost_some_of_its_names(mode: str, make_scene: MakeScene) -> None:
    """When the Full's names are gone from the catalog, and the Incremental's are not, it is said what helps."""
    scene = make_scene(settings=SUMMARIZING)
    job = scene.job("job", scene.line(mode, "" if mode == "pitr" else "start_fast=yes"))
    full = scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("end")
    incremental = scene.backup(job, "Incremental")
    scene.director.console(f"purge files jobid={full.job_id}")
    chosen = f"jobid={full.job_id},{incremental.job_id}"
    refused = scene.director.restore(job, "/", select=chosen)
    assert refused.status == "E", refused.text
    assert "purge those of the whole chain: purge files jobid=" in refused.text
    scene.director.console(f"purge files jobid={incremental.job_id}")
    where = scene.directory / "out"
    scene.director.restore(job, where, select=chosen).must()
    scene.assert_restored(where, mark)
