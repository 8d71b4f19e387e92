"""Moments that only the old pg_wal holds: what the server wrote since the last segment was archived."""

from __future__ import annotations

from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored


def restore_in_place(keeper: Keeper, *arguments: str, status: int = 0) -> Restored:
    """Restore over the cluster."""
    return keeper.restore("--overwrite-existing", *arguments, to=keeper.cluster.data_directory.name, status=status)


def test_the_moment_that_only_the_old_pg_wal_holds(major: int, make_keeper: MakeKeeper) -> None:
    """Crashed before its archiver had any of it, the server's own WAL leads to the second before the accident."""
    keeper = make_keeper(archive="vault", major=major)
    cluster = keeper.cluster
    ledger = Ledger(cluster)
    keeper.backup("full", "local")
    ledger.transfer(5)
    keeper.wait_until_archived()
    cluster.configure({"archive_command": "false"})
    cluster.reload()
    for _ in range(2):
        ledger.transfer(20)
        cluster.switch_wal()
    mark = ledger.mark("before the accident")
    ledger.transfer(5)
    cluster.sql("DROP TABLE ledger_entry")
    cluster.kill()
    target = f"--target-time={mark.time.isoformat()}"
    status, refusal = keeper.refuse(f"--pgdata-dir={keeper.directory}/copy", target)
    assert status == 8
    assert "is beyond the WAL held" in refusal[0]
    plan = keeper.run("restore", f"--bin-dir={cluster.installation.bin_dir}", "--overwrite-existing", "--plan")
    assert any(line.startswith("would be archived from ") for line in plan.lines)
    # With the target of the accident the plan is refused, and says that the restore itself would not be.
    status, refusal = keeper.refuse("--overwrite-existing", target, "--plan")
    assert status == 8
    assert "the plan knows what is archived only, the restore itself what leads on to " in refusal[1]
    restored = restore_in_place(keeper, target)
    [said] = [line for line in restored.outcome.lines if line.startswith("archived from ")]
    assert ".partial, which ends at " in said
    restored.assert_is_at(mark)


def test_without_a_target_the_last_commit_of_the_old_pg_wal_is_there(make_keeper: MakeKeeper) -> None:
    """To the end of the WAL means to the end of what the crashed server had written."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("last")
    keeper.cluster.kill()
    restore_in_place(keeper).assert_is_at(mark)


def test_a_damaged_old_segment_ends_the_wal_there(make_keeper: MakeKeeper) -> None:
    """What comes behind a record that cannot be read is out of reach, and said so; what comes before it is not."""
    keeper = make_keeper(archive="vault")
    cluster = keeper.cluster
    ledger = Ledger(cluster)
    keeper.backup("full", "local")
    ledger.transfer(5)
    keeper.wait_until_archived()
    cluster.configure({"archive_command": "false"})
    cluster.reload()
    ledger.transfer(20)
    reached = ledger.mark("before the damage")
    ledger.transfer(5)
    damaged, offset = cluster.sql("SELECT * FROM pg_walfile_name_offset(pg_current_wal_flush_lsn())")[0]
    ledger.transfer(50)
    cluster.switch_wal()
    mark = ledger.mark("behind the damage")
    cluster.kill()
    with (cluster.data_directory / "pg_wal" / damaged).open("r+b") as file:
        file.seek(offset + 100)
        file.write(b"\x5a" * 2000)
    outcome = restore_in_place(keeper, f"--target-time={mark.time.isoformat()}", status=8).outcome
    assert "is beyond the WAL held without a hole" in outcome.refusal[0]
    assert list(keeper.directory.glob("data.old.*")) == []
    restore_in_place(keeper, f"--target-time={reached.time.isoformat()}").assert_is_at(reached)


def test_the_wal_of_a_copy_is_not_the_clusters(make_keeper: MakeKeeper) -> None:
    """Promoted to a timeline of the same number, a copy gives nothing to the archive when it is made anew."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(5)
    keeper.wait_until_archived()
    copy = keeper.restore(to="copy")
    with copy.connect() as connection:
        for _ in range(3):
            connection.execute("CREATE TABLE IF NOT EXISTS only_in_the_copy (n int)")
            connection.execute("INSERT INTO only_in_the_copy SELECT generate_series(1, 1000)")
            connection.execute("SELECT pg_switch_wal()")
    copy.stop()
    keeper.cluster.stop()
    original = restore_in_place(keeper)
    original.value("SELECT pg_switch_wal()")
    wait_for(
        lambda: original.value("SELECT coalesce(last_archived_wal, '') LIKE '00000002%' FROM pg_stat_archiver"),
        "the original archives its own timeline",
    )
    again = keeper.restore("--overwrite-existing", to="copy", start=False)
    assert [line for line in again.outcome.lines if "archived from" in line] == []


def test_the_old_wal_is_taken_when_all_before_it_was_recycled(make_keeper: MakeKeeper) -> None:
    """A checkpoint since the last archived segment leaves only the segment that the server was writing: it counts."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(5)
    keeper.wait_until_archived()
    archived = keeper.cluster.value("SELECT last_archived_wal FROM pg_stat_archiver")
    for _ in range(2):
        ledger.transfer(2)
        keeper.cluster.sql("CHECKPOINT")
    mark = ledger.mark("last")
    keeper.cluster.kill()
    held = {path.name for path in (keeper.cluster.data_directory / "pg_wal").glob("0*")}
    assert archived not in held
    restore_in_place(keeper).assert_is_at(mark)
