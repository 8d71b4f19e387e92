"""pgkeep killed with SIGKILL: at every step of a backup, in the middle of a step, and in a restore."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest

from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger, fill
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, environment
from tests.survive.job import Job, assert_server_is_left_alone, backup_ids, leftovers

LOCAL_POINTS = [
    (1, "open", "backup.lock"),
    (1, "open", "/writing "),
    (1, "open", "/volume-01"),
    (1, "open", "/base/"),
    (400, "open", "/base/"),
    (1, "open", "/global/pg_control"),
    (1, "open", r"/pg_wal/\w{24} "),
    (1, "os.link", r"\w{24}\.zst"),
    (1, "os.link", "RESTORE.md"),
    (1, "os.link", "manifest.json.zst"),
]
STREAM_POINTS = [
    (1, "open", "/volume-00"),
    (1, "os.link", r"\w{24}\.zst"),
    (1, "os.link", "RESTORE.md"),
    (1, "os.link", "manifest.json.zst"),
]
"""Each is the moment before something happens: the first file is opened, the recipe gets its name."""


def die(keeper: Keeper, level: str, transport: str, point: tuple[int, str, str]) -> None:
    """Make a backup that ends at *point*."""
    with Job(keeper, "backup", *keeper.backup_options(level, transport), at=("KILL", *point)) as job:
        outcome = job.end()
    assert outcome.status == -signal.SIGKILL, f"{point} was not reached\n" + "\n".join(outcome.lines)


@pytest.mark.parametrize(
    ("transport", "points"), [("local", LOCAL_POINTS), ("stream", STREAM_POINTS)], ids=["local", "stream"]
)
def test_no_step_of_a_backup_leaves_half_of_one(
    make_keeper: MakeKeeper, transport: str, points: Sequence[tuple[int, str, str]]
) -> None:
    """Killed before any of its steps, a backup is not listed, holds nothing at the server, and hinders no other."""
    # Nobody archives: the WAL since the first backup must not go with the checkpoints of those that are killed.
    keeper = make_keeper(major=18, settings={"wal_keep_size": "1GB"})
    ledger = Ledger(keeper.cluster)
    ledger.transfer(50)
    held = [keeper.backup("full", transport).report["backup_id"]]
    for point in points:
        ledger.transfer(10)
        die(keeper, "full", transport, point)
        assert_server_is_left_alone(keeper.cluster)
    found = leftovers(keeper)
    assert backup_ids(keeper) == held
    assert 0 < len(found) < len(points) + 1
    removed = keeper.must("expire", "--json").report
    assert [entry["backup_id"] for entry in removed["leftovers"]] == found
    assert removed["removed"] == []
    assert sorted(os.listdir(keeper.vault / keeper.name / "backups")) == held
    ledger.transfer(10)
    outcome = keeper.backup("differential", transport)
    assert outcome.warnings == []
    held.append(outcome.report["backup_id"])
    assert backup_ids(keeper) == held
    assert keeper.must("verify", "--json").report["is_clean"]
    mark = ledger.mark("end")
    keeper.backup("incremental", transport)
    keeper.restore().assert_is_at(mark)


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_killed_right_after_the_commit_it_is_a_backup(keeper: Keeper, transport: str) -> None:
    """The record's name is the commit: killed in the moment after, the backup is there, whole, and can be restored."""
    ledger = Ledger(keeper.cluster)
    ledger.transfer(20)
    mark = ledger.mark("before")
    die(keeper, "full", transport, (1, "os.remove", "/writing "))
    assert_server_is_left_alone(keeper.cluster)
    [_] = backup_ids(keeper)
    assert leftovers(keeper) == []
    assert keeper.must("verify", "--json").report["is_clean"]
    keeper.restore().assert_is_at(mark)


