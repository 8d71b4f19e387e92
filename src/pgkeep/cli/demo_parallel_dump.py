"""
``pgkeep demo parallel_dump``: one large table in pieces, told as it happens.

A server works under load; a plan says what would be divided; the dump is made, a table is dropped by accident, and the
database comes back beside the original: the rows of the dropped table are those that were there, the ledger balances.
"""

from __future__ import annotations

import time

from pgkeep.cli.demo import DATABASE, LOAD_SECONDS, SCHEMA, Demo, digests, tell
from pgkeep.errors import CheckFailed

_ROWS = 700_000
_TABLE = f"""
CREATE TABLE history (id bigint PRIMARY KEY, at timestamptz NOT NULL, note text);
INSERT INTO history SELECT g, now() - g * interval '1 minute', md5(g::text) || md5((g * 7)::text)
  FROM generate_series(1, {_ROWS}) g;
CREATE INDEX ON history (at);
"""
_DIGEST = b"SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY id)) FROM history t"


class ParallelDumpDemo(Demo):
    """The story of a parallel dump."""

    def _tell_story(self) -> None:
        self._pgkeep("init", "demo", "--vault", str(self._vault), *self._server_options())
        with self._connect(self._port) as session:
            session.execute(SCHEMA.encode())
            session.execute(_TABLE.encode())
        options = ["--mode=parallel_dump", "--parallel-tables=2", "--large-table-threshold=20M"]
        arguments = [*options, f"--vault={self._vault}", f"--bin-dir={self._bin_dir}", *self._server_options()]
        self._pgkeep("backup", "demo", *arguments, "--plan")
        with self._load():
            time.sleep(LOAD_SECONDS)
            with self._connect(self._port) as session:
                before = session.execute(_DIGEST).fetchone()
            self._pgkeep("backup", "demo", *arguments)
            time.sleep(LOAD_SECONDS)
        with self._connect(self._port) as session:
            session.execute("DROP TABLE history")
            tell("DROP TABLE history   -- the accident")
        target = [f"--target-database={DATABASE}", "--new-database=back", f"--tmpdir={self._directory / 'staging'}"]
        arguments = [*target, f"--vault={self._vault}", f"--bin-dir={self._bin_dir}", *self._server_options()]
        self._pgkeep("restore", "demo", *arguments, "--plan")
        self._pgkeep("restore", "demo", *arguments)
        with self._connect(self._port, "back") as session:
            after = session.execute(_DIGEST).fetchone()
            (imbalance,) = session.execute("SELECT sum(balance) FROM account").fetchone() or (None,)
            moved = digests(session)["transfer"][0]
        tell(f"table history: {after[0] if after else 0} rows: {'equal' if before == after else 'DIFFERENT'}")
        tell(f"{moved} transfers, balances add up to {imbalance}")
        if before != after or imbalance != 0:
            raise CheckFailed("the restored rows are not those of the moment of the dump")
