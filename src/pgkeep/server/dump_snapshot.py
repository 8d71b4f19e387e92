"""
One database held still for several sessions: locks first, then a snapshot that others import.

The order must hold. A lock that is taken after the snapshot comes too late for a TRUNCATE or a rewriting ALTER TABLE in
between: to an older snapshot such a table is empty. So the tables are listed, locked, and only then is the snapshot
taken; what the snapshot shows and the locks do not cover is left to pg_dump, which has the same few milliseconds.

The sessions that import the snapshot lock with NOWAIT. They would otherwise queue behind an ALTER that waits for the
session that holds the snapshot, while that one waits for them: a deadlock of which the server sees one half.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pgkeep.errors import ServerError
from pgkeep.server.database import lock_holders, refusal_as_error
from pgkeep.server.table_facts import TableFacts

if TYPE_CHECKING:
    from pgkeep.server.connection import Server

_ATTEMPTS = 5
"""How often tables may vanish between being listed and being locked."""
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_CONFLICT = "canceling statement due to conflict with recovery"
_SETTINGS = (
    # A table that one may not read in full must be an error, not fewer rows.
    "SET row_security TO off",
    # Rows in the order of the table, from its beginning, by this one process.
    "SET synchronize_seqscans TO off",
    "SET max_parallel_workers_per_gather TO 0",
    "SET enable_seqscan TO off",
    "SET jit TO off",
)

List = Callable[["psycopg.Connection[Any]"], list[TableFacts]]


class DumpSnapshot:
    """
    The session that holds the locks and the snapshot of one database; ``close`` ends it.

    Args:
        server: The server.
        dbname: The database.
        list_tables: Returns the tables that are going to be read by importers of the snapshot.
        lock_wait_timeout_seconds: How long to wait for a lock; 0 for ever.

    Attributes:
        name: The exported snapshot, as ``SET TRANSACTION SNAPSHOT`` takes it.
        tables: Those of *list_tables* that are locked and stand in the snapshot as they did before.

    Raises:
        ServerError: A lock is not to be had; the hint names who holds it.
    """

    def __init__(self, server: Server, dbname: str, *, list_tables: List, lock_wait_timeout_seconds: float) -> None:
        self.dbname = dbname
        self.tables: list[TableFacts] = []
        self.where = server.where
        self._server = server
        self._session = server.session(dbname=dbname)
        self._limit = lock_wait_timeout_seconds
        try:
            with waiting_for_locks(server, dbname, self._limit), refusal_as_error(f'cannot hold database "{dbname}"'):
                set_lock_timeout(self._session, self._limit)
                self._lock(list_tables)
                [(self.name,)] = self._session.execute("SELECT pg_catalog.pg_export_snapshot()").fetchall()
                locked = {table.identity for table in self.tables}
                self.tables = [table for table in list_tables(self._session) if table.identity in locked]
        except BaseException:
            self._session.close()
            raise

    def importer(self) -> psycopg.Connection[Any]:
        """
        Return a further session in the same snapshot, with locks of its own on the tables; the caller closes it.

        Raises:
            ServerError: Somebody waits for an exclusive lock on one of them.
        """
        session = self._server.session(dbname=self.dbname)
        try:
            with refusal_as_error(f'cannot join the snapshot of database "{self.dbname}"'):
                for setting in _SETTINGS:
                    session.execute(setting.encode())
                session.execute(_BEGIN)
                session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(self.name)))
            with self._named_blockers(), refusal_as_error(f'cannot lock tables of database "{self.dbname}"'):
                if self.tables:
                    session.execute(_lock_statement(self.tables, nowait=True))
        except BaseException:
            session.close()
            raise
        return session

    def query(self, ask: Callable[[psycopg.Connection[Any]], Any]) -> Any:
        """Return what *ask* finds in the snapshot."""
        with refusal_as_error(f'cannot read database "{self.dbname}"'):
            return ask(self._session)

    def confirm(self) -> None:
        """Raise ServerError when the session is gone, and with it the locks: then nothing holds the tables still."""
        with refusal_as_error(f'the session that held database "{self.dbname}" still is gone'):
            self._session.execute("SELECT 1")

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def _lock(self, list_tables: List) -> None:
        """Begin the transaction with every listed table locked; what vanishes meanwhile is listed no more."""
        for attempt in range(_ATTEMPTS):
            self.tables = list_tables(self._session)
            self._session.execute(_BEGIN)
            if not self.tables:
                return
            try:
                # No snapshot yet: LOCK TABLE needs none.
                self._session.execute(_lock_statement(self.tables, nowait=False))
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                self._session.execute("ROLLBACK")
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    @contextlib.contextmanager
    def _named_blockers(self) -> Any:
        try:
            yield
        except ServerError as error:
            cause = error.__cause__
            if not isinstance(cause, psycopg.errors.LockNotAvailable):
                raise
            raise ServerError(
                f'a table of database "{self.dbname}" is to be locked exclusively by another session',
                hint="; ".join([*self._holders(), "run the job at another time"]),
            ) from error

    def _holders(self) -> list[str]:
        return _holders(self._server, self.dbname)


def set_lock_timeout(session: psycopg.Connection[Any], seconds: float) -> None:
    """Have *session* wait for a lock this long; 0 for ever."""
    session.execute("SELECT pg_catalog.set_config('lock_timeout', %s, false)", [f"{round(seconds * 1000)}ms"])


@contextlib.contextmanager
def waiting_for_locks(server: Server, dbname: str, limit_seconds: float) -> Any:
    """Say who holds the lock when one is not to be had in time."""
    try:
        yield
    except ServerError as error:
        if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
            raise
        raise ServerError(
            f'no lock on a table of database "{dbname}" within {limit_seconds:g} s',
            hint="; ".join([*_holders(server, dbname), "raise lock_wait_timeout or run the job at another time"]),
        ) from error


def with_recovery_advice(error: ServerError) -> ServerError:
    """Return *error* with what to do where replay on a standby ended a query."""
    if _CONFLICT not in error.message:
        return error
    return ServerError(
        error.message,
        hint="replay on this standby needed what the dump was reading: raise max_standby_streaming_delay on it, "
        "or set hot_standby_feedback=on",
    )


def check_no_pooler(session: psycopg.Connection[Any], *, where: str) -> None:
    """
    Refuse a session that a pooler gives to several clients: locks and snapshots belong to one server process.

    Raises:
        ServerError: The process that answers is not the one that the connection was made to.
    """
    with refusal_as_error("cannot ask for the server process"):
        [(answering,)] = session.execute("SELECT pg_catalog.pg_backend_pid()").fetchall()
    promised = session.info.backend_pid
    if answering != promised:
        raise ServerError(
            f"the connection to {where} goes through a pooler: the server process is {answering}, the connection "
            f"was told {promised}",
            hint="give the host and port of the server itself: a snapshot cannot be shared through a pooler",
        )


def _lock_statement(tables: Sequence[TableFacts], *, nowait: bool) -> sql.Composed:
    names = sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(table.schema, table.name)) for table in tables)
    return sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE{}").format(names, sql.SQL(" NOWAIT" if nowait else ""))


def _holders(server: Server, dbname: str) -> list[str]:
    with contextlib.suppress(ServerError):
        session = server.session(dbname=dbname)
        with contextlib.closing(session), refusal_as_error("cannot look for the holder"):
            return lock_holders(session)
    return []
