"""Connections to a running PostgreSQL server, for questions and for the replication protocol."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pgkeep.errors import ServerError
from pgkeep.pg.capabilities import Capabilities, check_supported
from pgkeep.pg.lsn import Timeline
from pgkeep.server.refusals import connection_refusal, query_refusal
from pgkeep.server.replication import Replication

Row = tuple[Any, ...]

# A peer that vanished without a word is noticed within two minutes: not after the kernel's two hours while we listen,
# nor after the quarter of an hour for which it repeats what we said last.
_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 60,
    "keepalives_interval": 15,
    "keepalives_count": 4,
    "tcp_user_timeout": 120_000,
}

_SESSION_SETTINGS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
    "search_path": "pg_catalog",
    "extra_float_digits": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTarget:
    """
    Where a server is and as whom to connect; what is empty is left to libpq (service, environment, defaults).

    Attributes:
        host: Name, address, or the directory of the Unix socket; several, separated by commas, are tried in order.
        port: 0 for libpq's default.
        user: The role that logs in.
        password: Never shown; a pgpass file is better.
        pgpass_file: Path of a pgpass file.
        service: Name of a section of the connection service file.
        dbname: The database for questions; ``postgres`` when neither this nor *service* names one.
        connect_timeout_seconds: Per address; 0 waits without end.
        role: The role to become after login (``SET ROLE``); not for replication, which the login role must be able to.
        hostaddr: The address that *host* has; empty to look it up. The name still counts for TLS and pgpass files.
        target_session_attrs: As in libpq; chooses among several hosts.
        application_name: As ``pg_stat_activity`` shows it.
    """

    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    pgpass_file: str = ""
    service: str = ""
    dbname: str = ""
    sslmode: str = ""
    sslrootcert: str = ""
    sslcert: str = ""
    sslkey: str = ""
    connect_timeout_seconds: int = 10
    role: str = ""
    hostaddr: str = ""
    target_session_attrs: str = ""
    application_name: str = "pgkeep"

    @property
    def where(self) -> str:
        """The place for messages: ``db1:5432 as backup``."""
        if self.host:
            place = f"{self.host}:{self.port}" if self.port else self.host
        elif self.service:
            place = f"service {self.service}"
        else:
            place = f"port {self.port}" if self.port else "the default address"
        return f"{place} as {self.user}" if self.user else place

    def parameters(self, *, dbname: str | None = None, replication: bool = False) -> dict[str, str | int]:
        """Return libpq's connection parameters, the password among them."""
        given: dict[str, str | int] = {
            "host": self.host,
            "hostaddr": self.hostaddr,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "passfile": self.pgpass_file,
            "service": self.service,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "target_session_attrs": self.target_session_attrs,
            "application_name": self.application_name,
        }
        parameters = {name: value for name, value in given.items() if value}
        name = dbname if dbname is not None else self.dbname
        if name or not self.service:
            parameters["dbname"] = name or "postgres"
        parameters["connect_timeout"] = self.connect_timeout_seconds
        parameters["client_encoding"] = "UTF8"
        parameters.update(_KEEPALIVES)
        if replication:
            parameters["replication"] = "true"
        return parameters


def connect(
    target: ConnectionTarget, *, dbname: str | None = None, replication: bool = False, options: str = ""
) -> psycopg.Connection[Row]:
    """
    Return a new session, in autocommit.

    Args:
        target: Where and as whom.
        dbname: Another database than the target's.
        replication: Speak the replication protocol; such a session belongs to no database.
        options: Command-line options for the session, as libpq's ``options``.

    Raises:
        ServerError: The server cannot be reached or does not let us in; the secret is not in the message.
    """
    if not replication:
        return _attempt(target, target.parameters(dbname=dbname), options=options)
    # pg_basebackup looks its password up under the database name "replication", so pgpass files have such lines;
    # where there is none, the line of the target's own database will do.
    names = ["replication", target.dbname or "postgres"]
    if target.password:
        del names[1:]
    for last, name in [(name == names[-1], name) for name in names]:
        try:
            return _attempt(target, target.parameters(dbname=name, replication=True), options=options)
        except _PasswordMissing:
            if last:
                raise
    raise AssertionError("unreachable")


class _PasswordMissing(ServerError):
    """The server asks for a password and there is none."""


