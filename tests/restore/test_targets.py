"""Moments that are hard to reach, and those that look as if they could be."""

from __future__ import annotations

import datetime as dt
import re
import time

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.survive.job import Job, Point

COPYING: Point = ("STOP", 1, "open", r"/base/\d+/")


def wal_files(keeper: Keeper) -> list[str]:
    """Return the names of the segments that the vault holds, oldest first."""
    return sorted(path.name.partition(".")[0] for path in (keeper.vault / keeper.name / "wal").rglob("*.zst"))


def hide_segment(keeper: Keeper, name: str) -> None:
    """Take one segment out of the vault."""
    [path] = (keeper.vault / keeper.name / "wal").rglob(f"{name}*")
    path.unlink()


def end_line(outcome_lines: list[str]) -> list[str]:
    """Return what was said about a target time after the last commit."""
    return [line for line in outcome_lines if line.startswith("the target time is after the last commit")]


def test_time_after_the_last_commit(major: int, make_keeper: MakeKeeper) -> None:
    """A time after the last commit, but within the WAL held, brings the end of the WAL and says so, on every major."""
    keeper = make_keeper()
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(5)
    mark = ledger.mark("last")
    time.sleep(0.01)
    target = dt.datetime.now(dt.UTC)
    keeper.backup("incremental", "local")
    restored = keeper.restore(f"--target-time={target.isoformat()}")
    restored.assert_is_at(mark)
    [line] = end_line(restored.outcome.lines)
    assert line.endswith(": recovered to the end of the WAL")
    assert mark.time.strftime("%Y-%m-%d %H:%M") in line
    assert restored.report["promoted"]
    assert restored.outcome.warnings == []
    # There is nothing to pause or to shut down at.
    for action in ("pause", "shutdown"):
        restored = keeper.restore(f"--target-time={target.isoformat()}", f"--recovery-target-action={action}")
        restored.assert_is_at(mark)
        assert end_line(restored.outcome.lines)
        warning = f"the server was promoted instead of {action}: there is no target to stop at"
        assert restored.outcome.warnings == [warning]


def test_wal_that_was_archived_late_proves_nothing(make_keeper: MakeKeeper) -> None:
    """That a segment came into the archive after a moment does not say that nothing was committed between the two."""
    keeper = make_keeper(archive="vault")
    cluster = keeper.cluster
    ledger = Ledger(cluster)
    keeper.backup("full", "local")
    keeper.wait_until_archived()
    cluster.configure({"archive_command": "false"})
    cluster.reload()
    ledger.transfer(5)
    late = cluster.switch_wal()
    ledger.transfer(5)
    mark = ledger.mark("in the next segment")
    cluster.configure({"archive_command": f"test %f = {late} && {keeper.archive_command()}"})
    cluster.reload()
    wait_for(
        lambda: cluster.value("SELECT last_archived_wal FROM pg_stat_archiver") == late, f"{late} alone is archived"
    )
    status, [error, _] = keeper.refuse(
        f"--pgdata-dir={keeper.directory}/copy", f"--target-time={mark.time.isoformat()}"
    )
    assert (status, "is beyond the WAL held" in error) == (8, True), error
    cluster.configure({"archive_command": keeper.archive_command()})
    cluster.reload()
    keeper.wait_until_archived()
    keeper.restore(f"--target-time={mark.time.isoformat()}").assert_is_at(mark)


def test_transaction_that_ended_while_a_backup_ran(keeper: Keeper) -> None:
    """A transaction that committed between the start and the stop of a backup is reached from the backup before it."""
    ledger = Ledger(keeper.cluster)
    first = keeper.backup("full", "local").report
    ledger.mark("before")
    with Job(keeper, "backup", *keeper.backup_options("full", "local"), at=COPYING) as job:
        job.wait_until_stopped()
        ledger.transfer(1)
        mark = ledger.mark("meanwhile")
        second = job.go_on().report
    ledger.transfer(1)
    after = ledger.mark("after")
    keeper.backup("incremental", "local")
    start, stop = second["start_lsn"], second["stop_lsn"]
    assert Lsn.parse(start) < Lsn.parse(mark.lsn) < Lsn.parse(stop)
    restored = keeper.restore(f"--target-xid={mark.xid}")
    restored.assert_is_at(mark)
    assert restored.report["backup_id"] == first["backup_id"]
    restored = keeper.restore(f"--target-xid={after.xid}")
    restored.assert_is_at(after)


def test_hole_in_the_wal(make_keeper: MakeKeeper) -> None:
    """What lies behind a hole in the WAL is refused, and never taken for the end of the WAL."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    full = keeper.backup("full", "local").report["backup_id"]
    early = ledger.mark("early")
    keeper.wait_until_archived()
    ledger.mark("in the hole")
    keeper.wait_until_archived()
    lost = wal_files(keeper)[-1]
    late = ledger.mark("late")
    keeper.wait_until_archived()
    hide_segment(keeper, lost)
    where = f"--pgdata-dir={keeper.directory}/copy"
    status, [error, hint] = keeper.refuse(where, f"--target-lsn={late.lsn}")
    end = keeper.info()["windows"][-1]["end_lsn"]
    last = hint.rpartition(" ")[2]
    assert (status, error, hint) == (
        8,
        (
            f"error: target LSN {Lsn.parse(late.lsn)} is beyond the WAL held without a hole, whose last record begins "
            f"at {last}"
        ),
        f"hint: the latest reachable LSN is {last}",
    )
    for name, what in (("xid", f"transaction {late.xid} does not end"), ("name", 'restore point "late" ')):
        status, [error, _] = keeper.refuse(where, f"--target-{name}={getattr(late, name)}")
        assert status == 8
        assert error.startswith(f"error: {what}"), error
        assert " the WAL held without a hole" in error, error
    assert keeper.refuse(where) == (
        8,
        [
            f"error: WAL is missing from {end} on, and later WAL is held: its end cannot be reached from backup {full}",
            f"hint: to recover to where it is missing: --target-lsn={last}",
        ],
    )
    status, [error, hint] = keeper.refuse(where, f"--target-time={late.time.isoformat()}")
    assert status == 8
    assert error.startswith(
        f"error: target time {late.time.isoformat(sep=' ')} is beyond the WAL held without a hole, "
    )
    assert re.fullmatch(
        rf"hint: the last commit held is that of transaction {early.xid} at .*; to recover to where WAL is missing: "
        rf"--target-lsn={last}",
        hint,
    ), hint
    restored = keeper.restore(f"--target-lsn={last}")
    restored.assert_is_at(early)
    note = f"note: WAL is missing from {end} on: what is held of later times cannot be replayed from this backup"
    assert note in restored.outcome.lines


def test_consistency_and_no_further(keeper: Keeper) -> None:
    """skip_wal_replay stops where the backup became consistent, whatever came later."""
    ledger = Ledger(keeper.cluster)
    with ledger.load() as load:
        load.wait_for(10)
        ledger.mark("before")
        keeper.backup("full", "stream")
        ledger.mark("after")
        load.wait_for(10)
    keeper.backup("incremental", "stream")
    restored = keeper.restore("--skip-wal-replay")
    with restored.connect() as connection:
        assert connection.execute("SELECT name FROM ledger_mark").fetchall() == [("before",)]
        ledger.check(connection)
    assert restored.report["promoted"]
