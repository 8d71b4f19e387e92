"""The lab's clusters: start, stop, die, replicate."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

from tests.lab.cluster import Cluster, MakeCluster, ServerDied, _is_alive, wait_for
from tests.lab.server_user import server_directory
from tests.lab.servers import installation


def test_answers_on_socket_and_tcp(shared_cluster: Cluster) -> None:
    """A cluster answers on its Unix socket and on loopback, and is of the major that was asked for."""
    for tcp in (False, True):
        with psycopg.connect(shared_cluster.conninfo(tcp=tcp)) as connection:
            assert connection.info.server_version // 10000 == shared_cluster.major


def test_keeps_rows_over_a_kill(cluster: Cluster) -> None:
    """Committed rows survive kill -9 of the whole server."""
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    children = cluster.sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    cluster.kill()
    assert not cluster.is_running
    assert not any(_is_alive(pid) for (pid,) in children)
    cluster.start()
    assert cluster.value("SELECT sum(n) FROM t") == 500500


def test_options_of_creation(make_cluster: MakeCluster, major: int) -> None:
    """Checksums, WAL segment size and settings are as asked for."""
    cluster = make_cluster(data_checksums=False, wal_segment_size_mb=1, settings={"work_mem": "1MB", "jit": ""})
    names = ("data_checksums", "wal_segment_size", "work_mem", "wal_level")
    assert [cluster.value(f"SELECT current_setting('{name}')") for name in names] == ["off", "1MB", "1MB", "replica"]


def test_every_cluster_has_an_identity_of_its_own(make_cluster: MakeCluster, major: int) -> None:
    """The server, its control file and its WAL agree on it, over a crash too."""
    clusters = [make_cluster("one"), make_cluster("two")]
    identifiers = [cluster.value("SELECT system_identifier FROM pg_control_system()") for cluster in clusters]
    assert identifiers[0] != identifiers[1]
    for cluster, identifier in zip(clusters, identifiers, strict=True):
        cluster.kill()
        cluster.start()
        assert cluster.value("SELECT system_identifier FROM pg_control_system()") == identifier
        assert "WAL file is from different database system" not in cluster.log_text()


def test_standby_follows_and_is_promoted(cluster: Cluster, lab_directory: Path) -> None:
    """A standby replays what the primary wrote, and becomes a primary of timeline 2."""
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10) AS n")
    with cluster.create_standby(lab_directory / "standby") as standby:
        standby.start()
        cluster.sql("INSERT INTO t VALUES (11)")
        standby.wait_for_replay(cluster.current_lsn())
        assert standby.value("SELECT count(*) FROM t") == 11
        cluster.switch_wal()
        assert cluster.current_lsn().endswith("000000")
        standby.promote()
        standby.sql("CHECKPOINT")
        assert standby.value("SELECT timeline_id FROM pg_control_checkpoint()") == 2


def test_archives_into_a_directory(make_cluster: MakeCluster, major: int, lab_directory: Path) -> None:
    """A completed WAL segment appears in the archive directory."""
    cluster = make_cluster(start=False)
    cluster.archive_to(lab_directory / "archive")
    cluster.start()
    cluster.sql("CREATE TABLE t (n int)")
    name = cluster.switch_wal()
    wait_for((lab_directory / "archive" / name).exists, "the segment is archived")


def test_a_start_that_fails_shows_the_log(make_cluster: MakeCluster) -> None:
    """The error of a server that cannot start ends with what the server said."""
    cluster = make_cluster(start=False, settings={"shared_buffers": "nonsense"})
    with pytest.raises(ServerDied, match='invalid value for parameter "shared_buffers": "nonsense"'):
        cluster.start()


def test_a_taken_port_is_replaced(make_cluster: MakeCluster) -> None:
    """A server that finds its port taken starts on another one."""
    first = make_cluster("first")
    second = make_cluster("second", start=False)
    second.port = first.port
    second.start()
    assert second.port != first.port


def test_servers_die_with_the_test_runner() -> None:
    """A server ends when the process that started it is killed with SIGKILL."""
    program = """
        import sys, pathlib
        from tests.lab.cluster import Cluster
        from tests.lab.servers import installation
        cluster = Cluster.create(installation(18), pathlib.Path(sys.argv[1]) / "data").start()
        print(cluster.pid, flush=True)
        sys.stdin.read()
    """
    with server_directory() as directory:
        runner = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), directory],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": "."},
        )
        with runner:
            assert runner.stdout is not None
            pid = int(runner.stdout.readline())
            assert _is_alive(pid)
            runner.kill()
        wait_for(lambda: not _is_alive(pid), "the server ended after its runner")


@pytest.mark.parametrize("how", ["left running", "killed"])
def test_servers_leave_no_shared_memory(how: str) -> None:
    """The kernel has few segments, and counts those of servers that nobody stopped."""
    with server_directory() as directory, Cluster.create(installation(18), directory / "data") as cluster:
        cluster.start()
        segment = (cluster.data_directory / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in _shared_memory()
        # The dynamic kind goes with the directory.
        assert list((cluster.data_directory / "pg_dynshmem").iterdir())
        if how == "killed":
            cluster.kill()
            assert segment in _shared_memory()
    assert segment not in _shared_memory()


def _shared_memory() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}
