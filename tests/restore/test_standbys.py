"""Standbys from backups: they replay what is held of their primary's history, and stream the rest."""

from __future__ import annotations

import signal

import pytest

from tests.lab.cluster import SUPERUSER, free_port, wait_for
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Outcome, Restored
from tests.restore.unfinished import call
from tests.survive.job import Job


def conninfo(primary: Restored) -> str:
    """Return how a standby reaches *primary*: through its socket, with a passfile that holds nothing."""
    lines = primary.postmaster()
    return f"host={lines[4]} port={lines[3]} user={SUPERUSER}"


def restore_standby(keeper: Keeper, primary: Restored, *arguments: str, status: int = 0) -> Restored:
    """Restore a standby of *primary*."""
    return keeper.restore("--restore-as-standby", f"--primary-conninfo={conninfo(primary)}", *arguments, status=status)


def assert_follows(standby: Restored, primary: Restored) -> None:
    """Assert that *standby* streams from *primary*, has every row, and keeps nothing of its restore."""
    lsn = primary.value("SELECT pg_current_wal_lsn()::text")
    wait_for(lambda: bool(standby.value(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'")), "the standby has caught up")
    assert standby.value("SELECT pg_is_in_recovery()")
    assert standby.value("SELECT status FROM pg_stat_wal_receiver") == "streaming"
    assert standby.digests() == primary.digests()
    assert standby.value("SHOW restore_command") == ""
    assert (standby.data_directory / "standby.signal").exists()
    assert not (standby.data_directory / "recovery.signal").exists()


def test_primary_and_two_standbys_from_backups(major: int, make_keeper: MakeKeeper) -> None:
    """All three servers are lost: a primary comes back to a moment, two standbys follow it along its new timeline."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    ledger.transfer(5)
    keeper.backup("full", "local")
    mark = ledger.mark("before the accident")
    ledger.transfer(5)
    # The archive goes on behind that moment, in later segments: a standby that replayed them could follow nobody.
    for _ in range(2):
        keeper.wait_until_archived()
        ledger.transfer(5)
    keeper.wait_until_archived()
    keeper.cluster.stop()
    primary = keeper.restore(f"--target-time={mark.time.isoformat()}")
    primary.assert_is_at(mark)
    standbys = [restore_standby(keeper, primary) for _ in range(2)]
    for standby in standbys:
        assert [line for line in standby.outcome.lines if "PHASE 3/6" in line or "PHASE 5/6" in line] == [
            "RESTORE PHASE 3/6 recovery-config: a standby, along the newest timeline",
            "RESTORE PHASE 5/6 topology: a standby: slots and subscriptions are its primary's",
        ]
        assert standby.report["timeline"] == 2
    with primary.connect() as connection:
        connection.execute("CREATE TABLE since AS SELECT generate_series(1, 1000) AS n")
        rows = connection.execute("SELECT state FROM pg_stat_replication").fetchall()
    assert rows == [("streaming",), ("streaming",)]
    for standby in standbys:
        assert_follows(standby, primary)
    # One of them takes over, the other is made anew from what is held, which the new primary continues.
    primary.stop()
    standbys[0].value("SELECT pg_promote()")
    standbys[0].wait_until_promoted()
    third = restore_standby(keeper, standbys[0])
    assert third.report["timeline"] == 3
    assert_follows(third, standbys[0])


@pytest.mark.parametrize("source", ["primary", "standby"])
def test_primary_restored_to_the_end_of_the_backup(make_keeper: MakeKeeper, source: str) -> None:
    """The new timeline begins in the backup's own last segment, of which the backup holds more than was replayed."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    ledger.transfer(3)
    with keeper.cluster.create_standby(keeper.directory / "first") as first:
        if source == "standby":
            first.start()
            first.wait_for_replay(keeper.cluster.current_lsn())
        cluster = first if source == "standby" else keeper.cluster
        keeper.backup("full", "local", f"--{'no-' if source == 'primary' else ''}backup-from-standby", cluster=cluster)
    for _ in range(2):
        ledger.transfer(3)
        keeper.wait_until_archived()
    keeper.cluster.stop()
    primary = keeper.restore("--target-immediate")
    standby = restore_standby(keeper, primary)
    assert standby.report["timeline"] == 2
    assert_follows(standby, primary)


def test_prepared_first_and_finished_later(make_keeper: MakeKeeper) -> None:
    """Without --start a standby is laid down though its primary cannot be asked yet, and finish does the rest."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "stream")
    mark = ledger.mark("there")
    keeper.wait_until_archived()
    primary = Restored(keeper.cluster.installation, keeper.cluster.data_directory, 0, Outcome(0, "", []))
    reached = conninfo(primary)
    keeper.cluster.stop()
    arguments = ("--restore-as-standby", f"--primary-conninfo={reached}")
    where = f"{keeper.cluster.socket_directory}:{keeper.cluster.port} as {SUPERUSER}"
    status, refusal = keeper.refuse(*arguments, f"--pgdata-dir={keeper.directory}/standby", "--start")
    assert status == 8
    assert refusal[0].startswith(
        f"error: the standby could not follow its primary: cannot connect to PostgreSQL at {where}"
    )
    assert refusal[1].endswith("; without start_postgresql_after_restore the primary may come later")
    standby = keeper.restore(*arguments, start=False)
    assert f"pgkeep does that, and checks the server: pgkeep finish --pgdata-dir={standby.data_directory}" in (
        standby.outcome.lines
    )
    assert standby.postmaster() == []
    keeper.cluster.start()
    with keeper.cluster.connect() as connection:
        connection.execute("CREATE TABLE since AS SELECT 1 AS n")
    outcome = call("finish", standby.data_directory)
    standby.guard()
    assert outcome.status == 0, outcome.lines
    assert "archiving is off in this standby: ALTER SYSTEM RESET archive_mode before it may become the primary" in (
        outcome.lines
    )
    assert_follows(standby, primary)
    assert standby.value("SELECT n FROM since") == 1
    assert mark.name == standby.value("SELECT name FROM ledger_mark ORDER BY name LIMIT 1")


def test_primary_that_came_later_on_a_new_timeline(make_keeper: MakeKeeper) -> None:
    """A standby that was prepared while all was down follows a primary that is restored to a moment after that."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("there")
    for _ in range(2):
        ledger.transfer(3)
        keeper.wait_until_archived()
    keeper.cluster.stop()
    port, place = free_port(), keeper.directory
    reached = f"host={place} port={port} user={SUPERUSER}"
    standby = keeper.restore("--restore-as-standby", f"--primary-conninfo={reached}", start=False)
    outcome = call("finish", standby.data_directory)
    assert outcome.status == 8
    assert f"when it is there: pgkeep finish --pgdata-dir={standby.data_directory}" in outcome.refusal[1]
    primary = keeper.restore(f"--target-time={mark.time.isoformat()}", f"--port={port}")
    primary.assert_is_at(mark)
    outcome = call("finish", standby.data_directory)
    standby.guard()
    assert outcome.status == 0, outcome.lines
    assert_follows(standby, primary)


def test_backup_of_a_standby_knows_the_primary(make_keeper: MakeKeeper) -> None:
    """A standby that was backed up says where its primary is: another one is made of that without a word."""
    keeper = make_keeper()
    Ledger(keeper.cluster).transfer(3)
    primary = Restored(keeper.cluster.installation, keeper.cluster.data_directory, 0, Outcome(0, "", []))
    with keeper.cluster.create_standby(keeper.directory / "first") as first:
        first.start()
        first.wait_for_replay(keeper.cluster.current_lsn())
        keeper.backup("full", "local", "--backup-from-standby", "--track-replication-state", cluster=first)
    second = keeper.restore("--restore-as-standby")
    assert_follows(second, primary)
    assert second.value("SHOW primary_conninfo") == conninfo(primary)


def test_primary_that_has_lost_the_wal(make_keeper: MakeKeeper) -> None:
    """A standby whose primary has not kept the WAL that it needs is a failure, with the server's own words."""
    keeper = make_keeper(settings={"min_wal_size": "32MB", "max_wal_size": "32MB"})
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(1)
    needed = keeper.cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())")

    def has_lost_it() -> bool:
        ledger.transfer(1)
        keeper.cluster.switch_wal()
        keeper.cluster.sql("CHECKPOINT")
        return keeper.cluster.value("SELECT count(*) FROM pg_ls_waldir() WHERE name = %s", [needed]) == 0

    # The temporary slot of the backup may live a moment longer than the backup, and it keeps its WAL.
    wait_for(has_lost_it, "the primary has removed the WAL after the backup")
    primary = Restored(keeper.cluster.installation, keeper.cluster.data_directory, 0, Outcome(0, "", []))
    standby = restore_standby(keeper, primary, status=9)
    [error, hint] = standby.outcome.refusal
    assert "does not stream from its primary at" in error
    assert "has already been removed" in error
    assert hint.startswith("hint: see ")
    assert standby.postmaster() == []


def test_no_password_where_others_read(make_keeper: MakeKeeper) -> None:
    """A password in primary_conninfo is refused on the command line, without a word of it."""
    keeper = make_keeper()
    keeper.backup("full", "local")
    status, refusal = keeper.refuse("--restore-as-standby", "--primary-conninfo=host=a password=geheim")
    assert (status, refusal) == (
        2,
        [
            "error: primary_conninfo must not hold a password on the command line, where others can read it",
            "hint: name a passfile in it",
        ],
    )
    status, refusal = keeper.refuse("--restore-as-standby")
    assert (status, refusal[0]) == (
        2,
        "error: restore_as_standby needs primary_conninfo: no backup knows the primary",
    )


STATE = r"state\.json"
STEPS = [
    (1, "os.rename", r"standby\.signal"),
    (1, "subprocess.Popen", "/postgres', '-D'"),
    (3, "os.rename", STATE),
    (3, "os.rename", STATE),
    (3, "os.rename", STATE),
    (1, "os.rename", r"/postgresql\.auto\.conf"),
    (1, "subprocess.Popen", "/postgres', '-D'"),
    (3, "os.rename", STATE),
]
"""The moment before each step of phases 3 to 6; every run begins where the last one was killed."""


def test_killed_at_every_step(make_keeper: MakeKeeper) -> None:
    """A standby to be that is killed in phases 3 to 6 goes on when it is run again, and follows its primary."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(5)
    keeper.wait_until_archived()
    primary = Restored(keeper.cluster.installation, keeper.cluster.data_directory, 0, Outcome(0, "", []))
    standby = Restored(keeper.cluster.installation, keeper.directory / "standby", free_port(), Outcome(0, "", []))
    keeper.restored.append(standby)
    arguments = [
        *("--restore-as-standby", f"--primary-conninfo={conninfo(primary)}", "--start"),
        *(f"--pgdata-dir={standby.data_directory}", f"--port={standby.port}"),
        f"--bin-dir={keeper.cluster.installation.bin_dir}",
    ]
    for point in STEPS:
        with Job(keeper, "restore", *arguments, at=("KILL", *point)) as job:
            outcome = job.end()
        standby.guard()
        assert outcome.status == -signal.SIGKILL, f"{point} was not reached\n" + "\n".join(outcome.lines)
    assert any("PHASE 6/6" in line for line in keeper.must("restore", *arguments).lines)
    standby.guard()
    assert_follows(standby, primary)