def _attempt(target: ConnectionTarget, parameters: dict[str, str | int], *, options: str) -> psycopg.Connection[Row]:
    if options:
        parameters["options"] = options
    try:
        return psycopg.Connection.connect(make_conninfo("", **parameters), autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        refused = connection_refusal(error, where=target.where, replication="replication" in parameters)
        if error.pgconn is not None and error.pgconn.needs_password:
            refused = _PasswordMissing(refused.message, hint=refused.hint)
        # Without its cause: that one holds the connection string, and with it the password.
        raise refused from None


class Server:
    """
    One running server: a session for questions, and as many further sessions as a job needs.

    Use it as a context manager, or call ``close``. Questions may be asked from several threads; they take turns.
    """

    def __init__(self, target: ConnectionTarget, session: psycopg.Connection[Row]) -> None:
        self.target = target
        self.sql = session
        self.version = session.info.server_version
        check_supported(self.version)
        self.version_text = session.info.parameter_status("server_version") or ""
        self.capabilities = Capabilities(self.version)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, target: ConnectionTarget) -> Server:
        """
        Connect to *target*.

        Raises:
            ServerError: It cannot be reached, refuses, or is of a version that pgkeep does not support.
        """
        session = connect(target)
        try:
            server = cls(target, session)
            server._prepare(session)
        except BaseException:
            session.close()
            raise
        return server

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session for questions; sessions opened from here live on."""
        self.sql.close()

    @property
    def where(self) -> str:
        """The place for messages."""
        return self.target.where

    def session(self, *, dbname: str | None = None) -> psycopg.Connection[Row]:
        """Return a further session for questions, set up like the first; the caller closes it."""
        session = connect(self.target, dbname=dbname)
        try:
            self._prepare(session)
        except BaseException:
            session.close()
            raise
        return session

    def replication(self, *, cancelled: threading.Event | None = None, is_patient: bool = True) -> Replication:
        """
        Return a new conversation in the replication protocol; the caller closes it.

        Args:
            cancelled: When another thread sets it, what the conversation waits for ends with a ServerError.
            is_patient: Whether the server bears with a silence longer than its own ``wal_sender_timeout``.
        """
        # Settings must come with the connection: a physical walsender knows no SET. Whoever takes WAL may have to wait
        # for its own sink for longer than the default minute.
        options = ["-c wal_sender_timeout=10min"] if is_patient else []
        if self.capabilities.has_idle_session_timeout:
            options.append("-c idle_session_timeout=0")
        session = connect(self.target, replication=True, options=" ".join(options))
        return Replication(session, where=self.where, cancelled=cancelled)

    def history_text(self, timeline: Timeline) -> str:
        """Return the history file of *timeline*, empty for the first; by the replication protocol, from any host."""
        if timeline == 1:
            return ""
        with self.replication() as replication:
            return replication.timeline_history(timeline).content.decode("utf-8", "surrogateescape")

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return all rows of *query*; raise ServerError when the server refuses or is gone."""
        with self._lock:
            return fetch(self.sql, query, parameters, where=self.where)

    def row(self, query: str, parameters: Sequence[object] = ()) -> Row:
        """Return the only row of *query*."""
        rows = self.rows(query, parameters)
        if len(rows) != 1:
            raise ServerError(f"PostgreSQL at {self.where} answered {len(rows)} rows where one was expected")
        return rows[0]

    def value(self, query: str, parameters: Sequence[object] = ()) -> Any:
        """Return the only column of the only row of *query*."""
        return self.row(query, parameters)[0]

    def _prepare(self, session: psycopg.Connection[Row]) -> None:
        settings = dict(_SESSION_SETTINGS)
        if self.capabilities.has_idle_session_timeout:
            settings["idle_session_timeout"] = "0"
        if self.capabilities.has_transaction_timeout:
            settings["transaction_timeout"] = "0"
        columns = ", ".join(["pg_catalog.set_config(%s, %s, false)"] * len(settings))
        fetch(session, f"select {columns}", [part for pair in settings.items() for part in pair], where=self.where)
        if self.target.role:
            role = psycopg.sql.Identifier(self.target.role).as_string(session)
            fetch(session, f"set role {role}", where=self.where)


def fetch(session: psycopg.Connection[Row], query: str, parameters: Sequence[object] = (), *, where: str) -> list[Row]:
    """Run *query* in *session* and return its rows, none for a command; raise ServerError when that fails."""
    try:
        cursor = session.execute(query.encode(), parameters or None)
        return cursor.fetchall() if cursor.description is not None else []
    except psycopg.Error as error:
        raise query_refusal(error, where=where) from error
