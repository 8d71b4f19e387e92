"""WAL between base backups as jobs of mode cdp, and what comes back of it: every row that was committed."""

from __future__ import annotations

import pytest

from pgkeep.pg.lsn import Lsn
from pgkeep.spool.state import BACULA
from pgkeep.spool.taken import read_taken
from tests.bacula.cdp import CdpScene, warnings
from tests.bacula.conftest import MakeScene
from tests.lab.cluster import MakeCluster, wait_for
from tests.lab.ledger import fill
from tests.lab.receiving import SLOT
from tests.pitr_block.conftest import SUMMARIZING

pytestmark = pytest.mark.bacula


@pytest.fixture
def cdp(make_scene: MakeScene, make_cluster: MakeCluster) -> CdpScene:
    """A cluster, a job for base backups and one for the WAL."""
    return CdpScene(make_scene, make_cluster)


def test_the_server_dies_between_two_jobs(cdp: CdpScene) -> None:
    """What a receiver had when the server died comes back to the last row, from a base and two jobs, server or not."""
    with cdp.receiver():
        cdp.scene.backup(cdp.base, "Full")
        cdp.scene.transfer(10)
        cdp.wait_until_received()
        first = cdp.scene.backup(cdp.job, "Full")
        taken = read_taken(cdp.spool)
        assert taken is not None
        wait_for(lambda: cdp.shipped() == (f"{taken.lsn}", BACULA), "the receiver knows what the job has taken")
        assert {cdp.checked()[name] for name in ("server", "receiver", "shipping", "spool")} == {"OK"}
        whole = cdp.scene.cluster.switch_wal()
        cdp.scene.transfer(11)
        mark = cdp.scene.ledger.mark("end")
        quiet = cdp.scene.cluster.value("SELECT clock_timestamp()")
        cdp.scene.cluster.switch_wal()
        cdp.wait_until_received()
        wait_for(lambda: cdp.proved_at() >= quiet.timestamp(), "the receiver knows that it has all before that moment")
        cdp.scene.cluster.kill()
        second = cdp.run("Incremental")
    assert warnings(first) == []
    assert cdp.checked()["receiver"] == "FAILED"
    [warning] = warnings(second.must())
    assert warning.endswith(": what was received from it before is sent")
    partial = [name.rpartition("/")[2] for name, _, _ in cdp.scene.director.files(first.job_id) if "/wal/0" in name]
    assert partial[-1] == f"{whole}.partial"
    names = [name.rpartition("/")[2] for name, _, _ in cdp.scene.director.files(second.job_id) if "/wal/0" in name]
    assert names[0] == whole
    where = cdp.restore()
    cdp.scene.assert_restored(where, mark)
    # A moment behind the last commit is in the WAL all the same: the server wrote more of it later.
    options = {"target_time": quiet.isoformat(), "start_postgresql_after_restore": "yes"}
    cdp.scene.running(cdp.restore(options=options)).assert_is_at(mark)


def test_only_a_job_that_succeeded_empties_the_spool(cdp: CdpScene) -> None:
    """The spool keeps what a lost job had, gives away what a good one has, and a job with a hole in it fails."""
    scene = cdp.scene
    with cdp.receiver():
        base = scene.backup(cdp.base, "Full")
        scene.transfer(10)
        cdp.wait_until_received()
        scene.backup(cdp.job, "Full")
        lost = scene.backup(cdp.job, "Full")
        before = cdp.spooled()
        scene.director.console(f"delete yes jobid={lost.job_id}")
        scene.director.console(f"delete yes jobid={lost.job_id - 1}")
        whole = scene.cluster.switch_wal()
        mark = scene.ledger.mark("end")
        cdp.wait_until_received()
        again = cdp.run("Full").must()
        assert set(before) <= {*cdp.spooled(), f"{whole}.partial"}
        scene.transfer(10)
        cdp.wait_until_received()
        last = scene.backup(cdp.job, "Incremental")
        assert [line for line in last.told if line.endswith("left the spool: jobs hold them that have succeeded")]
        assert cdp.spooled()[0] >= whole
        where = cdp.restore(base.job_id, again.job_id)
        scene.assert_restored(where, mark)
        missing = scene.cluster.switch_wal()
        scene.transfer(10)
        cdp.wait_until_received()
        (cdp.spool / missing).unlink()
        failed = cdp.run("Incremental")
    assert failed.status == "f"
    assert [line for line in failed.told if f"{missing} is not there in the spool" in line], failed.text


