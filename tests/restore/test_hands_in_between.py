"""Somebody who mends by hand what a restore has begun: pgkeep never takes his cluster for what it laid down itself."""

from __future__ import annotations

from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import environment
from tests.restore.unfinished import InPlace


def start_by_hand(before: InPlace) -> None:
    """Start what stands in the data directory by pg_ctl."""
    log = before.keeper.directory / "by-hand.log"
    pg_ctl = before.cluster.installation.program("pg_ctl")
    server_user().run([pg_ctl, "-D", before.data, "-l", log, "-t", "60", "-s", "-w", "start"], env=environment())
    before.restored.guard()


def test_a_cluster_that_was_put_back_by_hand_is_not_laid_over(make_keeper: MakeKeeper) -> None:
    """The same restore is refused over a copy that was put back; where all was put back it begins anew."""
    before = InPlace(make_keeper)
    before.kill_at((500, "open", r"^\d+ "))
    [old_data] = before.keeper.directory.glob("data.old.*")
    [old_version] = before.place.glob("PG_*.old.*")
    version = old_version.with_name(old_version.name.partition(".old.")[0])
    server_user().run(["rm", "-rf", before.data, version, before.place / "pgkeep.restoring"])
    server_user().run(["cp", "-a", old_data, before.data])
    old_version.rename(version)
    before.cluster.start()
    outcome = before.keeper.run("restore", *before.arguments, "--overwrite-existing")
    assert (outcome.status, outcome.refusal) == (
        8,
        [
            f"error: the restore was about to lay files down in {before.data}, and something else is there now",
            "hint: it was not touched: move it away yourself, and run the same restore again",
        ],
    )
    assert before.cluster.value("SELECT answer FROM after_the_accident") == 42
    before.cluster.stop()
    server_user().run(["rm", "-rf", old_data])
    before.restore("--start")
    before.assert_is_before_the_accident()
    assert len(before.moved_away()) == 2
    before.restored.stop()
    assert before.call("rollback", "--discard").status == 0
    before.assert_runs_as_before()


def test_a_directory_that_only_has_the_name_is_left_alone(make_keeper: MakeKeeper) -> None:
    """A rollback removes what was restored, and nothing that somebody else has called so."""
    before = InPlace(make_keeper)
    mine = before.keeper.directory / "data.discarded"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    server_user().own(mine)
    for point in ((3, "os.rename", r"state\.json"), (1, "os.rename", "/backup_label")):
        before.kill_at(point)
        outcome = before.call("rollback")
        assert outcome.status == 0, "\n".join(outcome.lines)
        assert (mine / "precious").read_text() == "mine"
    assert before.moved_away() == []


def test_a_rollback_that_was_cut_short_stops_what_was_started_since(make_keeper: MakeKeeper) -> None:
    """The host came up again and started its services: the restored server never goes on in the old one's place."""
    before = InPlace(make_keeper)
    before.restore("--start")
    before.restored.stop()
    before.kill_rollback_at((1, "os.rename", r"/data \S*/data\.discarded"), "--discard")
    start_by_hand(before)
    outcome = before.call("rollback")
    assert outcome.status == 0, "\n".join(outcome.lines)
    assert any(line.startswith(f"stopping the server in {before.data}: process ") for line in outcome.lines)
    before.restored.stop()
    before.assert_runs_as_before()


def test_what_was_written_before_a_finish_failed_is_not_given_up(make_keeper: MakeKeeper) -> None:
    """The server was started by hand, and finished later; that fails, and a rollback still asks for --discard."""
    before = InPlace(make_keeper)
    before.restore("--no-start")
    start_by_hand(before)
    before.restored.wait_until_promoted()
    with before.restored.connect() as connection:
        connection.execute("CREATE TABLE written_since AS SELECT 1 AS n")
    before.restored.stop()
    script = before.keeper.directory / "fails.sql"
    script.write_text("SELECT 1/0;\n")
    server_user().own(script)
    failed = before.call("finish", f"--post-restore-sql={script}")
    assert "division by zero" in "\n".join(failed.refusal)
    outcome = before.call("rollback")
    assert outcome.status == 8, "\n".join([*failed.lines, *outcome.lines])
    assert " has run on its own: what was written since would be lost" in outcome.refusal[0]


def test_recovery_files_are_not_written_into_a_cluster_that_has_run(make_keeper: MakeKeeper) -> None:
    """Killed when all was ready but not yet noted so, and started by its host: what it wrote stays."""
    before = InPlace(make_keeper)
    before.kill_at((1, "os.rename", "global/pg_control"))
    before.kill_at((3, "os.rename", r"state\.json"))
    assert before.progress == "2 is_cleared"
    start_by_hand(before)
    before.restored.wait_until_promoted()
    with before.restored.connect() as connection:
        connection.execute("CREATE TABLE written_since AS SELECT 1 AS n")
    for verb in ("finish", "restore"):
        outcome = before.call(verb) if verb == "finish" else before.keeper.run(verb, *before.arguments)
        assert outcome.status == 8, "\n".join(outcome.lines)
        assert " was started before its recovery files were known to be complete" in outcome.refusal[0]
        before.restored.stop()
    start_by_hand(before)
    assert before.restored.value("SELECT n FROM written_since") == 1
