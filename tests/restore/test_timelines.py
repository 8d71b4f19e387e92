"""Backups across promotions, forks and a cluster that was made anew."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster, wait_for
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored, environment


def adopt(keeper: Keeper, restored: Restored) -> Cluster:
    """Return the restored server as a cluster of the lab, running on its own port, archiving as it was told to."""
    restored.stop()
    cluster = Cluster(restored.installation, restored.data_directory, work_directory=keeper.directory)
    return cluster.start()


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_restored_server_goes_on_in_the_same_vault(keeper: Keeper, transport: str) -> None:
    """A Differential and an Incremental continue the Full across a promotion; both timelines stay in reach."""
    ledger = Ledger(keeper.cluster)
    full = keeper.backup("full", transport).report
    early = ledger.mark("early")
    last = keeper.backup("incremental", transport).report
    ledger.mark("abandoned")
    with adopt(keeper, keeper.restore()) as promoted:
        assert promoted.value("SELECT timeline_id FROM pg_control_checkpoint()") == 2
        new = Ledger(promoted)
        new.transfer(5)
        first = new.mark("on timeline 2")
        outcome = keeper.backup("incremental", transport, cluster=promoted)
        assert (outcome.report["level"], outcome.report["base"]) == ("Incremental", last["backup_id"])
        assert outcome.warnings == []
        new.transfer(5)
        second = new.mark("before the differential")
        outcome = keeper.backup("differential", transport, cluster=promoted)
        assert (outcome.report["level"], outcome.report["base"]) == ("Differential", full["backup_id"])
        third = new.mark("after the differential")
        keeper.backup("incremental", transport, cluster=promoted)
    # What the transport changes is how WAL gets into the vault, and one moment behind the promotion shows that.
    for mark in (early, first, second) if transport == "local" else (second,):
        restored = keeper.restore(f"--target-lsn={mark.lsn}")
        restored.assert_is_at(mark)
        assert restored.report["backup_id"] == full["backup_id"]
        assert restored.report["timeline"] == 3
        restored.stop()
    restored = keeper.restore()
    restored.assert_is_at(third)
    restored.stop()
    if transport == "local":
        restored = keeper.restore(f"--target-lsn={early.lsn}", "--target-timeline=1")
        restored.assert_is_at(early)
        assert restored.report["timeline"] == 3


def test_two_servers_of_one_history(keeper: Keeper) -> None:
    """The old server, backed up after the promoted one, gets a Full that says why; each timeline can be reached."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    keeper.backup("incremental", "local")
    with adopt(keeper, keeper.restore()) as promoted:
        new = Ledger(promoted)
        new.transfer(5)
        on_second = new.mark("on timeline 2")
        branch = keeper.backup("incremental", "local", cluster=promoted).report
    ledger.transfer(5)
    outcome = keeper.backup("incremental", "local")
    assert outcome.report["level"] == "Full"
    assert outcome.warnings == [
        (
            f"making a Full instead of the Incremental asked for: backup {branch['backup_id']} ends at "
            f"{Lsn.parse(branch['wal_stop'])} on timeline 2, which is not in the history of the server's timeline 1"
        )
    ]
    on_first = ledger.mark("on timeline 1")
    keeper.backup("incremental", "local")
    restored = keeper.restore()
    restored.assert_is_at(on_first)
    restored = keeper.restore("--target-timeline=2")
    restored.assert_is_at(on_second)


@pytest.mark.parametrize("archive", ["off", "vault"])
def test_promoted_standby(make_keeper: MakeKeeper, lab_directory: Path, archive: str) -> None:
    """A standby that was promoted goes on where the primary's backups ended."""
    keeper = make_keeper(archive=archive)
    primary = keeper.cluster
    ledger = Ledger(primary)
    full = keeper.backup("full", "stream").report
    with primary.create_standby(lab_directory / "standby") as standby:
        standby.start()
        ledger.transfer(5)
        early = ledger.mark("early")
        keeper.backup("incremental", "stream")
        standby.wait_for_replay(primary.current_lsn())
        primary.stop()
        standby.promote()
        new = Ledger(standby)
        new.transfer(5)
        late = new.mark("late")
        outcome = keeper.backup("differential", "stream", cluster=standby)
        assert (outcome.report["level"], outcome.report["base"]) == ("Differential", full["backup_id"])
        after = new.mark("after")
        if archive == "vault":
            keeper.wait_until_archived(standby)
        else:
            keeper.backup("incremental", "stream", cluster=standby)
    # The archive matters to what comes behind the promotion.
    for mark in (early, late, after) if archive == "off" else (late, after):
        restored = keeper.restore(f"--target-time={mark.time.isoformat()}")
        restored.assert_is_at(mark)
        assert restored.report["timeline"] == 3
        restored.stop()


