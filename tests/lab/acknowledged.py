"""Commits that a server has acknowledged: what must be there whatever dies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster, wait_for

SCHEMA = "CREATE TABLE IF NOT EXISTS acknowledged (worker text, number int, PRIMARY KEY (worker, number))"
_COMMIT = """
BEGIN; INSERT INTO acknowledged VALUES ('{worker}', {number}); COMMIT;
SELECT max(flush_lsn)::text FROM pg_stat_replication WHERE application_name = '{slot}'
"""


class Commits:
    """
    Workers that commit numbers in order, each until its connection breaks.

    Attributes:
        last: By worker, the last number whose commit was acknowledged.
        durable: Up to where the receiver had acknowledged the WAL when the last of them returned, as the server knew.
    """

    def __init__(self, cluster: Cluster, name: str, *, slot: str, workers: int = 4) -> None:
        """Start the workers; *name* tells those of one round from those of another, *slot* is the receiver's."""
        self._slot = slot
        self.last = {f"{name}-{number}": 0 for number in range(workers)}
        self.durable = Lsn(0)
        self._turn = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(cluster, worker), daemon=True) for worker in self.last
        ]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """How many commits were acknowledged."""
        return sum(self.last.values())

    def wait_for(self, more: int) -> None:
        """Wait until *more* commits have been acknowledged from now on."""
        goal = self.count + more
        wait_for(lambda: self.count >= goal, f"{more} more commits")

    def join(self) -> None:
        """Wait until every worker has lost its connection."""
        for thread in self._threads:
            thread.join()

    def assert_in(self, value: Callable[[str], object]) -> None:
        """Assert that a restored server, asked by *value*, has all that was acknowledged and all that was before it."""
        for worker, last in self.last.items():
            found = value(f"SELECT max(number) FROM acknowledged WHERE worker = '{worker}'") or 0
            count = value(f"SELECT count(*) FROM acknowledged WHERE worker = '{worker}'")
            # The one under way may have become durable without its acknowledgement having arrived.
            assert found in (last, last + 1), f"{worker}: {last} were acknowledged, {found} are there"
            assert count == found

    def _run(self, cluster: Cluster, worker: str) -> None:
        with suppress(psycopg.Error), cluster.connect() as connection:
            while True:
                number = self.last[worker] + 1
                # In one message: no commit is acknowledged here without what the server knew behind it.
                cursor = connection.execute(_COMMIT.format(worker=worker, number=number, slot=self._slot))
                while cursor.nextset():
                    pass
                row = cursor.fetchone()
                self.last[worker] = number
                with self._turn:
                    self.durable = max(self.durable, Lsn.parse(row[0]) if row and row[0] else Lsn(0))
