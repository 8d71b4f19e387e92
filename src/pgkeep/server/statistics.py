"""The planner's statistics of a whole database, collected by several sessions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from pgkeep.pg.capabilities import Capabilities
from pgkeep.server.refusals import one_line

_ONLY = "ONLY "
_BATCH_TABLES = 50
_BATCH_BYTES = 8 << 20


def analyze_database(sessions: Sequence[psycopg.Connection[Any]]) -> list[str]:
    """
    Analyze what ``ANALYZE`` without a name does, by all *sessions*, which are in one database, at the same time.

    Returns:
        What could not be analyzed, and why, for people: a partition that is a foreign table nobody answers for is no
        reason to leave all other tables without statistics.

    Raises:
        psycopg.Error: A session is lost or was cancelled; all have ended their work then.
    """
    first, *others = sessions
    batches = deque(_batches(first))
    refused: list[str] = []
    errors: list[BaseException] = []

    def work(session: psycopg.Connection[Any]) -> None:
        try:
            while not errors and (batch := _next(batches)):
                refused.extend(_analyze(session, batch))
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
    return sorted(refused)


def _next(batches: deque[list[str]]) -> list[str]:
    """Return what is to be done next; nothing when all is given out."""
    try:
        return batches.popleft()
    except IndexError:
        return []


def _analyze(session: psycopg.Connection[Any], batch: Sequence[str]) -> list[str]:
    """Analyze the tables of *batch*, one by one where not all can be; return what could not, and why."""
    try:
        session.execute(f"ANALYZE {', '.join(batch)}".encode())
    except psycopg.errors.QueryCanceled:
        raise
    except psycopg.Error as error:
        if session.closed:
            raise
        if len(batch) == 1:
            return [f"{batch[0].removeprefix(_ONLY)}: {one_line(str(error))}"]
        return [line for name in batch for line in _analyze(session, [name])]
    return []


def _batches(session: psycopg.Connection[Any]) -> Iterator[list[str]]:
    """Yield the names of all tables, system catalogs too: the largest first, small ones several at a time."""
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
            yield batch
            batch, total = [], 0
        batch.append(f"{_ONLY}{name}" if has_only else name)
        total += size
    if batch:
        yield batch
