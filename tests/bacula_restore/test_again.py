"""The same restore through Bacula once more, after the first one stopped on its way."""

from __future__ import annotations

from pathlib import Path

from tests.bacula_restore.conftest import MakeDaemon
from tests.lab.ledger import Ledger
from tests.restore.unfinished import call


def test_the_same_job_goes_on_with_what_the_first_one_left(make_daemon: MakeDaemon) -> None:
    """What was laid down is not laid down again: the second job starts the server, and its WAL goes in the end."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    ledger.transfer(30)
    daemon.backup()
    mark = ledger.mark("last")
    daemon.backup("I")
    daemon.cluster.stop()
    where = f"{daemon.directory}/out"
    directory = Path(f"{where}/@postgresql/pitr/pgdata")
    first = daemon.restore(where=where)
    assert first.error == ""
    wal = directory.with_name("pgdata.pgkeep-wal")
    assert wal.is_dir()
    other = daemon.restore(where=where, options={"recovery_target_action": "pause"})
    assert "(recovery-config), and it was another one: target " in other.error
    assert other.answers == {}
    laid_down = (directory / "PG_VERSION").stat().st_ino
    second = daemon.restore(where=where, options={"start_postgresql_after_restore": "yes"})
    assert second.error == ""
    restored = daemon.server(directory, second)
    restored.guard()
    assert [line.partition(":")[0] for line in second.phases] == [
        "RESTORE PHASE 4/6 start-and-replay",
        "RESTORE PHASE 5/6 topology",
        "RESTORE PHASE 6/6 verify-and-cleanup",
    ]
    assert (directory / "PG_VERSION").stat().st_ino == laid_down
    restored.assert_is_at(mark)
    assert not wal.exists()
    restored.stop()
    outcome = call("rollback", directory, "--discard")
    assert outcome.status == 0, "\n".join(outcome.lines)
    assert list(directory.iterdir()) == []


def test_the_same_target_with_other_jobs_is_another_restore(make_daemon: MakeDaemon) -> None:
    """A second run that selects more or less WAL than was laid down is refused; after a rollback it brings its rows."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    daemon.backup()
    ledger.transfer(30)
    daemon.backup("I")
    ledger.transfer(30)
    mark = ledger.mark("last")
    daemon.backup("I")
    daemon.cluster.stop()
    where = f"{daemon.directory}/out"
    directory = Path(f"{where}/@postgresql/pitr/pgdata")
    assert daemon.restore(daemon.restoring(0, 1), where=where).error == ""
    start = {"start_postgresql_after_restore": "yes"}
    for numbers, end in (((0,), "to 0/03000000"), ((0, 1, 2), "to 0/05000000")):
        other = daemon.restore(daemon.restoring(*numbers), where=where, options=start)
        assert f"it was another one: wal 'to 0/04000000 on timeline 1', now '{end} on timeline 1'" in other.error
        assert other.answers == {}
    outcome = call("rollback", directory, "--discard")
    assert outcome.status == 0, "\n".join(outcome.lines)
    whole = daemon.restore(where=where, options=start)
    assert whole.error == ""
    restored = daemon.server(directory, whole)
    restored.assert_is_at(mark)
