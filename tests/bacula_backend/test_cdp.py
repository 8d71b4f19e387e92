"""Mode cdp: what each level holds, what leaves the spool, and what is said of a hole."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from pgkeep.bacula.state import confirm_job
from pgkeep.pg.lsn import Lsn
from pgkeep.spool.taken import read_taken
from tests.bacula_backend.bridge import Bridge, Ended, Job
from tests.bacula_backend.conftest import Client
from tests.bacula_backend.test_chain import record_of
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.receiving import SETTINGS, SLOT, receiving, wait_until_received
from tests.lab.server_user import server_user

_MESSAGE = "SELECT pg_logical_emit_message(true, '', 'x')"


class Chain:
    """A base backup's line and a cdp line of one client."""

    def __init__(self, make_cluster: MakeCluster, directory: Path) -> None:
        """Make a cluster with small segments."""
        self.cluster: Cluster = make_cluster(
            settings=SETTINGS | {"unix_socket_directories": str(directory)}, wal_segment_size_mb=1
        )
        self.base = Client(self.cluster, directory)
        self.spool = directory / "spool" / "default"
        self.spool.parent.mkdir()
        server_user().own(self.spool.parent)
        self.wal = Client(self.cluster, directory, f"mode=cdp spool_dir={self.spool.parent}")

    def write(self) -> str:
        """End a segment and begin another one; return the name of the first."""
        self.cluster.sql(_MESSAGE)
        name = self.cluster.switch_wal()
        self.cluster.sql(_MESSAGE)
        return name

    def received(self) -> list[str]:
        """Wait until all WAL is in the spool; return the names of its whole segments, in order."""
        wait_until_received(self.cluster)
        return sorted(path.name for path in self.spool.iterdir() if len(path.name) == 24)


@pytest.fixture
def chain(make_cluster: MakeCluster, lab_directory: Path) -> Chain:
    """A client with a line for base backups and one for WAL."""
    return Chain(make_cluster, lab_directory)


def names(job: Job) -> list[str]:
    """Return the names of the WAL files that *job* sent, in order."""
    return [name.rpartition("/")[2] for name in job.order if "/wal/" in name]


def wal(job: Job) -> tuple[str, str]:
    """Return where the WAL of *job* begins and ends."""
    assert job.status == 0, (job.said("error"), job.said("fatal"), job.stderr)
    found = record_of(job)["head"]["wal"]
    return found["start"], found["stop"]


def test_levels_chain_by_lsn_and_only_success_empties_the_spool(chain: Chain) -> None:
    """Each level begins where the job that it builds on ended, whatever a job that failed had sent."""
    with receiving(chain.cluster, chain.spool.parent):
        base = record_of(chain.base.run())["head"]
        first = chain.write()
        chain.received()
        full = chain.wal.run()
        assert wal(full)[0] <= base["start_lsn"]
        assert first in names(full)
        second = chain.write()
        before = chain.received()
        failed = chain.wal.run("I", counts=False)
        again = chain.wal.run("I")
        assert wal(failed)[0] == wal(again)[0] == wal(full)[1]
        assert second in names(failed)
        assert second in names(again)
        # The first try of the Incremental is known to have failed, the Full to have succeeded: what it has since the
        # base backup stays for another Full.
        assert [name for name in before if name >= base["wal"]["first_segment"]] == chain.received()
        crowded = "spool_max=4M"
        whole = chain.wal.run(words=crowded)
        assert first in names(whole)
        third = chain.write()
        chain.received()
        last = chain.wal.run("I", words=crowded)
        # All that the Full has is gone, which is known to have succeeded; but never the newest two.
        assert min(chain.received()) >= second
        differential = chain.wal.run("D", words=crowded)
        assert wal(last)[0] == wal(differential)[0] == wal(whole)[1]
        assert third in names(differential)


def test_a_full_that_does_not_reach_its_base_says_so(chain: Chain) -> None:
    """A Full sends what there is, and warns of what is missing between the base backup and that."""
    with receiving(chain.cluster, chain.spool.parent):
        base = record_of(chain.base.run())["head"]
        chain.write()
        lost = chain.write()
        chain.write()
        chain.received()
        (chain.spool / lost).unlink()
        full = chain.wal.run()
        [warning] = full.said("warning")
        assert warning.startswith(f"GAP: the WAL from {base['wal']['stop']} to {wal(full)[0]} is not here any more.")
        assert lost < names(full)[0]


def test_a_promotion_between_two_jobs(chain: Chain) -> None:
    """Without a spool, an Incremental goes on behind the job before it, from one timeline to the next."""
    line = replace(chain.wal, words=f"mode=cdp spool_dir={chain.spool}")
    chain.base.run()
    full = line.run()
    chain.write()
    chain.cluster.stop()
    (chain.cluster.data_directory / "standby.signal").touch()
    server_user().own(chain.cluster.data_directory / "standby.signal")
    chain.cluster.start()
    chain.cluster.promote()
    chain.write()
    incremental = line.run("I")
    assert wal(incremental)[0] == wal(full)[1]
    assert names(incremental)[0] == "00000002.history"
    assert {name[:8] for name in names(incremental)} == {"00000001", "00000002"}
    assert record_of(incremental)["head"]["timeline"] == 2


