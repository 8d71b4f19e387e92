"""A lasting slot keeps WAL between the jobs, and only that."""

from __future__ import annotations

import pytest

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster, wait_for
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.survive.job import Job

BOUND = {"max_slot_wal_keep_size": "1GB", "max_wal_size": "32MB", "min_wal_size": "32MB", "wal_keep_size": "0"}

TIGHT = BOUND | {"max_slot_wal_keep_size": "1MB"}


def lose_slots(cluster: Cluster) -> None:
    """Write WAL until no slot has kept its own, and the segment that was written first is gone."""
    first = cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())")

    def is_lost() -> bool:
        cluster.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 20000000))")
        cluster.sql("SELECT pg_switch_wal()")
        cluster.sql("CHECKPOINT")
        kept = cluster.sql("SELECT 1 FROM pg_replication_slots WHERE wal_status <> 'lost'")
        return not kept and not cluster.sql("SELECT 1 FROM pg_ls_waldir() WHERE name = %s", [first])

    wait_for(is_lost, "the server gives up the slots' WAL")


@pytest.mark.parametrize(("server", "transport"), [(18, "local"), (15, "stream")])
def test_the_slot_moves_on_with_every_job(make_keeper: MakeKeeper, server: int, transport: str) -> None:
    """Ten jobs in a row: the slot stands where the last one ended, and the server's WAL does not pile up."""
    keeper = make_keeper(major=server, settings=BOUND)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    sizes = []
    for number in range(10):
        # More than a slot that stands still could keep within the sizes below.
        cluster.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 20000000))")
        ledger.transfer(5)
        mark = ledger.mark(f"mark{number}")
        level = "full" if number % 3 == 0 else "incremental"
        outcome = keeper.backup(level, transport, "--slot-name=pgkeep_lasting")
        assert outcome.warnings == []
        [(restart, active)] = cluster.sql("SELECT restart_lsn::text, active FROM pg_replication_slots")
        assert (Lsn.parse(restart), active) == (Lsn.parse(outcome.report["wal_stop"]), False)
        cluster.sql("CHECKPOINT")
        sizes.append(int(cluster.value("SELECT sum(size) FROM pg_ls_waldir()")))
    assert max(sizes) <= 128 << 20, sizes
    keeper.restore(f"--target-lsn={mark.lsn}").assert_is_at(mark)
    # Nothing was recycled before it was held.
    assert keeper.info()["gaps"] == []


def test_a_slot_that_could_fill_the_disk_is_refused(make_keeper: MakeKeeper) -> None:
    """Without max_slot_wal_keep_size the slot is not made, unless that is asked for."""
    keeper = make_keeper()
    options = [*keeper.backup_options("full", "local"), "--slot-name=pgkeep_lasting"]
    outcome = keeper.run("backup", *options)
    assert outcome.status == 3
    assert outcome.refusal == [
        'error: slot "pgkeep_lasting" could fill the server\'s disk: max_slot_wal_keep_size sets no bound',
        "hint: set max_slot_wal_keep_size (PostgreSQL 13 and later), or allow_unbounded_slot=yes",
    ]
    assert keeper.cluster.sql("SELECT slot_name FROM pg_replication_slots") == []
    keeper.must("backup", *options, "--allow-unbounded-slot")
    assert keeper.cluster.sql("SELECT slot_name FROM pg_replication_slots") == [("pgkeep_lasting",)]


def test_a_slot_that_never_kept_anything_is_refused(make_keeper: MakeKeeper) -> None:
    """A slot that somebody made without reserving WAL keeps none, and never would; dropped, it is made anew."""
    keeper = make_keeper(settings=BOUND)
    keeper.cluster.sql("SELECT pg_create_physical_replication_slot('by_hand')")
    outcome = keeper.run("backup", *keeper.backup_options("full", "local"), "--slot-name=by_hand")
    assert outcome.status == 4
    assert outcome.refusal == [
        'error: slot "by_hand" keeps no WAL: it was made without reserving any',
        "hint: drop it (SELECT pg_drop_replication_slot('by_hand')): the next backup makes one that does",
    ]
    keeper.cluster.sql("SELECT pg_drop_replication_slot('by_hand')")
    outcome = keeper.backup("full", "local", "--slot-name=by_hand")
    restart = keeper.cluster.value("SELECT restart_lsn::text FROM pg_replication_slots")
    assert Lsn.parse(restart) == Lsn.parse(outcome.report["wal_stop"])


@pytest.mark.parametrize("slot_name", ["", "pgkeep_lasting"])
@pytest.mark.parametrize("server", [15, 18])
def test_a_slot_that_is_lost_while_files_are_copied_is_named(
    make_keeper: MakeKeeper, server: int, slot_name: str
) -> None:
    """The server took the WAL of the backup away: the error says that the slot was lost, and what to do about it."""
    keeper = make_keeper(major=server, settings=TIGHT)
    oid = keeper.cluster.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    options = [*keeper.backup_options("full", "local"), *([f"--slot-name={slot_name}"] if slot_name else [])]
    with Job(keeper, "backup", *options, "--switch-wal-timeout=1s", at=("STOP", 1, "open", f"/base/{oid}/")) as job:
        job.wait_until_stopped()
        lose_slots(keeper.cluster)
        outcome = job.go_on()
    error, hint = outcome.refusal
    wal = keeper.cluster.data_directory / "pg_wal"
    assert outcome.status != 0
    assert error.endswith(f" cannot be had from WAL directory {wal}: the server has recycled it")
    if slot_name:
        assert error.startswith('error: slot "pgkeep_lasting" has lost the WAL that it should have kept: WAL segment ')
        drop = "SELECT pg_drop_replication_slot('pgkeep_lasting')"
        assert hint == f"hint: drop it ({drop}), raise max_slot_wal_keep_size, make a Full"
    else:
        assert error.startswith("error: the slot that kept this job's WAL is gone: ")
        assert hint == "hint: raise max_slot_wal_keep_size, or set archive_dir to where the server archives"
    assert keeper.info()["backups"] == []


def test_a_lost_slot_does_not_matter_where_wal_is_archived(make_keeper: MakeKeeper) -> None:
    """What the server let go is in the archive: the backup is made, and comes back."""
    keeper = make_keeper(archive="directory", settings=TIGHT)
    ledger = Ledger(keeper.cluster)
    oid = keeper.cluster.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    with Job(keeper, "backup", *keeper.backup_options("full", "local"), at=("STOP", 1, "open", f"/base/{oid}/")) as job:
        job.wait_until_stopped()
        ledger.transfer(5)
        mark = ledger.mark("while the files are copied")
        lose_slots(keeper.cluster)
        outcome = job.go_on()
    assert (outcome.status, outcome.refusal) == (0, [])
    keeper.restore().assert_is_at(mark)