@pytest.mark.parametrize(("server", "transport"), [(15, "local"), (18, "stream")])
def test_killed_at_any_moment(server: int, make_keeper: MakeKeeper, transport: str) -> None:
    """Killed while a volume grows, or as soon as it logs a line, nothing of it is listed and nothing stays behind."""
    keeper = make_keeper(major=server)
    ledger = Ledger(keeper.cluster)
    with keeper.cluster.connect() as connection:
        fill(connection, "ballast", size_mb=60)
    # The one says what it called, the other what it received.
    walked, stopped = (
        ("PGDATA walk", "pg_backup_stop") if transport == "local" else ("base backup received", "backup stop")
    )
    with ledger.load() as load:
        for size in (1, 2 << 20):
            with Job(keeper, "backup", *keeper.backup_options("full", transport)) as job:
                wait_for_volumes(keeper, job, size)
            assert job.end().status == -signal.SIGKILL
            assert_server_is_left_alone(keeper.cluster)
            assert backup_ids(keeper) == []
            keeper.must("expire")
        for line in ("starting pitr", walked, stopped):
            with Job(keeper, "backup", *keeper.backup_options("full", transport)) as job:
                job.wait_for_line(line)
            assert_server_is_left_alone(keeper.cluster)
            if job.end().status == -signal.SIGKILL:
                assert backup_ids(keeper) == []
        load.wait_for(5)
    # One that was killed at its last line may have been through.
    there = sorted(os.listdir(keeper.vault / keeper.name / "backups"))
    assert there == sorted(leftovers(keeper) + backup_ids(keeper))
    mark = ledger.mark("end")
    keeper.backup("full", transport)
    keeper.must("expire")
    assert leftovers(keeper) == []
    keeper.restore().assert_is_at(mark)


def wait_for_volumes(keeper: Keeper, job: Job, size: int) -> None:
    """Wait until the volumes of *job* have *size* bytes."""
    wait_for(lambda: volume_bytes(keeper) >= size or not job.is_running, f"volumes have {size} bytes")
    assert job.is_running, "\n".join(job.lines)


def volume_bytes(keeper: Keeper) -> int:
    """Return how many bytes the volumes of backups have, finished or not."""
    return sum(path.stat().st_size for path in (keeper.vault / keeper.name / "backups").glob("*/volume-*"))


def test_a_restore_that_is_killed_can_be_repeated(keeper: Keeper) -> None:
    """Killed before it was complete, a restore leaves what no server starts on; the same call then works."""
    mark = Ledger(keeper.cluster).mark("before")
    keeper.backup("full", "local")
    installation = keeper.cluster.installation
    target = keeper.directory / "target"
    arguments = [f"--bin-dir={installation.bin_dir}", f"--pgdata-dir={target}"]
    for point in (("KILL", 1, "open", "/volume-"), ("KILL", 1, "os.rename", "global/pg_control")):
        with Job(keeper, "restore", *arguments, at=point) as job:
            assert job.end().status == -signal.SIGKILL, job.lines
        assert (target / "pgkeep.restoring").exists()
        command = [installation.program("postgres"), "-D", target]
        started = server_user().run(command, env=environment(), check=False)
        assert started.returncode != 0
        assert "pg_control" in started.stdout or "postgresql.conf" in started.stdout or "PG_VERSION" in started.stdout
    keeper.restore(to="target").assert_is_at(mark)


def test_a_restore_that_is_ended_stops_its_server(make_keeper: MakeKeeper) -> None:
    """SIGTERM in the middle of the replay stops the server that was started, so that the restore can be repeated."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("end")
    keeper.wait_until_archived()
    target = keeper.directory / "target"
    arguments = [f"--bin-dir={keeper.cluster.installation.bin_dir}", f"--pgdata-dir={target}", "--start"]
    with Job(
        keeper, "restore", *arguments, f"--target-lsn={mark.lsn}", at=("STOP", 1, "subprocess.Popen", "postgres")
    ) as job:
        job.wait_until_stopped()
        job.send(signal.SIGTERM)
        outcome = job.go_on()
    assert (outcome.status, outcome.lines[-1]) == (128 + signal.SIGTERM, "interrupted by SIGTERM")
    assert not (target / "postmaster.pid").exists()
    keeper.restore(f"--target-lsn={mark.lsn}", "--overwrite-existing", to="target").assert_is_at(mark)