def test_a_slot_that_keeps_nothing_is_refused(chain: Chain) -> None:
    """WAL that no slot keeps between jobs would be missed when it is gone: nobody waits for that."""
    line = replace(chain.wal, words=f"mode=cdp spool_dir={chain.spool}")
    chain.base.run()
    chain.cluster.sql("SELECT pg_create_physical_replication_slot(%s)", [SLOT])
    refused = line.run()
    [error] = refused.said("error")
    assert error == (
        f'slot "{SLOT}" keeps no WAL: it was made without reserving any\n'
        f"drop it (SELECT pg_drop_replication_slot('{SLOT}')): the next backup makes one that does"
    )
    chain.cluster.sql("SELECT pg_drop_replication_slot(%s)", [SLOT])
    assert names(line.run())


def test_the_slot_keeps_what_the_job_is_about_to_read(chain: Chain) -> None:
    """A Differential begins before what a confirmed Incremental holds: until it is through, the slot does, too."""
    line = replace(chain.wal, words=f"mode=cdp spool_dir={chain.spool}")
    chain.base.run()
    full = line.run()
    chain.write()
    incremental = line.run("I")
    confirm_job(str(chain.base.directory / "state"), line.jobs[-1])
    chain.write()
    differential = line.run("D")
    assert wal(differential)[0] == wal(full)[1] < wal(incremental)[1]
    kept = chain.cluster.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = %s", [SLOT])
    assert Lsn.parse(kept) <= Lsn.parse(wal(full)[1])


def test_a_receiver_that_lags_proves_no_time(chain: Chain) -> None:
    """What comes late into the spool says nothing of the commits that were made meanwhile and did not come."""
    spool_dir = chain.spool.parent
    with receiving(chain.cluster, spool_dir):
        chain.base.run()
        chain.write()
        chain.received()
        first = chain.wal.run()
    before = chain.cluster.value("SELECT clock_timestamp()")
    for _ in range(8):
        last = chain.write()
    with receiving(chain.cluster, spool_dir, "--spool-max=4M") as lines:
        wait_for(lambda: any("the spool is full" in line for line in lines), "the receiver stops for want of room")
        chain.cluster.kill()
        second = chain.wal.run("I")
    assert last not in names(second)
    assert wal(first)[1] < wal(second)[1]
    head = record_of(second)["head"]
    assert record_of(first)["head"]["stop_time"] <= head["stop_time"] <= before.astimezone(UTC).isoformat()
    newest = max(path for path in chain.spool.iterdir() if len(path.name) == 24)
    assert newest.stat().st_mtime <= before.timestamp()


def test_a_power_loss_leaves_zeros_in_the_spool(chain: Chain) -> None:
    """What never reached the disk of the spool comes from the server; other bytes than it has are still refused."""
    with receiving(chain.cluster, chain.spool.parent):
        chain.base.run()
        chain.write()
        chain.received()
        first = chain.wal.run()
    [partial] = chain.spool.glob("0*.partial")
    whole = partial.read_bytes()
    chain.write()
    partial.write_bytes(whole[:50] + b"\xff" + whole[51:])
    [error] = chain.wal.run("I", counts=False).said("error")
    assert error.startswith(f"the server has other WAL in {partial.stem} than was received before")
    partial.write_bytes(whole[:50] + bytes(10) + whole[60:])
    second = chain.wal.run("I")
    assert wal(second)[0] == wal(first)[1]
    assert names(second)[0] == partial.stem


class Lost(Bridge):
    """A daemon that dies when it has everything but has not said so."""

    def finish(self) -> Job:
        assert self.process.stdin is not None
        self.process.stdin.close()
        raise Ended("the daemon died")


def test_the_receiver_hears_of_a_job_when_the_daemon_has_all(chain: Chain) -> None:
    """What a job had sent that was lost then still waits for one; that nobody can be told is a warning."""
    with receiving(chain.cluster, chain.spool.parent):
        chain.base.run()
        chain.received()
        full = chain.wal.run()
        taken = read_taken(chain.spool)
        assert taken is not None
        assert str(taken.lsn) == wal(full)[1]
        chain.write()
        chain.received()
        lost = chain.wal.run("I", bridge=Lost, counts=False)
        assert lost.order[-1].endswith("_manifest.json")
        assert read_taken(chain.spool) == taken
    chain.spool.chmod(0o500)
    try:
        told = chain.wal.run("I").said("warning")
    finally:
        chain.spool.chmod(0o700)
    assert told == [f"the receiver will not know that this job has its WAL: {chain.spool}: Permission denied"]


def test_a_server_that_was_put_back_is_refused(chain: Chain) -> None:
    """A copy of earlier files writes other WAL than the jobs hold: nothing is chained to that, and a Full says so."""
    line = replace(chain.wal, words=f"mode=cdp spool_dir={chain.spool}")
    data = chain.cluster.data_directory
    chain.cluster.stop()
    server_user().run(["cp", "-a", data, f"{data}.early"])
    chain.cluster.start()
    chain.write()
    chain.base.run()
    line.run()
    chain.write()
    incremental = line.run("I")
    chain.cluster.stop()
    data.rename(f"{data}.late")
    data.with_name(f"{data.name}.early").rename(data)
    chain.cluster.start()
    refused = line.run("I", counts=False)
    [error] = refused.said("error")
    assert f", less than the {wal(incremental)[1]} that jobs before this one hold: its files were put back to " in error
    full = line.run(counts=False)
    assert full.said("warning")[0].endswith(": make a new one")
    chain.base.run()
    assert wal(line.run())[1] < wal(incremental)[1]
