"""``pgkeep finish`` and ``pgkeep rollback``: what they do, and what they refuse."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.lab.cluster import MakeCluster
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored
from tests.restore.test_files import make_directory
from tests.restore.unfinished import InPlace, call
from tests.survive.job import Job


def directory_of(restored: Restored) -> Path:
    """Return the directory in which the restore keeps its state."""
    return restored.data_directory.with_name(f"{restored.data_directory.name}.pgkeep-restore")


def audit_text(restored: Restored) -> str:
    """Return what the audit file of the only restore says."""
    [path] = directory_of(restored).glob("restore-*.log")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path.read_text()


@pytest.mark.parametrize("action", ["promote", "pause", "shutdown"])
def test_a_prepared_restore_is_finished(keeper: Keeper, action: str) -> None:
    """What was left at its target, or never started, is opened by finish: the rows are there, no setting is left."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("target")
    ledger.transfer(20)
    keeper.backup("incremental", "local")
    restored = keeper.restore(
        f"--target-lsn={mark.lsn}", f"--recovery-target-action={action}", start=action != "promote"
    )
    assert f"to open it: pgkeep finish --pgdata-dir={restored.data_directory}" in restored.outcome.lines or (
        action == "promote"
    )
    outcome = call("finish", restored.data_directory, "--json")
    restored.guard()
    assert outcome.status == 0, "\n".join(outcome.lines)
    assert json.loads(outcome.stdout)["promoted"] is True
    assert outcome.lines[-1] == "RESTORE PHASE 6/6 verify-and-cleanup: every database answers (2)"
    restored.assert_is_at(mark)
    assert restored.value("SELECT current_setting('restore_command') || current_setting('recovery_target_lsn')") == ""
    text = audit_text(restored)
    assert "RESTORE PHASE 1/6 pre-check: OK\n" in text
    assert text.endswith("RESTORE PHASE 6/6 verify-and-cleanup: every database answers (2)\n")
    status, refusal = refused("finish", restored.data_directory)
    assert status == 8
    assert refusal[0].endswith(f"into {restored.data_directory} is finished already")


def test_another_cluster_is_not_finished(keeper: Keeper, make_cluster: MakeCluster) -> None:
    """A cluster that somebody has put where a restore was prepared is neither started nor changed by finish."""
    Ledger(keeper.cluster)
    keeper.backup("full", "local")
    restored = keeper.restore(start=False)
    data = restored.data_directory
    data.rename(data.with_name("elsewhere"))
    other = make_cluster("other", major=keeper.cluster.major, start=False)
    other.data_directory.rename(data)
    before = (data / "postgresql.auto.conf").read_text()
    status, refusal = refused("finish", data)
    assert status == 8
    assert refusal[0].startswith(f"error: {data} holds another cluster than the restore ")
    assert (data / "postgresql.auto.conf").read_text() == before
    assert restored.postmaster() == []


def refused(verb: str, data_directory: Path, *more: str) -> tuple[int, list[str]]:
    """Call what must be refused; return the exit status, and the error with its hint."""
    outcome = call(verb, data_directory, *more)
    assert outcome.status != 0, "\n".join(outcome.lines)
    return outcome.status, outcome.refusal


def test_what_ran_since_is_not_lost_unasked(make_keeper: MakeKeeper) -> None:
    """A rollback refuses to remove a cluster that somebody started, by hand or by finish, unless that is said."""
    before = InPlace(make_keeper)
    before.restore("--no-start")
    server_user().own(before.keeper.directory / "data.log")
    before.restored.start()
    before.restored.wait_until_promoted()
    before.restored.stop()
    error = f"error: the restored cluster in {before.data} has run on its own: what was written since would be lost"
    expected = (8, [error, "hint: pgkeep rollback --discard gives that up"])
    assert refused("rollback", before.data) == expected
    # Whoever started it by hand can let pgkeep check it, and lift the fence that phase 3 left.
    assert before.call("finish").status == 0
    before.assert_is_before_the_accident()
    before.restored.stop()
    assert refused("rollback", before.data) == expected
    assert before.call("rollback", "--discard").status == 0
    before.assert_runs_as_before()


