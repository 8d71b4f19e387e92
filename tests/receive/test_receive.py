"""WAL is received as it is written, and comes back to the last record."""

from __future__ import annotations

from pathlib import Path

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster
from tests.lab.ledger import Ledger
from tests.receive.receiver import SETTINGS, SLOT, Receiver
from tests.restore.conftest import MakeKeeper


def test_everything_received_comes_back(make_keeper: MakeKeeper) -> None:
    """A stopped receiver has shipped all up to the last commit, in whole segments and a partial one, in 100 MiB."""
    keeper = make_keeper(settings=SETTINGS)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with Receiver(keeper).wait_until_streaming() as receiver:
        ledger.transfer(20)
        whole = cluster.switch_wal()
        ledger.transfer(20)
        mark = ledger.mark("last")
        partial = str(cluster.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())"))
        receiver.wait_until_flushed()
        receiver.wait_until_shipped(whole)
        status = Path(f"/proc/{receiver.pid}/status").read_text()
        [peak] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
        assert peak < 100 << 10
        outcome = receiver.stop()
        assert receiver.spooled() == [f"{partial}.partial"]
    assert outcome.warnings == []
    assert cluster.sql("SELECT slot_name, slot_type, temporary, active FROM pg_replication_slots") == [
        (SLOT, "physical", False, False)
    ]
    receiver.wait_until_shipped(f"{partial}.partial")
    restored = keeper.restore()
    restored.assert_is_at(mark)


def commit_across(cluster: Cluster) -> None:
    """Insert a row in a transaction whose commit record begins in one segment and ends in the next."""
    size = 1 << 20
    with cluster.connect() as connection:

        def position() -> Lsn:
            row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            assert row is not None
            return Lsn.parse(row[0])

        def write(count: int) -> None:
            connection.execute("SELECT pg_logical_emit_message(false, '', repeat('x', %s))", [count])

        for _ in range(20):
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE IF NOT EXISTS across (number int)")
            connection.execute("INSERT INTO across VALUES (1)")
            while (left := size - position() % size) > 7000 or left < 1000:
                write(left - 5000 if left > 10000 else 1500)
            before = position()
            write(100)
            overhead = position() - before - 100
            write(size - position() % size - overhead - 24)
            before = position()
            connection.execute("COMMIT")
            after = position()
            if before // size < after // size and after % size < 1000:
                return
    raise AssertionError("no commit record came to lie across two segments")


def test_a_commit_across_two_segments_comes_back(make_keeper: MakeKeeper) -> None:
    """A commit of which the last segment received holds nothing but the rest of the record is there after a restore."""
    keeper = make_keeper(settings=SETTINGS, wal_segment_size_mb=1)
    keeper.backup("full", "local")
    with Receiver(keeper).wait_until_streaming() as receiver:
        commit_across(keeper.cluster)
        receiver.wait_until_flushed()
        # What comes behind it would hide what this is about.
        keeper.cluster.kill()
        receiver.wait_for_line("warning: main: ")
        receiver.stop()
    assert keeper.restore().value("SELECT count(*) FROM across") == 1
