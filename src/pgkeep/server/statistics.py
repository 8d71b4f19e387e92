"""The planner's statistics of a whole database, collected by several sessions."""

from __future__ import annotations

import contextlib
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
_LOOK_SECONDS = 0.1

# Insufficient resources, operator intervention, system error, internal error: a server that says so of a table will say
# it again when the table is read, or is about to go.
_GRAVE = ("53", "57", "58", "XX")


def analyze_database(sessions: Sequence[psycopg.Connection[Any]]) -> list[str]:
    """
    Analyze what ``ANALYZE`` without a name does, by all *sessions*, which are in one database, at the same time.

    Returns:
        What could not be analyzed, and why, for people: a partition that is a foreign table nobody answers for is no
        reason to leave all other tables without statistics.

    Raises:
        psycopg.Error: A session is lost or was cancelled, or the server has no room, cannot read what it has, or the
            like; all have ended their work then.
    """
    first, *others = sessions
    batches = deque(_batches(first))
    refused: list[str] = []
    errors: list[BaseException] = []

    def work(session: psycopg.Connection[Any]) -> None:
        while not errors and (batch := _next(batches)):
            refused.extend(_analyze(session, batch))

    def help_out(session: psycopg.Connection[Any]) -> None:
        try:
            work(session)
        except BaseException as error:  # noqa: BLE001 - carried to the caller, whatever it is
            errors.append(error)

    threads = [threading.Thread(target=help_out, args=(one,), name="analyze", daemon=True) for one in others]
    try:
        for thread in threads:
            thread.start()
        work(first)
        for thread in threads:
            while thread.is_alive() and not errors:
                thread.join(_LOOK_SECONDS)
    except BaseException as error:  # noqa: BLE001 - raised below, when nobody works any more
        # An interruption meets this thread, and what others meet then is a consequence.
        errors.insert(0, error)
    if errors:
        _end(others, threads)
        raise errors[0]
    return sorted(refused)


def _end(sessions: Sequence[psycopg.Connection[Any]], threads: Sequence[threading.Thread]) -> None:
    """Cancel what the *sessions* do in their *threads*, and wait until it has ended."""
    for session, thread in zip(sessions, threads, strict=True):
        while thread.is_alive():
            # More than once: one that comes between two statements meets nothing. One that fails is no reason to leave
            # the others at work.
            with contextlib.suppress(psycopg.Error):
                session.cancel()
            thread.join(_LOOK_SECONDS)


def _next(batches: deque[list[str]]) -> list[str]:
    """Return what is to be done next; nothing when all is given out."""
    try:
        return batches.popleft()
    except IndexError:
        return []


def _analyze(session: psycopg.Connection[Any], batch: Sequence[str]) -> list[str]:
    """
    Analyze the tables of *batch*, one by one where not all can be; return what could not, and why.

    Raises:
        psycopg.Error: The session is lost or was cancelled; or the server itself is in trouble, not some foreign one.
    """
    try:
        session.execute(f"ANALYZE {', '.join(batch)}".encode())
    except psycopg.errors.QueryCanceled:
        raise
    except psycopg.Error as error:
        if session.closed:
            raise
        if len(batch) > 1:
            return [line for name in batch for line in _analyze(session, [name])]
        name = batch[0].removeprefix(_ONLY)
        partitions, has_foreign = _beneath(session, name)
        # A foreign table's error is told in the foreign server's words, and by its class.
        if (error.sqlstate or "").startswith(_GRAVE) and not has_foreign:
            raise
        refused = [f"{name}: {one_line(str(error))}"]
        if name != batch[0]:
            # With ONLY, what is beneath it is given out by itself.
            return refused
        return refused + [line for partition in partitions for line in _analyze(session, [partition])]
    return []


def _beneath(session: psycopg.Connection[Any], name: str) -> tuple[list[str], bool]:
    """Return the partitions directly beneath *name*, and whether it, or anything beneath it, is a foreign table."""
    rows = session.execute(
        """
        WITH RECURSIVE found(oid, parent) AS (
            SELECT %s::pg_catalog.regclass::oid, 0::oid
            UNION SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i JOIN found f ON i.inhparent = f.oid
        )
        SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname), c.relkind = 'f',
               c.relispartition AND f.parent = %s::pg_catalog.regclass::oid
        FROM found f JOIN pg_catalog.pg_class c ON c.oid = f.oid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        ORDER BY c.oid
        """,
        [name, name],
    ).fetchall()
    return [name for name, _, is_partition in rows if is_partition], any(row[1] for row in rows)


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