def test_without_a_receiver(cdp: CdpScene) -> None:
    """One FileSet with both lines chains by a slot of its own, and comes back to the last commit; in place, too."""
    scene = cdp.scene
    # Of the two lines only that of mode cdp has a segment that has not ended.
    job = scene.job(
        "both", scene.line("pitr", "switch_wal=no"), scene.line("cdp", f"spool_dir={scene.directory / 'none'}")
    )
    scene.transfer(10)
    scene.backup(job, "Full")
    scene.cluster.switch_wal()
    scene.transfer(11)
    scene.backup(job, "Incremental")
    slot = "SELECT active, restart_lsn FROM pg_replication_slots WHERE slot_name = %s"
    [(active, first)] = scene.cluster.sql(slot, [SLOT])
    scene.transfer(12)
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    [(_, second)] = scene.cluster.sql(slot, [SLOT])
    assert not active
    assert Lsn.parse(first) < Lsn.parse(second)
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)
    scene.assert_nothing_is_left()
    # In place the old pg_wal goes on where the segment ends that the last job sent as far as it went.
    scene.transfer(13)
    late = scene.ledger.mark("late")
    scene.cluster.kill()
    scene.director.restore(job, "/", options={"overwrite_existing": "yes"}, line=1).must()
    restored = scene.start(scene.cluster.data_directory)
    restored.wait_until_promoted()
    restored.assert_is_at(late)


def test_a_chain_of_blocks_with_the_wal_between(make_scene: MakeScene, make_cluster: MakeCluster) -> None:
    """A moment behind a block-level Incremental that only jobs of mode cdp hold comes back, with every row."""
    cdp = CdpScene(make_scene, make_cluster, mode="pitr_block", settings=SUMMARIZING)
    scene = cdp.scene
    scene.backup(cdp.base, "Full")
    with cdp.receiver():
        scene.transfer(10)
        cdp.wait_until_received()
        scene.backup(cdp.job, "Full")
        scene.backup(cdp.base, "Incremental")
        scene.transfer(11)
        mark = scene.ledger.mark("behind it")
        scene.transfer(12)
        cdp.wait_until_received()
        scene.backup(cdp.job, "Incremental")
    scene.cluster.stop()
    where = cdp.restore(options={"target_time": mark.time.isoformat()})
    scene.assert_restored(where, mark)


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_a_job_that_ends_in_its_middle_empties_nothing(how: str, cdp: CdpScene) -> None:
    """What a stopped or cancelled job had under way stays in the spool, and the run after it sends the last row."""
    scene, director = cdp.scene, cdp.scene.director
    with cdp.receiver():
        scene.backup(cdp.base, "Full")
        first = scene.backup(cdp.job, "Full")
        with scene.cluster.connect() as connection:
            fill(connection, "big", size_mb=40)
        cdp.wait_until_received()
        before, taken = cdp.spooled(), read_taken(cdp.spool)
        job_id = _ended_in_its_middle(cdp, how)
        held = {name.rpartition("/")[2] for name, _, _ in director.files(first.job_id)}
        assert {name for name in before if not name.endswith(".partial")} - {*cdp.spooled()} <= held
        assert read_taken(cdp.spool) == taken
        mark = scene.ledger.mark("end")
        cdp.wait_until_received()
        if how == "stop":
            director.tick()
            director.console(f"restart incomplete job={cdp.job.name} jobid={job_id} yes")
            wait_for(lambda: director.status_of(job_id) != "I", "it has begun again")
            director.wait(job_id).must()
        else:
            scene.backup(cdp.job, "Incremental")
    scene.cluster.kill()
    scene.assert_restored(cdp.restore(), mark)


def _ended_in_its_middle(cdp: CdpScene, how: str) -> int:
    """Begin an Incremental, slowly, and *how* it when some of it has been written; return its number."""
    director = cdp.scene.director

    def written() -> int:
        return sum(path.stat().st_size for path in director.layout.volume_directory.iterdir())

    director.add_job(cdp.job.name, *cdp.job.plugins, more=["Maximum Bandwidth = 4 mb/s"])
    before = written()
    job_id = director.queue(cdp.job.name, "Incremental")
    wait_for(lambda: written() > before + (4 << 20), "some of it is written")
    director.console(f"{how} jobid={job_id} yes")
    wait_for(lambda: director.status_of(job_id) not in ("C", "R"), "it has ended")
    result = director.result(job_id)
    assert (result.status in ("I", "A"), " is complete: " in result.text) == (True, False), result.text
    director.add_job(cdp.job.name, *cdp.job.plugins)
    return job_id
