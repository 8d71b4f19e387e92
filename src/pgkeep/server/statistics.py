"""The planner's statistics of a whole database, collected by several sessions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pgkeep.pg.capabilities import Capabilities

if TYPE_CHECKING:
    import psycopg

_BATCH_TABLES = 50
_BATCH_BYTES = 8 << 20


def analyze_database(sessions: Sequence[psycopg.Connection[Any]]) -> None:
    """
    Analyze what ``ANALYZE`` without a name does, by all *sessions*, which are in one database, at the same time.

    Raises:
        psycopg.Error: The first that any of them met; all have ended their work then.
    """
    first, *others = sessions
    statements = deque(_statements(first))
    errors: list[BaseException] = []

    def work(session: psycopg.Connection[Any]) -> None:
        try:
            while statement := _next(statements, errors):
                session.execute(statement.encode())
        except BaseException as error:  # noqa: BLE001 - carried to the caller, whatever it is
            errors.append(error)

    threads = [threading.Thread(target=work, args=(one,), name="analyze", daemon=True) for one in others]
    for thread in threads:
        thread.start()
    # An interruption meets this thread, and ends the work of all as an error does.
    work(first)
    for session, thread in zip(others, threads, strict=True):
        if errors:
            session.cancel()
        thread.join()
    if errors:
        raise errors[0]


def _next(statements: deque[str], errors: Sequence[BaseException]) -> str:
    """Return what is to be done next; empty for nothing."""
    if errors:
        return ""
    try:
        return statements.popleft()
    except IndexError:
        return ""


def _statements(session: psycopg.Connection[Any]) -> Iterator[str]:
    """Yield statements for all tables, system catalogs too: the largest first, small ones several at a time."""
    # Without ONLY what is beneath a table is analyzed with it: partitions of a partitioned one, from 18 on children.
    has_only = Capabilities(session.info.server_version).has_analyze_only
    rows = session.execute(
        """
        SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname),
               CASE c.relkind WHEN 'p' THEN 0 ELSE coalesce(pg_catalog.pg_relation_size(c.oid), 0) END
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'm', 'p') AND c.relpersistence <> 't' AND (%s OR NOT c.relispartition)
        ORDER BY c.relkind = 'p' DESC, 2 DESC, c.oid
        """,
        [has_only],
    ).fetchall()
    batch: list[str] = []
    total = 0
    for name, size in rows:
        if batch and (len(batch) == _BATCH_TABLES or total + size > _BATCH_BYTES):
            yield f"ANALYZE {', '.join(batch)}"
            batch, total = [], 0
        batch.append(f"ONLY {name}" if has_only else name)
        total += size
    if batch:
        yield f"ANALYZE {', '.join(batch)}"
