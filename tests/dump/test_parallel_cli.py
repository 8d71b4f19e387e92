"""Parallel dumps as their users make them: the program itself, a vault, and a kill in the middle."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.dump.sample import digests
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.ledger import fill
from tests.lab.server_user import server_user
from tests.restore.keeper import TIMEOUT_SECONDS, Keeper, environment
from tests.survive.job import Job
from tests.survive.peak import peak_mib

pytestmark = pytest.mark.pg(">=18")
_WORKERS = 2
_JOBS = 2
_CHUNK_MIB = 32
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE %' AND wait_event_type = 'Lock'"
_TEMPORARY = "SELECT count(*) FROM pg_database WHERE datname LIKE 'pgkeep\\_restore\\_%'"


@pytest.fixture
def keeper(lab_directory: Path, make_cluster: MakeCluster, major: int, request: pytest.FixtureRequest) -> Keeper:
    """A vault, and a cluster with a database of so many MB, most of it one table."""
    cluster = make_cluster("main")
    cluster.sql("CREATE DATABASE shop")
    with cluster.connect("shop") as connection:
        fill(connection, "big", size_mb=request.param)
        connection.execute("CREATE TABLE small AS SELECT generate_series(1, 1000) AS n")
    made = Keeper(lab_directory, cluster)
    made.init()
    return made


def options(keeper: Keeper) -> list[str]:
    """Return the options of a backup."""
    return [
        *("--mode=parallel_dump", f"--parallel-tables={_WORKERS}", "--large-table-threshold=50M", "--database=shop"),
        *keeper.server_options(),
        f"--bin-dir={keeper.cluster.installation.bin_dir}",
    ]


def restore_options(keeper: Keeper) -> list[str]:
    """Return the options of a restore beside the original."""
    return [
        *("--target-database=shop", "--new-database=copy", f"--jobs={_JOBS}", f"--tmpdir={keeper.directory}/tmp"),
        *keeper.server_options(),
        f"--bin-dir={keeper.cluster.installation.bin_dir}",
    ]


@pytest.mark.parametrize("keeper", [200], indirect=True)
def test_plan_backup_and_restore_in_bounded_memory(keeper: Keeper) -> None:
    """--plan says what is divided; the backup stays within its memory; what comes back is what was there."""
    plan = keeper.must("backup", *options(keeper), "--plan").stdout.splitlines()
    assert plan[0] == "2 workers, 1 databases, 1 of them at once"
    assert "public.big" in plan[1]
    assert plan[1].endswith("ranges, by ctid")
    assert plan[2:] == ['database "shop": the rest by pg_dump']
    assert keeper.info()["backups"] == []
    # Two workers and one more, each a chunk; the vault's own buffers and the interpreter are in the rest.
    assert peak_mib(keeper, "backup", *options(keeper), "--compress=none") < (_WORKERS + 1) * _CHUNK_MIB + 100
    assert peak_mib(keeper, "restore", *restore_options(keeper)) < (_JOBS + 1) * _CHUNK_MIB + 100
    assert digests(keeper.cluster, "copy") == digests(keeper.cluster, "shop")
    files = keeper.directory / "files"
    keeper.must("restore", "--restore-mode=parallel_dump", f"--output-dir={files}")
    assert (files / "shop.parts" / "restore.sh").is_file()


@pytest.mark.parametrize("keeper", [1], indirect=True)
def test_rows_larger_than_a_chunk_are_held_one_at_a_time(keeper: Keeper) -> None:
    """Four workers that meet such rows at once, and a restore by four, stay within what is promised for one of them."""
    workers, row_mib = 4, 40
    with keeper.cluster.connect("shop") as connection:
        for number in range(workers):
            connection.execute(f"CREATE TABLE wide_{number} (body text)".encode())
            connection.execute(f"ALTER TABLE wide_{number} ALTER body SET STORAGE EXTERNAL".encode())
            # What is repeated is longer than the window of zstd, so that hardly anything is gained by compressing.
            connection.execute(
                f"INSERT INTO wide_{number} SELECT repeat(t, {row_mib}) FROM generate_series(1, 2),"
                " (SELECT string_agg(md5(g::text), '') AS t FROM generate_series(1, 32768) AS g) AS unlike".encode()
            )
    more = (f"--parallel-tables={workers}", "--compress=zstd")
    limit_mib = (workers + 1) * _CHUNK_MIB + 3 * row_mib + 100
    assert peak_mib(keeper, "backup", *options(keeper), *more) < limit_mib
    assert peak_mib(keeper, "restore", *restore_options(keeper), f"--jobs={workers}") < limit_mib


@pytest.mark.parametrize("keeper", [80], indirect=True)
def test_a_killed_restore_is_marked_and_can_be_run_again(keeper: Keeper) -> None:
    """Kill -9 leaves a database whose name says what it is, none that looks whole; the next restore says so."""
    cluster = keeper.cluster
    keeper.must("backup", *options(keeper))
    command = [*keeper.program, "restore", "main", f"--vault={keeper.vault}", *restore_options(keeper)]
    restoring = _start(command)
    wait_for(lambda: _has_rows(cluster), "rows of a chunk are in")
    restoring.send_signal(signal.SIGKILL)
    restoring.wait()
    assert cluster.value("SELECT count(*) FROM pg_database WHERE datname = 'copy'") == 0
    assert cluster.value(_TEMPORARY) == 1
    again = keeper.must("restore", *restore_options(keeper))
    assert any("is left from one that was killed: drop it then" in warning for warning in again.warnings)
    assert digests(cluster, "copy") == digests(cluster, "shop")
    assert cluster.value(_TEMPORARY) == 1


@pytest.mark.parametrize("keeper", [20], indirect=True)
def test_a_killed_restore_of_a_table_leaves_no_table(keeper: Keeper) -> None:
    """Killed when all of a table is in but one foreign key, it leaves a marked database and nothing of the table."""
    cluster = keeper.cluster
    with cluster.connect("shop") as connection:
        connection.execute("ALTER TABLE small ADD PRIMARY KEY (n)")
        connection.execute("CREATE TABLE chosen AS SELECT * FROM big")
        connection.execute("ALTER TABLE chosen ADD small int DEFAULT 1 REFERENCES small")
        before = digests(cluster, "shop")
        keeper.must("backup", *options(keeper))
        connection.execute("DROP TABLE chosen")
        arguments = [*restore_options(keeper)[2:], "--target-database=shop", "--target-table=chosen"]
        with connection.transaction():
            connection.execute("LOCK TABLE small")
            with Job(keeper, "restore", *arguments) as job:
                wait_for(
                    lambda: bool(cluster.value(_WAITING)), "the foreign key waits", timeout_seconds=TIMEOUT_SECONDS
                )
                job.kill()
    wait_for(lambda: not cluster.value(_WAITING), "its session has ended")
    assert cluster.value(_TEMPORARY) == 1
    assert digests(cluster, "shop") == {name: value for name, value in before.items() if name != "public.chosen"}
    again = keeper.must("restore", *arguments)
    assert any("is left from one that was killed: drop it then" in warning for warning in again.warnings)
    assert digests(cluster, "shop") == before
    refused = keeper.run("restore", *arguments)
    assert refused.refusal[0] == 'error: database "shop" has "public"."chosen" already'


def _has_rows(cluster: Cluster) -> bool:
    found = cluster.sql(_TEMPORARY.replace("count(*)", "datname"))
    if not found:
        return False
    return bool(cluster.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY %FROM STDIN%'"))


def _start(command: list[str | Path]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(word) for word in command],
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **server_user().popen_arguments(),
    )
