"""Through Bacula, too, the old pg_wal leads to moments that no job has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tests.bacula_restore.bridge import Answer, RestoreBridge, Restoring
from tests.bacula_restore.conftest import Daemon, MakeDaemon
from tests.lab.ledger import Ledger, Mark
from tests.restore.unfinished import call

NEWEST = pytest.mark.pg("!=15, !=17")


def crashed_after_an_accident(make_daemon: MakeDaemon) -> tuple[Daemon, Mark]:
    """Make two jobs; more segments are written, a table is dropped, and the server dies; return the moment before."""
    daemon = make_daemon(wal_segment_size_mb=1)
    ledger = Ledger(daemon.cluster)
    ledger.transfer(5)
    daemon.backup()
    ledger.transfer(5)
    daemon.backup("I")
    for _ in range(2):
        ledger.transfer(20)
        daemon.cluster.switch_wal()
    mark = ledger.mark("before the accident")
    ledger.transfer(5)
    daemon.cluster.sql("DROP TABLE ledger_entry")
    daemon.cluster.kill()
    return daemon, mark


def restore_in_place(daemon: Daemon, mark: Mark, *, stop_before: str = "", **options: str) -> Answer:
    """Restore over the cluster to *mark*; the daemon dies before the file *stop_before*."""
    wanted = {
        "overwrite_existing": "yes",
        "start_postgresql_after_restore": "yes",
        "target_lsn": mark.lsn,
        **options,
    }
    return daemon.restore(dataclasses.replace(daemon.restoring(), stop_before=stop_before), options=wanted)


def assert_is_at(daemon: Daemon, answer: Answer, mark: Mark) -> None:
    """Assert that the cluster is at *mark* and runs by itself."""
    assert answer.error == "", answer.error
    daemon.server(daemon.cluster.data_directory, answer).assert_is_at(mark)


def test_the_moment_that_only_the_old_pg_wal_holds(make_daemon: MakeDaemon) -> None:
    """What the crashed server had written since the last job leads to the second before the accident."""
    daemon, mark = crashed_after_an_accident(make_daemon)
    copy = {"pgdata_dir": f"{daemon.directory}/copy", "target_lsn": mark.lsn}
    assert "is beyond the WAL held" in daemon.restore(options=copy).error
    answer = restore_in_place(daemon, mark)
    [said] = [line for line in answer.job.said("info") if line.startswith("taken from ")]
    assert ".partial, which ends at " in said
    assert_is_at(daemon, answer, mark)


@NEWEST
@pytest.mark.parametrize("wiped", ["no", "yes"])
def test_a_restore_that_goes_on_has_it_still(make_daemon: MakeDaemon, wiped: str) -> None:
    """The old directory is moved, or even removed, when the daemon dies: the next run has its WAL all the same."""
    daemon, mark = crashed_after_an_accident(make_daemon)
    wal = daemon.cluster.data_directory / "pg_wal"
    newest = max(path.name for path in wal.iterdir() if len(path.name) == 24)
    for name in (daemon.restoring().files[40].name, daemon.restoring().files[-1].name):
        died = restore_in_place(daemon, mark, stop_before=name, wipe_pgdata=wiped)
        assert died.error != ""
        assert not (wal / newest).exists()
    assert_is_at(daemon, restore_in_place(daemon, mark, wipe_pgdata=wiped), mark)


@NEWEST
def test_wal_of_another_past_is_not_taken(make_daemon: MakeDaemon) -> None:
    """The newest segment that a job has, too, is damaged, or is another one: nothing behind it counts."""
    daemon, mark = crashed_after_an_accident(make_daemon)
    held = max(file.name.rpartition("/")[2] for file in daemon.restoring().only("/@postgresql/pitr/wal/").files)
    segment = daemon.cluster.data_directory / "pg_wal" / held
    whole = segment.read_bytes()
    segment.write_bytes(b"\x5a" * 100 + whole[100:])
    answer = restore_in_place(daemon, mark)
    assert "is beyond the WAL held" in answer.error, "\n".join(answer.job.said("info"))
    assert answer.answers == {}
    # Read alone, it is the beginning of such a segment.
    segment.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
    answer = restore_in_place(daemon, mark)
    assert f"the old pg_wal does not continue the WAL of the backups: it has another {held}" in answer.error
    assert call("rollback", daemon.cluster.data_directory).status == 0
    segment.write_bytes(whole)
    assert_is_at(daemon, restore_in_place(daemon, mark), mark)


class Meanwhile(RestoreBridge):
    """A daemon in whose restore something happens between the plan and the first file."""

    happens: Callable[[], object]

    def announce(self, restoring: Restoring) -> None:
        super().announce(restoring)
        self.happens()


@NEWEST
def test_a_segment_that_goes_between_plan_and_restore(make_daemon: MakeDaemon) -> None:
    """A server that still runs may recycle what the plan counts on: that is refused, and nothing is touched."""
    daemon, mark = crashed_after_an_accident(make_daemon)
    wal = daemon.cluster.data_directory / "pg_wal"
    gone = max(wal.glob("0" * 7 + "1*"))
    options = f'overwrite_existing="yes"\ntarget_lsn="{mark.lsn}"\n'
    bridge = Meanwhile(environment=daemon.environment())
    bridge.happens = lambda: gone.rename(daemon.directory / gone.name)
    with bridge:
        answer = bridge.restore(daemon.restoring(), daemon.words, options=options)
    assert answer.error == (
        f"{gone} was there when the restore was planned, and cannot be read now: No such file or directory\n"
        "stop the server, then restore again: nothing was touched\n"
    )
    assert answer.answers == {}
    assert sorted(path.name for path in daemon.directory.glob("data*")) == ["data", "data.log"]
    (daemon.directory / gone.name).rename(gone)
    assert_is_at(daemon, restore_in_place(daemon, mark), mark)
