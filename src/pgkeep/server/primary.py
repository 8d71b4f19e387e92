"""The server that a restored standby will follow, asked in the replication protocol, as the standby itself will."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo

from pgkeep.errors import FormatError, ServerError, UsageError
from pgkeep.pg.conninfo import parse_conninfo
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.server.refusals import connection_refusal
from pgkeep.server.replication import Replication

CONNECT_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Primary:
    """
    What a primary says of itself; it may be a standby that others follow.

    Attributes:
        where: The place for messages.
        system_identifier: Of its cluster.
        timeline: The one that it writes.
        history_text: The timeline's history file; empty on timeline 1.
        flushed: Up to where it has WAL.
        major: Its major version.
    """

    where: str
    system_identifier: SystemIdentifier
    timeline: Timeline
    history_text: str
    flushed: Lsn
    major: int

    @property
    def history(self) -> TimelineHistory:
        """The history of its timeline."""
        if not self.history_text:
            return TimelineHistory.single(self.timeline)
        return TimelineHistory.parse(self.history_text, timeline=self.timeline)


def primary_place(conninfo: str) -> str:
    """
    Return where the connection string *conninfo* leads, for messages.

    Raises:
        UsageError: It is no connection string, or names no server; the message shows nothing of it.
    """
    try:
        words = dict(parse_conninfo(conninfo))
    except FormatError as error:
        raise UsageError(f"primary_conninfo is {error}") from error
    host = words.get("host") or words.get("hostaddr") or ""
    if not host and not words.get("service"):
        raise UsageError(
            "primary_conninfo names no server",
            hint="write it like host=pg-primary.example.net user=replicator passfile=/etc/pgkeep/pgpass",
        )
    place = f"{host}:{words['port']}" if host and words.get("port") else host or f"service {words['service']}"
    return f"{place} as {words['user']}" if words.get("user") else place


def ask_primary(conninfo: str) -> Primary:
    """
    Ask the server that *conninfo* leads to; raise ServerError when it cannot be reached or refuses.

    A standby connects with this very string. What it finds in its own account's environment, a pgpass file or a
    certificate, pgkeep's account may not have.
    """
    where = primary_place(conninfo)
    try:
        complete = make_conninfo(
            conninfo,
            dbname="replication",
            replication="true",
            application_name="pgkeep",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
        )
        session = psycopg.Connection.connect(complete, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        # Without its cause, which may hold a password.
        raise connection_refusal(error, where=where, replication=True) from None
    with Replication(session, where=where) as replication:
        identity = replication.identify()
        text = b""
        if identity.timeline > 1:
            text = replication.timeline_history(identity.timeline).content
        try:
            primary = Primary(
                where,
                identity.system_identifier,
                identity.timeline,
                text.decode("utf-8", "surrogateescape"),
                identity.lsn,
                replication.version // 10000,
            )
            _ = primary.history
        except FormatError as error:
            raise ServerError(f"PostgreSQL at {where} gave a history that cannot be read: {error}") from error
    return primary
