"""Restores into the cluster's own place, and what comes after them: audit, finish, rollback, the next backup."""

from __future__ import annotations

import shutil
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bacula.scene import run_pgkeep
from tests.lab.cluster import Cluster, free_port
from tests.lab.server_user import server_user
from tests.scenarios.conftest import DOORS, Story, open_door
from tests.scenarios.doors import Attempt, Door, ShellDoor
from tests.scenarios.test_table import PHASES

pytestmark = pytest.mark.bacula


def restore_in_place(door: Door, options: dict[str, str]) -> Attempt:
    """Stop the server and restore over it."""
    door.cluster.stop()
    return door.restore({"overwrite_existing": "yes", **options})


def audit_of(attempt: Attempt, door: Door) -> str:
    """Return what the audit file says, which is closed to others."""
    path = door.directory / "log" / f"restore-{attempt.restore_id}.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path.read_text()


def test_the_accident_is_undone_and_the_next_backup_knows(door: Door) -> None:
    """The moment before comes back in place, the audit file tells it all, and an Incremental builds on nothing lost."""
    story = Story.tell(door)
    attempt = restore_in_place(
        door, {"target_time": story.facts["last_good_time"], "start_postgresql_after_restore": "yes"}
    ).must()
    attempt.restored.guard()
    attempt.restored.assert_is_at(story.last_good)
    audit = audit_of(attempt, door)
    for phase in PHASES:
        assert f" {phase}: " in audit, audit
    assert attempt.restored.value("SELECT count(*) FROM precious") == 100
    attempt.restored.stop()
    with Cluster(door.cluster.installation, door.cluster.data_directory) as cluster:
        # Another port would be another Plugin line.
        cluster.port = door.cluster.port
        warnings = door.backup("Incremental", cluster.start())
        assert any("which is not in the history of the server's timeline 2" in line for line in warnings), warnings
        copy = door.restore(
            {
                "pgdata_dir": f"{door.directory}/copy",
                "start_postgresql_after_restore": "yes",
                "port": str(free_port()),
            }
        ).must()
        copy.restored.assert_is_at(story.last_good)


def test_rollback_brings_the_old_cluster_back(door: Door) -> None:
    """After a target that was not there, and after one that was, the cluster runs as before, with every row."""
    story = Story.tell(door)
    attempt = restore_in_place(door, {"target_name": "never made"})
    assert not attempt.is_ok
    assert attempt.refusal.startswith('restore point "never made" is not in the WAL held'), attempt.refusal
    if not (door.cluster.data_directory / "PG_VERSION").exists() or "RESTORE PHASE 1/6" in "".join(attempt.lines):
        rolled_back = door.after("rollback", attempt)
        assert rolled_back.status == 0, rolled_back.lines
    door.cluster.start()
    attempt.restored.assert_is_at(story.end)
    attempt = restore_in_place(door, {"target_time": story.facts["last_good_time"]}).must()
    rolled_back = door.after("rollback", attempt)
    assert rolled_back.status == 0, rolled_back.lines
    door.cluster.start()
    attempt.restored.assert_is_at(story.end)
    assert [path.name for path in door.directory.glob("data*") if path.is_dir()] == ["data"]


@pytest.mark.pg("!=15, !=17")
@pytest.mark.parametrize("name", DOORS)
def test_a_tablespace_made_since_the_backup(major: int, name: str) -> None:
    """A copy beside the live server is refused when its replay would write there, and before that it is not."""
    with ExitStack() as stack:
        door = open_door(name, stack, major=major)
        door.backup("Full")
        mark = door.ledger.mark("before the tablespace")
        place = Path(door.directory / "late")
        place.mkdir()
        server_user().own(place)
        door.cluster.sql(f"CREATE TABLESPACE late LOCATION '{place}'")
        door.cluster.sql("CREATE TABLE in_late TABLESPACE late AS SELECT generate_series(1, 3000) AS n")
        door.cluster.sql("CHECKPOINT")
        door.backup("Incremental")
        options = {"pgdata_dir": f"{door.directory}/copy", "start_postgresql_after_restore": "yes"}
        options["port"] = str(free_port())
        attempt = door.restore(options)
        assert not attempt.is_ok
        assert "the replay would make tablespace " in attempt.refusal, attempt.refusal
        assert f" in {place}, which exists on this host" in attempt.refusal, attempt.refusal
        assert attempt.restored.postmaster() == []
        early = door.restore(options | {"pgdata_dir": f"{door.directory}/early", "target_lsn": mark.lsn}).must()
        early.restored.assert_is_at(mark)
        assert door.cluster.value("SELECT sum(n) FROM in_late") == 3000 * 3001 // 2


def test_the_last_minutes_by_hand(door: Door) -> None:
    """A moment that only the old pg_wal has is reached in a copy, as the cookbook says: pushed, or laid into pg_wal."""
    door.backup("Full")
    door.ledger.transfer(5)
    door.backup("Incremental")
    door.ledger.transfer(5)
    late = door.ledger.mark("late")
    door.cluster.stop()
    old_wal = door.cluster.data_directory / "pg_wal"
    names = sorted(path.name for path in old_wal.iterdir() if len(path.name) == 24)
    copy = {"pgdata_dir": f"{door.directory}/copy", "port": str(free_port())}
    if isinstance(door, ShellDoor):
        for name in names:
            push = [f"--vault={door.directory}/vault", "--cluster=main", str(old_wal / name)]
            assert run_pgkeep("archive-push", *push).status == 0
        attempt = door.restore(copy | {"target_lsn": late.lsn, "start_postgresql_after_restore": "yes"}).must()
    else:
        attempt = door.restore(copy).must()
        restored = attempt.restored.data_directory
        for name in names:
            shutil.copy(old_wal / name, restored / "pg_wal")
            server_user().own(restored / "pg_wal" / name)
        with (restored / "postgresql.auto.conf").open("a") as file:
            file.write(f"recovery_target_lsn = '{late.lsn}'\n")
        attempt.restored.start()
        attempt.restored.wait_until_promoted()
    attempt.restored.assert_is_at(late)
