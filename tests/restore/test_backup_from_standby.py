"""Backups from standbys: which server is taken, and what a standby cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgkeep.errors import RestoreRefused
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.streams.record import Level
from tests.lab.cluster import SUPERUSER, Cluster, free_port, wait_for
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.holdings import Holdings, head, moment, plan
from tests.restore.keeper import Keeper, Outcome
from tests.survive.job import Job


@dataclass
class Pair:
    """A primary with a vault, and a standby that streams from it."""

    keeper: Keeper
    standby: Cluster

    @property
    def primary(self) -> Cluster:
        """The primary."""
        return self.keeper.cluster

    def backup(self, level: str, hosts: str, *arguments: str) -> Outcome:
        """Ask for a backup from one of *hosts*; the other options lead to the primary."""
        options = [*self.keeper.backup_options(level, "auto"), f"--standby-host={hosts}", *arguments]
        return self.keeper.run("backup", *options)

    def at(self, cluster: Cluster) -> str:
        """Return *cluster* as ``standby_host`` has it."""
        return f"{cluster.socket_directory}:{cluster.port}"

    def where(self, cluster: Cluster) -> str:
        """Return *cluster* as messages have it."""
        return f"{self.at(cluster)} as {SUPERUSER}"

    def catch_up(self) -> None:
        """Wait until the standby has all that the primary wrote, and streams."""
        self.standby.wait_for_replay(self.primary.current_lsn())
        wait_for(
            lambda: self.standby.value("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == 1,
            "the standby streams",
        )


@pytest.fixture
def pair(make_keeper: MakeKeeper, lab_directory: Path) -> Iterator[Pair]:
    """A primary with a ledger in it, and a standby."""
    keeper = make_keeper()
    with ExitStack() as stack:
        standby = stack.enter_context(keeper.cluster.create_standby(lab_directory / "standby"))
        standby.start()
        yield Pair(keeper, standby)


def test_first_standby_of_a_list(major: int, pair: Pair) -> None:
    """Hosts are tried in turn; one that is down, and a primary, are passed over with the reason."""
    ledger = Ledger(pair.primary)
    ledger.transfer(3)
    mark = ledger.mark("there")
    pair.catch_up()
    nobody = f"127.0.0.1:{free_port()}"
    outcome = pair.backup("full", f"{nobody},{pair.at(pair.primary)},{pair.at(pair.standby)}")
    assert outcome.status == 0, outcome.lines
    assert outcome.lines[0].startswith(f"passed over: cannot connect to PostgreSQL at {nobody} as postgres: ")
    assert outcome.lines[1:3] == [
        f"passed over: {pair.where(pair.primary)} is a primary, expected a standby",
        f"backup from the standby at {pair.where(pair.standby)}",
    ]
    pair.keeper.restore(f"--backup-id={outcome.report['backup_id']}").assert_is_at(mark)


def test_primary_that_looks_read_only(pair: Pair) -> None:
    """A primary whose transactions are read-only by default is no standby."""
    pair.primary.configure({"default_transaction_read_only": "on"})
    pair.primary.reload()
    wait_for(lambda: pair.primary.value("SHOW default_transaction_read_only") == "on", "the setting is in force")
    outcome = pair.keeper.run("backup", *pair.keeper.backup_options("full", "auto"), "--backup-from-standby")
    why = "expected a standby: default_transaction_read_only = on makes none of it"
    assert (outcome.status, outcome.refusal) == (
        4,
        [
            f"error: no standby to back up from: {pair.where(pair.primary)} is a primary, {why}",
            "hint: set standby_host, or backup_from_standby=no to back up the primary",
        ],
    )
    assert pair.keeper.info()["backups"] == []


def test_standby_that_does_not_stream(pair: Pair, lab_directory: Path) -> None:
    """A standby that has lost its primary is taken only when no other one streams, and with a warning."""
    mark = Ledger(pair.primary).mark("there")
    pair.catch_up()
    with pair.primary.create_standby(lab_directory / "lonely") as lonely:
        lonely.configure({"primary_conninfo": "host=/nonexistent"})
        lonely.start()
        outcome = pair.backup("full", pair.at(lonely))
        warning = f"the standby at {pair.where(lonely)} does not stream from its primary: what it holds may be old"
        assert (outcome.status, outcome.warnings) == (0, [warning])
        pair.keeper.restore(f"--backup-id={outcome.report['backup_id']}").assert_is_at(mark)
        outcome = pair.backup("full", f"{pair.at(lonely)},{pair.at(pair.standby)}")
        assert (outcome.status, outcome.warnings) == (0, [])
        assert f"backup from the standby at {pair.where(pair.standby)}" in outcome.lines


def test_standby_that_lags_behind(pair: Pair) -> None:
    """No backup of a standby goes back behind what an earlier backup holds; the standby gets a while to catch up."""
    ledger = Ledger(pair.primary)
    pair.keeper.backup("full", "local")
    pair.standby.sql("ALTER SYSTEM SET primary_conninfo = 'host=/nonexistent'")
    pair.standby.restart()
    ledger.transfer(3)
    held = pair.keeper.backup("incremental", "local").report["wal_stop"]
    outcome = pair.backup("incremental", pair.at(pair.standby), "--switch-wal-timeout=1s")
    assert outcome.status == 4
    assert outcome.refusal[0].startswith(f"error: the standby at {pair.where(pair.standby)} lags behind: it has WAL up")
    assert outcome.refusal[0].endswith(f"the newest backup holds it up to {held}")
    pair.standby.sql("ALTER SYSTEM RESET primary_conninfo")
    pair.standby.restart()
    mark = ledger.mark("there")
    pair.primary.switch_wal()
    outcome = pair.backup("incremental", pair.at(pair.standby), "--switch-wal-timeout=60s")
    assert outcome.status == 0, outcome.lines
    pair.keeper.restore().assert_is_at(mark)


def test_torn_pages_at_the_primary(pair: Pair) -> None:
    """Where the primary wrote no full pages the standby refuses the backup: there is nothing to mend its copy with."""
    pair.keeper.backup("full", "local")
    pair.primary.configure({"full_page_writes": "off"})
    pair.primary.reload()
    wait_for(lambda: pair.primary.value("SHOW full_page_writes") == "off", "the setting is in force")
    Ledger(pair.primary).transfer(3)
    pair.catch_up()
    outcome = pair.backup("full", pair.at(pair.standby))
    assert outcome.status == 4
    assert outcome.refusal[0] == (
        f"error: PostgreSQL at {pair.where(pair.standby)} refused: "
        'WAL generated with "full_page_writes=off" was replayed since last restartpoint'
    )
    assert len(pair.keeper.info()["backups"]) == 1


@pytest.mark.parametrize(
    ("transport", "pattern", "message"),
    [
        # While its files are read, and between the plan and the backup's start.
        ("local", r"/base/\d+/\d", "the standby was promoted during online backup"),
        ("stream", "/volume-00", "the server went from timeline 1 to 2 while it was backed up"),
    ],
)
def test_standby_that_is_promoted_meanwhile(pair: Pair, transport: str, pattern: str, message: str) -> None:
    """A backup of a standby that becomes a primary before its end is none."""
    Ledger(pair.primary).transfer(1)
    pair.catch_up()
    options = [*pair.keeper.backup_options("full", transport), f"--standby-host={pair.at(pair.standby)}"]
    with Job(pair.keeper, "backup", *options, at=("STOP", 1, "open", pattern)) as job:
        job.wait_until_stopped()
        pair.standby.promote()
        outcome = job.go_on()
    assert outcome.status == 4, outcome.lines
    assert message in outcome.refusal[0]
    assert pair.keeper.info()["backups"] == []


def test_wal_up_to_the_last_whole_segment(pair: Pair) -> None:
    """An Incremental of a standby says where it ends, and what is behind that comes with the next one."""
    ledger = Ledger(pair.primary)
    pair.keeper.backup("full", "local")
    pair.primary.switch_wal()
    first = ledger.mark("first")
    pair.primary.switch_wal()
    second = ledger.mark("second")
    pair.catch_up()
    by_name = f"localhost:{pair.standby.port}"
    outcome = pair.backup("incremental", by_name)
    assert (outcome.status, outcome.warnings) == (0, [])
    end = outcome.report["wal_stop"]
    said = f"a standby cannot end a segment: WAL is carried up to {end}, the next backup carries the rest"
    assert said in outcome.lines
    pair.keeper.restore().assert_is_at(first)
    pair.primary.switch_wal()
    pair.catch_up()
    assert pair.backup("incremental", pair.at(pair.standby)).status == 0
    pair.keeper.restore().assert_is_at(second)
    dump = [
        "--mode=dump",
        "--level=full",
        f"--bin-dir={pair.primary.installation.bin_dir}",
        f"--standby-host={by_name}",
    ]
    outcome = pair.keeper.must("backup", *dump, *pair.keeper.server_options())
    assert f"backup from the standby at {by_name} as {SUPERUSER}" in outcome.lines


def test_moment_that_a_standby_has_not_seen() -> None:
    """A moment between what a standby had replayed and the end of its backup is out of reach."""
    details = {"complete_until": moment(1.5).isoformat()}
    base = head("20261120T140000Z-F", stop=2, from_standby=True, details=details)
    held = Holdings({1: 2}, at={1: 1.5})
    with pytest.raises(RestoreRefused, match="is beyond the WAL held"):
        plan([base], held, RecoveryTarget(TargetKind.TIME, moment(2)))
    assert plan([base], held).base is base


def test_wal_of_a_standby_has_no_moment() -> None:
    """WAL that a standby gave says nothing of times: a later backup's target is judged without it."""
    base = head("20261120T140000Z-F", stop=2)
    wal = head("20261120T150000Z-I", stop=3, level=Level.INCREMENTAL, files_from=base.backup_id, stop_time="")
    found = plan([base, wal], Holdings({1: 4}), RecoveryTarget(TargetKind.TIME, moment(3.5)))
    assert found.base is base
