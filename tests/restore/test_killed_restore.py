"""Restores that are killed at every step: they go on when they are run again, or are rolled back."""

from __future__ import annotations

import signal

from tests.lab.cluster import free_port
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Outcome, Restored
from tests.restore.unfinished import InPlace, KillPoint, call
from tests.survive.job import Job

STATE = r"state\.json"
STEPS: list[tuple[KillPoint, str]] = [
    ((1, "os.rename", STATE), "nothing"),
    ((1, "os.rename", r"/data \S*/data\.old"), "1"),
    ((1, "os.rename", r"/PG_\S* \S*/PG_\S*\.old"), "1"),
    ((3, "os.rename", STATE), "1"),
    ((1, "open", "pgkeep.restoring"), "1 is_cleared"),
    ((500, "open", r"^\d+ "), "1 is_cleared"),
    ((3, "os.rename", STATE), "1 is_cleared"),
    ((1, "os.rename", "/backup_label"), "2 is_cleared"),
    ((1, "os.rename", "global/pg_control"), "2 is_cleared"),
    ((3, "os.rename", STATE), "2 is_cleared"),
    ((1, "subprocess.Popen", "/postgres', '-D'"), "3 is_cleared access"),
    ((3, "os.rename", STATE), "3 is_cleared access"),
    ((4, "os.rename", STATE), "4 is_cleared access"),
    ((4, "os.rename", STATE), "5 is_cleared access"),
    ((1, "os.rename", r"/postgresql\.auto\.conf"), "5 is_cleared access is_lifting"),
    ((1, "subprocess.Popen", "/postgres', '-D'"), "5 is_cleared access is_lifting"),
    ((3, "os.rename", STATE), "5 is_cleared access is_lifting"),
]
"""
Each is the moment before something happens, in the order of a restore, and what its state says then.

Every run begins where the last one was killed. It changes the state twice to say that it takes the restore up; the
changes behind those are its own.
"""


def test_a_restore_goes_on_where_it_was_killed(make_keeper: MakeKeeper) -> None:
    """Killed before each of its steps in turn, the same restore comes to its end, and nothing is renamed twice."""
    before = InPlace(make_keeper)
    for point, progress in STEPS:
        before.kill_at(point)
        assert (point, before.progress) == (point, progress)
    outcome = before.restore("--start")
    assert outcome.lines[-1] == "RESTORE PHASE 6/6 verify-and-cleanup: the server runs as it is configured"
    before.assert_is_before_the_accident()
    assert len(before.moved_away()) == 2
    settings = (before.data / "postgresql.auto.conf").read_text()
    assert "restore_command" not in settings
    assert "recovery_target" not in settings
    before.restored.stop()
    assert before.call("rollback", "--discard").status == 0
    before.assert_runs_as_before()


ROLLED_BACK = [
    (1, "os.rename", r"/PG_\S* \S*/PG_\S*\.old"),
    (500, "open", r"^\d+ "),
    (1, "os.rename", "/backup_label"),
    (1, "subprocess.Popen", "/postgres', '-D'"),
    (7, "os.rename", STATE),
    (8, "os.rename", STATE),
]
"""In the phases 2, 2, 3, 4 and 5; the last two while the fenced server runs."""


def test_a_restore_is_rolled_back_from_everywhere(make_keeper: MakeKeeper) -> None:
    """After a kill in each of its phases the server that was there before runs again, as if nothing had been."""
    before = InPlace(make_keeper)
    for point in ROLLED_BACK:
        before.kill_at(point)
        outcome = before.call("rollback")
        assert outcome.status == 0, "\n".join([str(point), *outcome.lines])
        before.assert_runs_as_before()


STEPS_BACK: list[KillPoint] = [
    (1, "os.rename", r"/data \S*/data\.discarded"),
    (1, "os.rename", r"PG_\S*\.old\S* \S*/PG_"),
    (1, "os.rename", r"/data\.old\S* \S*/data "),
    (1, "shutil.rmtree", "data.discarded"),
]


def test_a_rollback_that_is_killed_goes_on(make_keeper: MakeKeeper) -> None:
    """Killed before each of its own steps in turn, a rollback comes to its end when it is run again."""
    before = InPlace(make_keeper)
    before.restore("--no-start")
    for point in STEPS_BACK:
        before.kill_rollback_at(point)
    assert before.call("rollback").status == 0
    before.assert_runs_as_before()


def test_only_the_server_that_replayed_knows_how_far(make_keeper: MakeKeeper) -> None:
    """Killed behind a target that no commit follows, a restore is finished with the same server, and with no other."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("last")
    keeper.wait_until_archived()
    target = f"--target-time={mark.time.isoformat()}"
    restored = Restored(keeper.cluster.installation, keeper.directory / "restored", free_port(), Outcome(0, "", []))
    keeper.restored.append(restored)
    for is_stopped in (True, False):
        arguments = [f"--bin-dir={restored.installation.bin_dir}", f"--port={restored.port}", "--start", target]
        at = ("KILL", 9, "os.rename", STATE)
        with Job(keeper, "restore", f"--pgdata-dir={restored.data_directory}", *arguments, at=at) as job:
            assert job.end().status == -signal.SIGKILL, "\n".join(job.lines)
        restored.guard()
        if is_stopped:
            restored.stop()
        outcome = call("finish", restored.data_directory)
        restored.guard()
        if is_stopped:
            assert outcome.status == 9
            assert outcome.refusal[0].endswith("was not reached, and stopped: nobody knows how far it got")
            assert call("rollback", restored.data_directory).status == 0
    assert outcome.status == 0, "\n".join(outcome.lines)
    restored.assert_is_at(mark)
