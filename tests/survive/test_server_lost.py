"""The server dies or cannot be reached any more while it is backed up."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.lab.cluster import Cluster, wait_for
from tests.lab.ledger import Ledger, fill
from tests.lab.proxy import Proxy
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.survive.job import Job, assert_server_is_left_alone, backup_ids
from tests.survive.test_killed import wait_for_volumes


def assert_nothing_is_kept(keeper: Keeper) -> None:
    """Assert that the vault lists no backup and holds nothing of one."""
    assert backup_ids(keeper) == []
    assert os.listdir(keeper.vault / keeper.name / "backups") == []


def add_ballast(cluster: Cluster) -> None:
    """Make the cluster large enough that a backup can be caught in the middle."""
    with cluster.connect() as connection:
        fill(connection, "ballast", size_mb=60)


@pytest.mark.parametrize(
    ("server", "transport", "end"),
    [
        (15, "local", lambda cluster: cluster.kill()),
        (18, "stream", lambda cluster: cluster.kill()),
        (18, "local", lambda cluster: cluster.stop("immediate")),
        (15, "stream", lambda cluster: cluster.stop("immediate")),
    ],
    ids=["local-kill", "stream-kill", "local-immediate", "stream-immediate"],
)
def test_a_dying_server_ends_the_backup(
    make_keeper: MakeKeeper, server: int, transport: str, end: Callable[[Cluster], None]
) -> None:
    """A server that dies in the middle of the files ends the job with its place in the message; the next one works."""
    keeper = make_keeper(major=server)
    ledger = Ledger(keeper.cluster)
    ledger.transfer(20)
    add_ballast(keeper.cluster)
    with Job(keeper, "backup", *keeper.backup_options("full", transport)) as job:
        wait_for_volumes(keeper, job, 1)
        end(keeper.cluster)
        outcome = job.end()
    assert outcome.status == 4, "\n".join(outcome.lines)
    where = f"PostgreSQL at {keeper.cluster.socket_directory}:{keeper.cluster.port} as postgres"
    assert where in outcome.refusal[0]
    assert "closed" in outcome.refusal[0] or "terminat" in outcome.refusal[0] or "lost" in outcome.refusal[0]
    assert_nothing_is_kept(keeper)
    keeper.cluster.start()
    mark = ledger.mark("after the crash")
    keeper.backup("full", transport)
    keeper.restore().assert_is_at(mark)


@pytest.fixture
def far_keeper(make_keeper: MakeKeeper) -> Iterator[tuple[Keeper, Proxy, list[str]]]:
    """A cluster, a proxy in front of it, and the options of a backup through that."""
    keeper = make_keeper()
    add_ballast(keeper.cluster)
    with Proxy(("127.0.0.1", keeper.cluster.port)) as proxy:
        options = keeper.backup_options("full", "stream")
        options = [word for word in options if not word.startswith(("--host=", "--port="))]
        yield keeper, proxy, [*options, "--host=127.0.0.1", f"--port={proxy.port}"]


def test_a_cut_connection_ends_the_backup(far_keeper: tuple[Keeper, Proxy, list[str]]) -> None:
    """Cut in the middle of the files, or of the WAL, a backup ends with an error, and leaves nothing anywhere."""
    keeper, proxy, options = far_keeper
    ledger = Ledger(keeper.cluster)
    # The files are 86 MiB and their headers; what follows is a WAL segment of 16 MiB.
    for megabytes, is_in_wal in ((30, False), (80, False), (95, True)):
        ledger.transfer(50)
        proxy.cut_after(megabytes << 20)
        with Job(keeper, "backup", *options) as job:
            outcome = job.end()
        assert outcome.status == 4, "\n".join(outcome.lines)
        assert any(line.startswith("backup stop") for line in outcome.lines) == is_in_wal
        assert f"PostgreSQL at 127.0.0.1:{proxy.port} as postgres" in outcome.refusal[0]
        assert_nothing_is_kept(keeper)
        assert_server_is_left_alone(keeper.cluster)
    mark = ledger.mark("end")
    keeper.must("backup", *options)
    keeper.restore().assert_is_at(mark)


def test_a_stalled_connection_can_be_waited_for(far_keeper: tuple[Keeper, Proxy, list[str]]) -> None:
    """A network that is silent for a while harms nothing; a job that waits for it can be ended, and leaves nothing."""
    keeper, proxy, options = far_keeper
    mark = Ledger(keeper.cluster).mark("before")
    for number in (signal.SIGINT, signal.SIGTERM):
        with Job(keeper, "backup", *options) as job:
            stall_in_the_middle(proxy, job)
            job.send(number)
            outcome = job.end()
            proxy.resume()
        assert (outcome.status, outcome.lines[-1]) == (128 + number, f"interrupted by {number.name}")
        assert_nothing_is_kept(keeper)
        assert_server_is_left_alone(keeper.cluster)
    with Job(keeper, "backup", *options) as job:
        stall_in_the_middle(proxy, job)
        proxy.resume()
        assert job.end().status == 0
    keeper.restore().assert_is_at(mark)


def stall_in_the_middle(proxy: Proxy, job: Job) -> None:
    """Stop the flow of bytes to *job* while it receives files."""
    passed = proxy.bytes_to_client
    wait_for(lambda: proxy.bytes_to_client > passed + (4 << 20) or not job.is_running, "files arrive")
    proxy.stall()
    assert job.is_running
    assert not any(line.startswith("base backup received") for line in job.lines)
