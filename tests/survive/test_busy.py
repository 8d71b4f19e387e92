"""Two jobs at once: who must wait is told for whom, and nothing that is needed is taken away."""

from __future__ import annotations

import re

from tests.lab.ledger import Ledger
from tests.restore.keeper import Keeper, Outcome
from tests.survive.job import Job, backup_ids

AT_FILES = ("STOP", 1, "open", "/base/")


def assert_is_told(outcome: Outcome, keeper: Keeper, job: Job, *, state: str, verb: str) -> None:
    """Assert that *outcome* is a refusal that names *job*."""
    assert outcome.status == 6
    assert len(outcome.refusal) == 2, outcome.lines
    assert re.fullmatch(
        rf"error: cluster {keeper.name} of the vault is {state} by {verb} \(process {job.pid} on \S+, since \S+Z\)",
        outcome.refusal[0],
    ), outcome.refusal
    assert outcome.refusal[1] == "hint: try again when it is done"


def test_while_a_backup_runs(keeper: Keeper) -> None:
    """A second backup and an expire are refused while a backup runs; info, verify and archive-push are not."""
    mark = Ledger(keeper.cluster).mark("before")
    first = keeper.backup("full", "local").report["backup_id"]
    options = keeper.backup_options("differential", "local")
    with Job(keeper, "backup", *options, at=AT_FILES) as job:
        job.wait_until_stopped()
        second = keeper.run("backup", *keeper.backup_options("full", "stream"))
        assert_is_told(second, keeper, job, state="being backed up", verb="backup")
        assert_is_told(keeper.run("expire", "--keep=1"), keeper, job, state="in use", verb="backup")
        assert backup_ids(keeper) == [first]
        assert keeper.info()["leftovers"] == []
        assert keeper.must("verify", "--json").report["is_clean"]
        assert keeper.must("expire", "--dry-run", "--json").report["removed"] == []
        outcome = job.go_on()
    assert outcome.status == 0, outcome.lines
    assert backup_ids(keeper) == [first, outcome.report["backup_id"]]
    keeper.restore().assert_is_at(mark)


def test_while_expire_deletes(keeper: Keeper) -> None:
    """A restore, a backup and a verify are refused while expire deletes; an expire while a restore reads."""
    mark = Ledger(keeper.cluster).mark("before")
    first = keeper.backup("full", "local").report["backup_id"]
    second = keeper.backup("full", "local").report["backup_id"]
    target = f"--pgdata-dir={keeper.directory}/target"
    bin_dir = f"--bin-dir={keeper.cluster.installation.bin_dir}"
    with Job(keeper, "expire", "--keep=1", "--json", at=("STOP", 1, "shutil.rmtree", first)) as job:
        job.wait_until_stopped()
        # Its record went first: what is half deleted is not listed.
        for call in (
            keeper.run("restore", bin_dir, target),
            keeper.run("backup", *keeper.backup_options("full", "local")),
            keeper.run("verify"),
        ):
            assert_is_told(call, keeper, job, state="in use", verb="expire")
        assert not (keeper.directory / "target").exists()
        outcome = job.go_on()
    assert [entry["backup_id"] for entry in outcome.report["removed"]] == [first]
    assert backup_ids(keeper) == [second]
    with Job(keeper, "restore", bin_dir, target, "--no-start", at=("STOP", 1, "open", "volume-")) as job:
        job.wait_until_stopped()
        assert_is_told(keeper.run("expire", "--keep=1"), keeper, job, state="in use", verb="restore")
        assert job.go_on().status == 0
    keeper.restore().assert_is_at(mark)
