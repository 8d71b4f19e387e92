"""
``pgkeep demo pitr_block``: a chain of changed blocks, told as it happens.

A server works under load; a Full and three backups of changed blocks are made while rows change, a table comes and one
loses its end; two tables are dropped by accident; the chain is rolled forward in place, and replay leads to the moment
before, row for row.
"""

from __future__ import annotations

import time

from pgkeep.cli.demo import LOAD_SECONDS, SCHEMA, TABLES, Demo, digests, moment_of, tell
from pgkeep.errors import CheckFailed

_TABLE = """
CREATE TABLE history AS SELECT g AS id, md5(g::text) || md5((g * 7)::text) AS note FROM generate_series(1, 200000) g;
VACUUM history;
"""
_CHANGES = {
    "incremental": "UPDATE history SET note = 'changed' WHERE id % 4000 = 0",
    "differential": "CREATE TABLE later AS SELECT g AS id FROM generate_series(1, 5000) g",
    "incremental again": "DELETE FROM history WHERE id > 190000",
}
_ALL_TABLES = (*TABLES, "history", "later")


class PitrBlockDemo(Demo):
    """The story of a chain of changed blocks."""

    mode = "pitr_block"
    configuration = "summarize_wal = on\nwal_summary_keep_time = '14d'\n"

    def _tell_story(self) -> None:
        self._pgkeep("init", "demo", "--vault", str(self._vault), *self._server_options())
        with self._connect(self._port) as session:
            for statement in (SCHEMA + _TABLE).split(";\n")[:-1]:
                session.execute(statement.encode())
        with self._load():
            time.sleep(LOAD_SECONDS)
            self._backup("full")
            for level, change in _CHANGES.items():
                time.sleep(LOAD_SECONDS)
                with self._connect(self._port) as session:
                    tell(change)
                    session.execute(change.encode())
                self._backup(level.partition(" ")[0])
            time.sleep(LOAD_SECONDS)
        with self._connect(self._port) as session:
            before, moment = digests(session, _ALL_TABLES), moment_of(session)
            tell(f"the moment before the accident: {moment}, {before['transfer'][0]} transfers")
            session.execute("DROP TABLE history, orders")
            tell("DROP TABLE history, orders   -- the accident")
            session.execute("UPDATE account SET balance = 0")
        self._backup("incremental")
        self._restore_beside(moment, before)
        if list(self._restored.rglob("INCREMENTAL.*")):
            raise CheckFailed("files of changed blocks are left in the restored cluster")
        self._pgkeep("verify", "demo", f"--vault={self._vault}")
