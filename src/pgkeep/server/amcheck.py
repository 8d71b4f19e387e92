"""
Checking tables and indexes with the extension ``amcheck``, as ``pg_amcheck --heapallindexed`` does, in any version.

The extension is made where it is missing, in a transaction that is rolled back: the cluster stays as it was restored.
Each transaction checks a few relations only, since every one of them stays locked to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from pgkeep.errors import ServerError
from pgkeep.server.connection import Server, fetch
from pgkeep.server.refusals import query_refusal

RELATIONS_PER_TRANSACTION = 64
_SCHEMA = "pgkeep_amcheck"
_LISTED_FAULTS = 3

# Temporary ones belong to sessions that are no more. An unlogged one is empty until recovery ends.
_USABLE = """
    c.relpersistence <> 't' AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery())
    AND (NOT c.relisshared OR %s)
"""
_INDEXES = f"""
    SELECT c.oid::int8, c.oid::regclass::text
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    JOIN pg_class t ON t.oid = i.indrelid
    WHERE a.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid AND i.indisready AND {_USABLE}
      AND t.relam < 16384
    ORDER BY 2
"""
_TABLES = f"""
    SELECT c.oid::int8, c.oid::regclass::text
    FROM pg_class c JOIN pg_am a ON a.oid = c.relam
    WHERE a.amname = 'heap' AND c.relkind IN ('r', 't', 'm') AND {_USABLE} ORDER BY 2
"""


@dataclass(slots=True)
class AmcheckReport:
    """
    What was checked in one database.

    Attributes:
        tables: How many.
        indexes: How many.
        faults: A line for each relation that is damaged.
    """

    tables: int
    indexes: int
    faults: list[str]


def check_relations(server: Server, *, with_shared: bool) -> AmcheckReport:
    """
    Check every B-tree index of the session's database, and every table where the server can.

    Args:
        server: As superuser.
        with_shared: Check what all databases share as well.

    Raises:
        ServerError: The extension is neither there nor to be had.
    """
    indexes = server.rows(_INDEXES, [with_shared])
    tables = server.rows(_TABLES, [with_shared]) if server.capabilities.has_verify_heapam else []
    checks = [("SELECT 0, {schema}.bt_index_check(%s::oid::regclass, true)::text", *index) for index in indexes]
    checks += [("SELECT blkno, msg FROM {schema}.verify_heapam(%s::oid::regclass)", *table) for table in tables]
    faults: list[str] = []
    # Event triggers of the cluster are not to see our extension come.
    fetch(server.sql, "SET session_replication_role = replica", where=server.where)
    while checks:
        # A fault ends its transaction, and the next one goes on behind it.
        with _extension(server) as schema:
            for query, oid, name in _taken(checks):
                fault = _fault(server, query.format(schema=schema), oid)
                if fault:
                    faults.append(f"{name}: {fault}")
                    break
    return AmcheckReport(len(tables), len(indexes), faults)


def _taken(checks: list[tuple[str, int, str]]) -> Iterator[tuple[str, int, str]]:
    """Take checks from the front, as many as fit into a transaction."""
    for _ in range(min(RELATIONS_PER_TRANSACTION, len(checks))):
        yield checks.pop(0)


def _fault(server: Server, query: str, oid: int) -> str:
    """Return what a check says is wrong; empty when nothing is."""
    try:
        rows = server.sql.execute(query.encode(), [oid]).fetchmany(_LISTED_FAULTS)
    except psycopg.Error as error:
        if server.sql.closed:
            raise query_refusal(error, where=server.where) from error
        detail = error.diag.message_detail
        return f"{error.diag.message_primary}" + (f" ({detail})" if detail else "")
    return "; ".join(f"block {block}: {text}" for block, text in rows if text)


class _extension:  # noqa: N801 - read as a statement: with _extension(server) as schema
    """A transaction in which the functions of amcheck are there; it is rolled back."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __enter__(self) -> str:
        self._run("BEGIN")
        found = self._server.rows(
            "SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
            "WHERE extname = 'amcheck'"
        )
        if found:
            return str(found[0][0])
        try:
            self._run(f"CREATE SCHEMA {_SCHEMA}")
            self._run(f"CREATE EXTENSION amcheck WITH SCHEMA {_SCHEMA}")
        except ServerError as refused:
            refused.hint = (
                "verify_amcheck_after needs the extension amcheck: install PostgreSQL's contrib modules on this host, "
                "and a server that is out of recovery where the cluster does not have it yet"
            )
            self._run("ROLLBACK")
            raise
        return _SCHEMA

    def __exit__(self, *_: object) -> None:
        if not self._server.sql.closed:
            self._run("ROLLBACK")

    def _run(self, statement: str) -> None:
        fetch(self._server.sql, statement, where=self._server.where)