def test_another_restore_in_the_place_of_an_unfinished_one(make_keeper: MakeKeeper) -> None:
    """One with other arguments is refused and says what differs; the same one with --start does what was left."""
    before = InPlace(make_keeper)
    before.restore("--no-start")
    outcome = before.keeper.run("restore", *before.arguments, "--overwrite-existing", "--no-target-inclusive")
    assert outcome.status == 8
    assert "(recovery-config), and it was another one: inclusive True, now False" in outcome.refusal[0]
    assert outcome.refusal[1].endswith(f"or give it up first: pgkeep rollback --pgdata-dir={before.data}")
    assert len(before.moved_away()) == 2
    outcome = before.restore("--start")
    assert not any("lay-down" in line for line in outcome.lines[1:])
    before.assert_is_before_the_accident()
    assert len(before.moved_away()) == 2


def test_places_without_a_restore(keeper: Keeper) -> None:
    """Neither command does anything where no restore is known, or where its files are not all there."""
    data = keeper.cluster.data_directory
    for verb in ("finish", "rollback"):
        status, refusal = refused(verb, data)
        assert (status, refusal[0]) == (
            8,
            f"error: no restore into {data} is known: there is no {data}.pgkeep-restore/state.json",
        )
    keeper.cluster.sql("SELECT 1")


def test_a_place_that_is_closed_to_who_asks(keeper: Keeper) -> None:
    """Who may not look into a directory is told so, and as whom to run it; for a tablespace's directory, too."""
    place = keeper.directory / "tablespace"
    closed = keeper.directory / "closed"
    for directory in (place, closed):
        directory.mkdir()
        server_user().own(directory)
    keeper.cluster.sql(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    keeper.backup("full", "local")
    hint = "hint: run pgkeep as root or as the owner of the directory"
    closed.chmod(0)
    try:
        for data in (closed, closed / "data"):
            told = [f"error: cannot look for the state of a restore in {data}: Permission denied", hint]
            for verb in ("finish", "rollback"):
                assert refused(verb, data) == (8, told)
            elsewhere = f"--tablespace-map=elsewhere:{keeper.directory}/t"
            assert keeper.refuse(f"--pgdata-dir={data}", elsewhere) == (8, told)
        assert keeper.refuse(f"--pgdata-dir={keeper.directory}/d", f"--tablespace-map=elsewhere:{closed}/t") == (
            8,
            [f"error: cannot look at restore target {closed}/t: Permission denied", hint],
        )
    finally:
        closed.chmod(0o700)


def test_two_restores_at_once_do_not_share_a_tablespace(keeper: Keeper) -> None:
    """The one that comes later is refused though its phase 1 was through, and its rollback leaves the other's files."""
    place, shared = keeper.directory / "tablespace", keeper.directory / "shared"
    place.mkdir()
    server_user().own(place)
    keeper.cluster.sql(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    keeper.cluster.sql("CREATE TABLE there TABLESPACE elsewhere AS SELECT generate_series(1, 3000) AS n")
    keeper.backup("full", "local")
    late, elsewhere = keeper.directory / "late", f"--tablespace-map=elsewhere:{shared}"
    options = [f"--bin-dir={keeper.cluster.installation.bin_dir}", f"--pgdata-dir={late}", "--no-start", elsewhere]
    with Job(keeper, "restore", *options, at=("STOP", 1, "os.mkdir", r"/late [0-9]")) as job:
        job.wait_until_stopped()
        restored = keeper.restore(elsewhere)
        outcome = job.go_on()
    [version_directory] = shared.glob("PG_*")
    assert (outcome.status, outcome.refusal[0]) == (
        8,
        f"error: tablespace directory is in use: {version_directory} exists",
    )
    outcome = call("rollback", late)
    assert outcome.status == 0, outcome.lines
    assert f"removed what was restored into {version_directory}" not in outcome.lines
    assert os.listdir(late) == []
    assert restored.value("SELECT count(*) FROM there") == 3000


def test_what_is_refused_is_in_the_audit_file(keeper: Keeper) -> None:
    """A restore that phase 1 refuses leaves its reason in log_dir, and nothing anywhere else."""
    keeper.backup("full", "local")
    logs = make_directory(keeper.directory / "logs")
    target = make_directory(keeper.directory / "target")
    (target / "precious").write_text("mine")
    status, refusal = keeper.refuse(f"--pgdata-dir={target}", f"--log-dir={logs}")
    assert status == 8
    [path] = logs.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = [line.partition("Z ")[2] for line in path.read_text().splitlines()]
    assert lines[-2:] == refusal
    assert [path.name for path in keeper.directory.glob("target*")] == ["target"]
