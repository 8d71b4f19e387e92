"""The ledger's invariant and the digests that prove a restore."""

from __future__ import annotations

import psycopg
import pytest

from tests.lab.cluster import Cluster
from tests.lab.ledger import Ledger, Load, check_ledger, digest, digest_all, fill


def test_holds_under_load_and_after_a_kill(cluster: Cluster) -> None:
    """The invariant holds while workers transfer, and after kill -9 in the middle of it."""
    ledger = Ledger(cluster)
    with ledger.load(workers=3) as load:
        load.wait_for(50)
        assert ledger.check() >= 50
        load.wait_for(50)
    interrupted = Load(ledger, workers=1)
    interrupted.wait_for(20)
    cluster.kill()
    with pytest.raises(psycopg.OperationalError):
        # One may have been committed and not counted.
        interrupted.wait_for(2)
    interrupted.stop()
    cluster.start()
    assert ledger.check() >= 120


def test_notices_a_lost_row(cluster: Cluster) -> None:
    """A deleted entry breaks the invariant and changes the digest of its table only."""
    ledger = Ledger(cluster)
    ledger.transfer(20, seed=1)
    with cluster.connect() as connection:
        before = digest(connection)
        connection.execute("DELETE FROM ledger_entry WHERE id = 7")
        with pytest.raises(AssertionError, match=r"balances add up to 0, [12] accounts differ from their entries"):
            check_ledger(connection)
        after = digest(connection)
    assert {name for name in before if before[name] != after[name]} == {"public.ledger_entry"}


def test_digest_does_not_depend_on_order_or_place(cluster: Cluster) -> None:
    """The same rows give the same digest after VACUUM FULL, in another order, and in another database."""
    with cluster.connect() as connection:
        connection.execute("CREATE TABLE t (n int, f float, d date, b bytea, i interval)")
        connection.execute("INSERT INTO t SELECT n, n / 3.0, '2026-01-01', 'x', '1 day' FROM generate_series(1, 99) n")
        connection.execute("CREATE UNLOGGED TABLE u AS TABLE t")
        connection.execute("CREATE TABLE empty ()")
        before = digest(connection)
        connection.execute("CREATE INDEX ON t (n DESC)")
        connection.execute("CLUSTER t USING t_n_idx")
        connection.execute("SET datestyle = 'German'; SET bytea_output = 'escape'; SET search_path = public")
        assert digest(connection) == before
        assert set(before) == {"public.t", "public.empty"}
        assert set(digest(connection, unlogged=True)) == {"public.t", "public.u", "public.empty"}
        connection.execute("SELECT lo_from_bytea(0, 'large')")
        assert set(digest(connection)) == {"public.t", "public.empty", "(large objects)"}
        before = digest(connection)
    cluster.sql('CREATE DATABASE "we/ird ""näme""" TEMPLATE postgres')
    digests = digest_all(cluster)
    assert digests['we/ird "näme"'] == digests["postgres"] == before


def test_marks_are_in_order(cluster: Cluster) -> None:
    """What a load commits after a mark is later than it by time, LSN and transaction id."""
    ledger = Ledger(cluster)
    with ledger.load() as load:
        load.wait_for(5)
        first = ledger.mark("first")
        load.wait_for(5)
        second = ledger.mark("second")
    assert first.time < second.time
    assert int(first.xid) + 5 <= int(second.xid)
    assert cluster.value("SELECT %s::pg_lsn < %s::pg_lsn", [first.lsn, second.lsn])
    entries = "SELECT count(*) FROM ledger_entry WHERE at <= %s AND xmin::text::bigint > %s"
    assert cluster.value(entries, [first.time, int(first.xid)]) == 0


def test_fill_makes_a_table_of_the_size(cluster: Cluster) -> None:
    """A filled table has about the size that was asked for."""
    with cluster.connect() as connection:
        fill(connection, "big", size_mb=8)
    assert 7 << 20 < cluster.value("SELECT pg_table_size('big')") < 11 << 20