def test_wal_of_a_timeline_that_nobody_knows(keeper: Keeper, lab_directory: Path) -> None:
    """A server that archives only since after its promotion keeps the history to itself: said until it comes."""
    primary = keeper.cluster
    ledger = Ledger(primary)
    keeper.backup("full", "stream")
    with primary.create_standby(lab_directory / "standby") as standby:
        standby.start()
        ledger.transfer(5)
        keeper.backup("incremental", "stream")
        standby.wait_for_replay(primary.current_lsn())
        primary.stop()
        standby.promote()
        standby.configure({"archive_mode": "on", "archive_command": keeper.archive_command()})
        standby.restart()
        new = Ledger(standby)
        new.transfer(5)
        mark = new.mark("late")
        keeper.wait_until_archived(standby)
        info = keeper.info()
        assert (info["status"], info["timelines_without_history"]) == ("gap", [2])
        assert "wal of timeline 2 CANNOT BE USED: 00000002.history is not held" in keeper.must("info").stdout
        [finding] = keeper.run("verify", "--json").report["findings"]
        assert (finding["file"], finding["what"]) == (
            "wal/00000002",
            "00000002.history is missing: nobody knows where this WAL began",
        )
        assert any(
            "note: WAL of timeline 2 is held, but not 00000002.history" in line
            for line in keeper.plan(f"--pgdata-dir={lab_directory}/x")
        )
        history = standby.data_directory / "pg_wal/00000002.history"
        server_user().run(shlex.split(keeper.archive_command().replace("%p", str(history))), env=environment())
    info = keeper.info()
    assert (info["status"], info["timelines_without_history"]) == ("ok", [])
    assert keeper.must("verify", "--json").report["is_clean"]
    keeper.restore().assert_is_at(mark)


def test_cluster_made_anew_at_the_same_path(keeper: Keeper) -> None:
    """A new cluster in the old one's directory is refused until `init --new-system` gives it a place of its own."""
    old = keeper.cluster
    keeper.backup("full", "local")
    ledger = Ledger(old)
    mark = ledger.mark("old")
    keeper.backup("incremental", "local")
    known = keeper.info()["system_identifier"]
    old.stop()
    shutil.rmtree(old.data_directory)
    with Cluster.create(old.installation, old.data_directory) as new:
        new.start()
        found = new.value("SELECT system_identifier::text FROM pg_control_system()")
        for level in ("full", "incremental"):
            outcome = keeper.run("backup", *keeper.backup_options(level, "local", cluster=new))
            assert (outcome.status, outcome.refusal) == (
                6,
                [
                    f'error: cluster "main" in the vault has system identifier {known}, the server has {found}',
                    "hint: if the cluster was made anew: pgkeep init main --new-system",
                ],
            )
        outcome = keeper.run("init", *keeper.server_options(new))
        assert (outcome.status, outcome.refusal) == (
            6,
            [
                f'error: cluster "main" in the vault has system identifier {known}, the server has {found}',
                "hint: use another name, or --new-system to keep the old one under a name of its own",
            ],
        )
        report = keeper.init("--new-system", "--json", cluster=new).report
        assert report["renamed_old_cluster"] == f"main.{known}"
        Ledger(new)
        outcome = keeper.backup("incremental", "local", cluster=new)
        assert outcome.report["level"] == "Full"
        assert outcome.warnings == [
            "making a Full instead of the Incremental asked for: there is no backup to build on"
        ]
    keeper.name = report["renamed_old_cluster"]
    keeper.restore().assert_is_at(mark)


def test_backup_of_a_standby(keeper: Keeper, lab_directory: Path) -> None:
    """The backup of a standby is consistent by itself, without the end of a segment that only a primary can end."""
    ledger = Ledger(keeper.cluster)
    ledger.transfer(5)
    with keeper.cluster.create_standby(lab_directory / "standby") as standby:
        standby.start()
        mark = ledger.mark("there")
        standby.wait_for_replay(keeper.cluster.current_lsn())
        wait_for(lambda: standby.value("SELECT count(*) FROM pg_stat_wal_receiver") == 1, "the standby streams")
        report = keeper.backup("full", "stream", cluster=standby).report
        restored = keeper.restore(f"--backup-id={report['backup_id']}", "--target-immediate")
        restored.assert_is_at(mark)
