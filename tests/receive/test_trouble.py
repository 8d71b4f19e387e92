"""What stands in a receiver's way: it says so, loses nothing that is there, and mixes nothing."""

from __future__ import annotations

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.ledger import Ledger
from tests.lab.proxy import Proxy
from tests.receive.receiver import SETTINGS, SLOT, Receiver
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper

SMALL = SETTINGS | {"max_wal_size": "8MB", "min_wal_size": "2MB", "wal_keep_size": "0"}
SEGMENT = 1 << 20


def write(cluster: Cluster, megabytes: int) -> str:
    """Write so much WAL, and return the name of the last segment that this completed."""
    cluster.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', %s))", [megabytes << 20])
    return cluster.switch_wal()


def lose_slot(cluster: Cluster) -> None:
    """Write WAL until the server has given up what its only slot should have kept."""

    def is_lost() -> bool:
        write(cluster, 8)
        cluster.sql("CHECKPOINT")
        return bool(cluster.value("SELECT wal_status = 'lost' FROM pg_replication_slots"))

    wait_for(is_lost, "the slot has lost its WAL")


def test_lost_wal_is_a_hole_that_is_said(make_keeper: MakeKeeper) -> None:
    """A slot that lost its WAL is made anew, and what is missing is said, written down, and shown by info."""
    keeper = make_keeper(settings=SMALL | {"max_slot_wal_keep_size": "1MB"}, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with Receiver(keeper).wait_until_streaming() as receiver:
        before = ledger.mark("before")
        ledger.transfer(1)
        receiver.wait_until_flushed()
        receiver.stop()
    held = cluster.value("SELECT restart_lsn FROM pg_replication_slots")
    lose_slot(cluster)
    with Receiver(keeper) as receiver:
        receiver.wait_for_line("warning: main: HOLE: ")
        ledger.transfer(5)
        receiver.wait_until_flushed()
        after = ledger.mark("after")
        keeper.backup("full", "local")
        receiver.wait_until_flushed()
        outcome = receiver.stop()
    assert outcome.warnings[0] == f'main: slot "{SLOT}" had lost the WAL that it should have kept: made anew'
    [hole] = keeper.info()["holes"]
    assert Lsn.parse(hole["start"]) <= Lsn.parse(held) < Lsn.parse(hole["stop"])
    assert "has already been removed" in hole["reason"]
    assert keeper.info()["status"] == "gap"
    keeper.restore(f"--target-lsn={before.lsn}").assert_is_at(before)
    keeper.restore().assert_is_at(after)


def test_lost_wal_that_was_archived_is_no_hole(make_keeper: MakeKeeper) -> None:
    """WAL that the server's own archiving brought while the receiver was away is not missing, and not said to be."""
    keeper = make_keeper(archive="vault", settings=SMALL | {"max_slot_wal_keep_size": "1MB"}, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with Receiver(keeper).wait_until_streaming() as receiver:
        receiver.wait_until_flushed()
        receiver.stop()
    [held] = [name.removesuffix(".partial") for name in receiver.spooled()]
    lose_slot(cluster)

    def is_gone() -> bool:
        # What waits for archiving stays, whatever the slot's bound.
        keeper.wait_until_archived()
        cluster.sql("CHECKPOINT")
        return not cluster.sql("SELECT 1 FROM pg_ls_waldir() WHERE name = %s", [held])

    wait_for(is_gone, f"the server has removed {held}")
    with Receiver(keeper) as receiver:
        receiver.wait_for_line("main: the vault has the WAL from ")
        mark = ledger.mark("last")
        receiver.wait_until_flushed()
        outcome = receiver.stop()
    assert outcome.warnings == [f'main: slot "{SLOT}" had lost the WAL that it should have kept: made anew']
    assert (keeper.info()["holes"], keeper.info()["status"]) == ([], "ok")
    keeper.restore().assert_is_at(mark)


def test_a_full_spool_stops_receiving(make_keeper: MakeKeeper) -> None:
    """When the vault takes nothing, the spool fills to its bound and no further; when it does again, all arrives."""
    keeper = make_keeper(settings=SMALL, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    archive, aside = keeper.vault / "main" / "wal", keeper.vault / "main" / "wal.aside"
    with Receiver(keeper, "--spool-max=8M") as receiver:
        receiver.wait_until_streaming()
        archive.rename(aside)
        write(cluster, 20)
        mark = ledger.mark("last")
        receiver.wait_for_line("warning: main: the spool is full: ")
        wait_for(
            lambda: any("; the spool keeps it, trying again in " in line for line in receiver.lines),
            "the receiver says that the vault takes nothing",
        )
        assert sum(path.stat().st_size for path in receiver.spool.iterdir()) <= 8 * SEGMENT
        assert int(cluster.value("SELECT 1")) == 1
        aside.rename(archive)
        receiver.wait_for_line("main: the spool has room again: receiving goes on")
        receiver.wait_until_flushed()
        outcome = receiver.stop()
    assert any(
        line.startswith("main: the spool is ") and " % full: 8.0 MiB at most, in " in line for line in outcome.warnings
    )
    keeper.restore().assert_is_at(mark)


def test_a_cut_connection_is_made_again(make_keeper: MakeKeeper) -> None:
    """A cut connection is said with the time of the next try, and the stream goes on where it was."""
    keeper = make_keeper(settings=SMALL, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with Proxy(("127.0.0.1", cluster.port)) as proxy:
        place = ["--host=127.0.0.1", f"--port={proxy.port}"]
        with Receiver(keeper, *place).wait_until_streaming() as receiver:
            ledger.transfer(5)
            proxy.refuse()
            ledger.transfer(5)
            receiver.wait_for_line("warning: main: ")
            proxy.resume()
            mark = ledger.mark("last")
            receiver.wait_until_flushed()
            outcome = receiver.stop()
    assert all("; trying again in " in line for line in outcome.warnings)
    keeper.restore().assert_is_at(mark)


def test_refusals(make_keeper: MakeKeeper, make_cluster: MakeCluster) -> None:
    """A second receiver, a slot without a bound, another cluster, and another cluster's spool are refused."""
    keeper = make_keeper(settings=SMALL, wal_segment_size_mb=1)
    mine = keeper.cluster.value("SELECT system_identifier FROM pg_control_system()")
    with Receiver(keeper).wait_until_streaming() as first:
        assert refusal(keeper) == (
            6,
            [f"error: another pgkeep receive uses the spool {first.spool}", "hint: one is enough for a cluster"],
        )
        assert first.is_running
        first.stop()
    keeper.cluster.configure({"max_slot_wal_keep_size": "-1"})
    keeper.cluster.reload()
    wait_for(lambda: keeper.cluster.value("SHOW max_slot_wal_keep_size") == "-1", "the slot has no bound")
    assert refusal(keeper) == (
        3,
        [
            f'error: main: slot "{SLOT}" could fill the server\'s disk: max_slot_wal_keep_size sets no bound',
            "hint: set max_slot_wal_keep_size (PostgreSQL 13 and later), or allow_unbounded_slot=yes",
        ],
    )
    other = make_cluster("other", wal_segment_size_mb=1, settings=SMALL)
    where = f"{other.socket_directory}:{other.port} as postgres"
    found = other.value("SELECT system_identifier FROM pg_control_system()")
    foreign = (
        3,
        [
            f"error: main: PostgreSQL at {where} has system identifier {found}, the vault's cluster has {mine}",
            "hint: the connection leads to another cluster, or the cluster was initialised anew",
        ],
    )
    assert refusal(keeper, other) == foreign
    # Nor does a vault that takes nothing hide why it ended.
    archive, aside = keeper.vault / "main" / "wal", keeper.vault / "main" / "wal.aside"
    archive.rename(aside)
    with Receiver(keeper, cluster=other) as receiver:
        outcome = receiver.end()
    aside.rename(archive)
    assert (outcome.status, outcome.refusal) == foreign
    assert any(line.endswith("; the spool keeps what is not shipped") for line in outcome.warnings), outcome.lines
    assert other.sql("SELECT slot_name FROM pg_replication_slots") == []
    identity = first.spool / "spool.json"
    identity.write_text(identity.read_text().replace(str(mine), "42"))
    assert refusal(keeper) == (
        3,
        [
            f"error: the spool {first.spool} is for system identifier 42, the vault's cluster has {mine}",
            "hint: give each cluster a spool of its own",
        ],
    )


def refusal(keeper: Keeper, cluster: Cluster | None = None) -> tuple[int, list[str]]:
    """Return the exit status of a receiver that does not begin, and the error with its hint."""
    with Receiver(keeper, cluster=cluster) as receiver:
        outcome = receiver.end()
    return outcome.status, outcome.refusal
