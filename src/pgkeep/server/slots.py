"""Replication slots: what keeps WAL at the server, for one job or between jobs."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from types import TracebackType

import psycopg

from pgkeep.errors import ServerError, SettingsError
from pgkeep.pg.lsn import Lsn
from pgkeep.server import queries
from pgkeep.server.connection import Server, fetch
from pgkeep.server.refusals import OBJECT_IN_USE

_POLL_SECONDS = 0.05
_MOST_NAME_BYTES = 63
_GONE_HINT = "raise max_slot_wal_keep_size, or set archive_dir to where the server archives"


@dataclass(frozen=True, slots=True)
class ReplicationSlot:
    """
    A slot as the server lists it.

    Attributes:
        is_physical: False for a logical slot.
        database: Of a logical slot; empty otherwise.
        plugin: Of a logical slot; empty otherwise.
        is_temporary: Whether it ends with the session that made it.
        is_active: Whether somebody streams from it now.
        restart_lsn: WAL from here on is kept; None when nothing is reserved, or no longer.
        confirmed_flush_lsn: Of a logical slot.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost``; empty for PostgreSQL 12.
        safe_wal_bytes: What may be written before the slot is in danger; None for no limit or not known.
    """

    name: str
    is_physical: bool
    database: str
    plugin: str
    is_temporary: bool
    is_active: bool
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    wal_status: str
    safe_wal_bytes: int | None

    @property
    def is_lost(self) -> bool:
        """Whether WAL that the slot should have kept is gone."""
        return self.wal_status == "lost"


def slot_of(cluster: str) -> str:
    """Return the name of the slot for *cluster*, as far as slots may be called so: ``pgkeep_main``."""
    return f"pgkeep_{re.sub(r'[^a-z0-9_]', '_', cluster.lower())}"[:_MOST_NAME_BYTES]


def slots(server: Server) -> list[ReplicationSlot]:
    """Return all slots of the server, by name."""
    status = "coalesce(wal_status, ''), safe_wal_size" if server.capabilities.has_slot_wal_status else "'', NULL"
    rows = server.rows(
        f"""
        SELECT slot_name, slot_type = 'physical', coalesce(database, ''), coalesce(plugin, ''), temporary, active,
               restart_lsn::text, confirmed_flush_lsn::text, {status}
        FROM pg_replication_slots ORDER BY slot_name
        """
    )
    return [
        ReplicationSlot(
            name=row[0],
            is_physical=row[1],
            database=row[2],
            plugin=row[3],
            is_temporary=row[4],
            is_active=row[5],
            restart_lsn=_lsn(row[6]),
            confirmed_flush_lsn=_lsn(row[7]),
            wal_status=row[8],
            safe_wal_bytes=row[9],
        )
        for row in rows
    ]


def find_slot(server: Server, name: str) -> ReplicationSlot | None:
    """Return the slot called *name*; None when there is none."""
    return next((slot for slot in slots(server) if slot.name == name), None)


def check_slot(server: Server, name: str) -> None:
    """Raise ServerError when the lasting slot *name* is not there, or has lost the WAL that it should have kept."""
    slot = find_slot(server, name)
    if slot is None:
        raise ServerError(f'slot "{name}", which kept WAL between the jobs, is gone', hint="make a Full")
    if slot.is_lost:
        raise ServerError(
            f'slot "{name}" has lost the WAL that it should have kept',
            hint=f"drop it (SELECT pg_drop_replication_slot('{name}')), raise max_slot_wal_keep_size, make a Full",
        )


def check_slot_is_bounded(server: Server, name: str, *, allow_unbounded: bool) -> None:
    """Raise SettingsError when nothing bounds the WAL that the lasting slot *name* would keep, and that is no wish."""
    bound = queries.setting(server, "max_slot_wal_keep_size")
    if bound in (None, "-1") and not allow_unbounded:
        raise SettingsError(
            f'slot "{name}" could fill the server\'s disk: max_slot_wal_keep_size sets no bound',
            hint="set max_slot_wal_keep_size (PostgreSQL 13 and later), or allow_unbounded_slot=yes",
        )


def create_physical_slot(server: Server, name: str) -> Lsn:
    """
    Make a lasting physical slot that keeps WAL from the last checkpoint on, and return from where.

    Such a slot keeps WAL until it is dropped, whoever forgot it: callers see to it that ``max_slot_wal_keep_size`` or
    somebody bounds it.
    """
    text: str = server.value("SELECT lsn::text FROM pg_create_physical_replication_slot(%s, true)", [name])
    return Lsn.parse(text)


def advance_slot(server: Server, name: str, lsn: Lsn, *, timeout_seconds: float = 0.0) -> Lsn:
    """
    Let the server forget the WAL before *lsn* that slot *name* kept, and return where the slot stands now.

    A slot that is in use cannot be moved; *timeout_seconds* is how long to wait for its user to go.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            text: str = server.value(
                "SELECT end_lsn::text FROM pg_replication_slot_advance(%s, %s::pg_lsn)", [name, str(lsn)]
            )
        except ServerError as error:
            cause = error.__cause__
            is_in_use = isinstance(cause, psycopg.Error) and cause.sqlstate == OBJECT_IN_USE
            if not is_in_use or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return Lsn.parse(text)


def drop_slot(server: Server, name: str) -> None:
    """Drop slot *name*; one that somebody uses is refused."""
    server.rows("SELECT pg_drop_replication_slot(%s)", [name])


class TemporarySlot:
    """
    A physical slot that keeps WAL from the last checkpoint on for as long as one job runs.

    It belongs to a session of its own and ends with it, so that no accident of pgkeep's leaves a slot behind. It is not
    streamed from: only the session that made it could; it keeps WAL by being there. It must exist before a backup
    starts, so that the backup's WAL cannot be recycled before it is read.
    """

    def __init__(self, server: Server) -> None:
        """Open the session and make the slot."""
        self._server = server
        # Names are shared by all clients of a server; 63 bytes, lower case, digits and underscores.
        self.name = f"pgkeep_{secrets.token_hex(8)}"
        self._session = server.session()
        try:
            fetch(
                self._session,
                "SELECT pg_create_physical_replication_slot(%s, true, true)",
                [self.name],
                where=server.where,
            )
            self.restart_lsn = self.check()
        except BaseException:
            self._session.close()
            raise

    def __enter__(self) -> TemporarySlot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and the slot with it."""
        self._session.close()

    def check(self) -> Lsn:
        """Return from where WAL is kept; raise ServerError when the slot has lost it or is gone."""
        status = "wal_status" if self._server.capabilities.has_slot_wal_status else "'reserved'"
        try:
            rows = fetch(
                self._session,
                f"SELECT restart_lsn::text, {status} FROM pg_replication_slots WHERE slot_name = %s",
                [self.name],
                where=self._server.where,
            )
        except ServerError as error:
            if not self._session.closed:
                raise
            # To take a slot's WAL away, the server ends the session that holds it.
            raise ServerError(f"the slot that kept this job's WAL is gone: {error.message}", hint=_GONE_HINT) from error
        if not rows or rows[0][0] is None or rows[0][1] == "lost":
            raise ServerError(f"the slot that kept this job's WAL at {self._server.where} has lost it", hint=_GONE_HINT)
        return Lsn.parse(rows[0][0])


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)
