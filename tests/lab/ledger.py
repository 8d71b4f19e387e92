"""
A load with an invariant, and digests of rows: what proves that a restored cluster is the one that was backed up.

Money moves between accounts, and each move is written down in the same transaction. So at every moment that a
transaction can see, the balances add up to zero, and each balance is the sum of its entries.
"""

from __future__ import annotations

import datetime as dt
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from tests.lab.cluster import Cluster, wait_for

Connection = psycopg.Connection[Any]
Digests = dict[str, str]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger_account (id int PRIMARY KEY, balance bigint NOT NULL, filler text NOT NULL);
CREATE TABLE IF NOT EXISTS ledger_entry (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    debtor int NOT NULL, creditor int NOT NULL, amount bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS ledger_mark (name text PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp());
"""

_IMBALANCE = """
SELECT (SELECT coalesce(sum(balance), 0) FROM ledger_account),
       (SELECT count(*) FROM ledger_account AS account
        FULL JOIN (SELECT id, sum(amount) AS sum
                   FROM (SELECT debtor AS id, -amount AS amount FROM ledger_entry
                         UNION ALL SELECT creditor, amount FROM ledger_entry) AS sides
                   GROUP BY id) AS entries USING (id)
        WHERE account.balance IS DISTINCT FROM coalesce(entries.sum, 0)),
       (SELECT count(*) FROM ledger_entry)
"""

# The same row must have the same text whatever a server's settings are.
_PLAIN_TEXT = {
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "search_path": "pg_catalog",
}

_TABLES = """
SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence = ANY(%s) AND n.nspname NOT IN ('pg_catalog', 'information_schema')
      AND n.nspname NOT LIKE 'pg\\_%%'
ORDER BY 1, 2
"""

# Order does not matter: the two halves of each row's digest are added up.
_SUM_OF_ROWS = sql.SQL("""
SELECT concat_ws(':', count(*), sum(('x' || left(hash, 16))::bit(64)::bigint),
                 sum(('x' || right(hash, 16))::bit(64)::bigint))
FROM (SELECT md5({row}) AS hash FROM {table} AS source) AS hashes
""")


@dataclass(frozen=True, slots=True)
class Mark:
    """
    A moment in a cluster's life that a recovery can be asked for, each of its ways to name it, and what was there.

    Attributes:
        name: Of the restore point; also a row of ``ledger_mark`` that was committed last.
        time: After that commit and before the next one; aware, UTC.
        lsn: The end of that commit record.
        xid: Of the transaction that inserted the row.
        digests: Of all tables, at this moment.
    """

    name: str
    time: dt.datetime
    lsn: str
    xid: str
    digests: Digests


class Ledger:
    """The ledger's tables in one database of a cluster."""

    def __init__(self, cluster: Cluster, *, dbname: str = "postgres", accounts: int = 200) -> None:
        """Use the ledger in *dbname*; make its tables if they are missing."""
        self.cluster = cluster
        self.dbname = dbname
        self.accounts = accounts
        # Loads hold it for a transaction, marks for as long as the ledger must stand still.
        self._turn = threading.Lock()
        with self.connect() as connection:
            connection.execute(_SCHEMA)
            connection.execute(
                "INSERT INTO ledger_account SELECT id, 0, repeat(md5(id::text), 4) FROM generate_series(1, %s) AS id "
                "ON CONFLICT DO NOTHING",
                [accounts],
            )

    def connect(self) -> Connection:
        """Return a new connection to the ledger's database, in autocommit mode."""
        return self.cluster.connect(self.dbname)

    def transfer(self, count: int = 1, *, seed: int | None = None) -> None:
        """Make *count* transfers, each in a transaction of its own."""
        chance = random.Random(seed)
        with self.connect() as connection:
            for _ in range(count):
                with self._turn:
                    self._transfer(connection, chance)

    def _transfer(self, connection: Connection, chance: random.Random) -> None:
        # In the order of their ids, so that two transfers never wait for each other.
        first, second = sorted(chance.sample(range(1, self.accounts + 1), 2))
        amount = chance.randint(-1000, 1000)
        with connection.transaction():
            connection.execute("UPDATE ledger_account SET balance = balance - %s WHERE id = %s", [amount, first])
            connection.execute("UPDATE ledger_account SET balance = balance + %s WHERE id = %s", [amount, second])
            connection.execute(
                "INSERT INTO ledger_entry (debtor, creditor, amount) VALUES (%s, %s, %s)", [first, second, amount]
            )

    @contextmanager
    def load(self, *, workers: int = 2) -> Iterator[Load]:
        """Transfer without a pause while the block runs; whatever stops a worker early is raised at its end."""
        load = Load(self, workers)
        try:
            yield load
        finally:
            load.stop()
        load.raise_failure()

    @contextmanager
    def standstill(self) -> Iterator[None]:
        """Let no transfer happen while the block runs."""
        with self._turn:
            yield

    def mark(self, name: str) -> Mark:
        """Record this moment under *name*; what is committed later is later by time, LSN and transaction id."""
        with self.standstill(), self.connect() as connection:
            row = connection.execute(
                "INSERT INTO ledger_mark (name) VALUES (%s) RETURNING txid_current()", [name]
            ).fetchone()
            assert row is not None
            xid = row[0] & 0xFFFFFFFF
            # The record that begins at this LSN is the restore point's own: replaying it or not changes no row.
            lsn, time_of_mark = _one(connection, "SELECT pg_current_wal_insert_lsn(), clock_timestamp()")
            connection.execute("SELECT pg_create_restore_point(%s)", [name])
            digests = digest(connection)
            while _one(connection, "SELECT clock_timestamp()")[0] <= time_of_mark + dt.timedelta(milliseconds=2):
                time.sleep(0.001)
            return Mark(name, time_of_mark.astimezone(dt.UTC), str(lsn), str(xid), digests)

    def check(self, connection: Connection | None = None) -> int:
        """Assert the invariant, on *connection* or in the ledger's own cluster; return the number of entries."""
        if connection is None:
            with self.connect() as own:
                return self.check(own)
        return check_ledger(connection)


class Load:
    """Workers that transfer until they are stopped."""

    def __init__(self, ledger: Ledger, workers: int) -> None:
        """Start *workers* threads."""
        self._ledger = ledger
        self._stop = threading.Event()
        self._counts = [0] * workers
        self._failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def transactions(self) -> int:
        """Transfers committed so far."""
        return sum(self._counts)

    def wait_for(self, more: int, *, timeout_seconds: float = 180) -> None:
        """Wait until *more* transfers have been committed from now on."""
        goal = self.transactions + more
        wait_for(
            lambda: self.transactions >= goal or self._failure is not None,
            f"{more} more transfers",
            timeout_seconds=timeout_seconds,
        )
        self.raise_failure()

    def stop(self) -> None:
        """Stop the workers, and wait for them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def raise_failure(self) -> None:
        """Raise what stopped a worker, once."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        try:
            with self._ledger.connect() as connection:
                while not self._stop.is_set():
                    with self._ledger.standstill():
                        self._ledger._transfer(connection, chance)
                    self._counts[number] += 1
        except psycopg.Error as failure:
            self._failure = failure


def check_ledger(connection: Connection) -> int:
    """Assert the ledger's invariant; return the number of entries."""
    total, unbalanced, entries = _one(connection, _IMBALANCE)
    assert (total, unbalanced) == (0, 0), f"balances add up to {total}, {unbalanced} accounts differ from their entries"
    return int(entries)


def digest(connection: Connection, *, unlogged: bool = False) -> Digests:
    """
    Return a digest of the rows of each table, whatever their order, and of all large objects.

    Args:
        connection: In autocommit mode; a superuser's, so that every row is seen.
        unlogged: Whether to count unlogged tables in, which a recovery empties.

    Returns:
        By ``schema.table``; materialized views too, partitions instead of their parent. ``(large objects)`` is there
        only when there are some.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for name, value in _PLAIN_TEXT.items():
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
        tables = connection.execute(_TABLES, [["p", "u"] if unlogged else ["p"]]).fetchall()
        digests = {
            f"{schema}.{table}": _sum_of_rows(connection, sql.SQL("source::text"), sql.Identifier(schema, table))
            for schema, table in tables
        }
        objects = _sum_of_rows(
            connection, sql.SQL("concat_ws(':', loid, pageno, data)"), sql.Identifier("pg_catalog", "pg_largeobject")
        )
        return digests if objects == "0" else digests | {"(large objects)": objects}


def digest_all(cluster: Cluster, *, unlogged: bool = False) -> dict[str, Digests]:
    """Return the digests of every database of *cluster* that takes connections."""
    names = cluster.sql("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1")
    digests = {}
    for (name,) in names:
        with cluster.connect(name) as connection:
            digests[name] = digest(connection, unlogged=unlogged)
    return digests


def fill(connection: Connection, table: str, *, size_mb: int) -> None:
    """Make a table of about *size_mb* MiB with text that zstd shrinks to about half."""
    rows = size_mb * 1024 * 1024 // 1100
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} AS SELECT n, repeat(md5(n::text), 16) || repeat('pgkeep', 90) AS text "
            "FROM generate_series(1, {}) AS n"
        ).format(sql.Identifier(table), sql.Literal(rows))
    )


def _sum_of_rows(connection: Connection, row: sql.SQL, table: sql.Identifier) -> str:
    (text,) = _one(connection, _SUM_OF_ROWS.format(row=row, table=table))
    return str(text)


def _one(connection: Connection, query: Any) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)
