"""Ask a running server, primary or standby, what it is to other servers: slots, subscriptions, whom it follows."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from pgkeep.errors import FormatError, ServerError
from pgkeep.pg.conninfo import without_secrets
from pgkeep.pg.replication_state import Follower, Publication, ReplicationState, ServerRole, Slot, Subscription
from pgkeep.server import queries
from pgkeep.server.connection import ConnectionTarget, Server, fetch
from pgkeep.server.standby import standby_targets

Warn = Callable[[str], None]

# What makes a standby one, and what a primary asks of its standbys and slots.
_ROLE_SETTINGS = (
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "recovery_target_timeline",
    "recovery_min_apply_delay",
    "hot_standby_feedback",
    "cluster_name",
    "synchronous_standby_names",
    "synchronized_standby_slots",
    "sync_replication_slots",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "wal_level",
)
_SIGNALS = ("standby.signal", "recovery.signal")
_SAID = 3
"""How many databases a warning names."""
_STREAMING = {False: "off", "f": "off", True: "on", "t": "on", "p": "parallel"}
_RIGHTS_HINT = "grant the role pg_read_all_data and pg_read_all_settings, or SELECT on pg_subscription"


def capture(server: Server, *, standby_hosts: Sequence[str] = (), warn: Warn) -> ReplicationState:
    """
    Return the replication state of *server*.

    Args:
        server: A primary or a standby.
        standby_hosts: Other servers of the cluster to ask, as ``standby_host`` has them, with the credentials for
            *server*; those that cannot be asked are warned of.
        warn: Takes one line for each thing that the role may not know.

    Raises:
        ServerError: The server does not answer.
    """
    return ReplicationState(
        captured_at=_iso(queries.server_time(server)),
        major=server.capabilities.major,
        server=_role(server, warn),
        slots=_slots(server),
        subscriptions=subscriptions(server, warn=warn),
        publications=_publications(server, warn),
        followers=_followers(server),
        standbys=_standbys(server, standby_hosts, warn) if standby_hosts else [],
    )


def subscriptions(server: Server, *, warn: Warn) -> list[Subscription]:
    """Return all subscriptions of the cluster, by database and name, each once, without passwords."""
    # An ordinary role may read some columns only, and which there are differs by version.
    readable = [
        row[0]
        for row in server.rows(
            """
            SELECT attname FROM pg_attribute WHERE attrelid = 'pg_catalog.pg_subscription'::regclass
               AND attnum > 0 AND NOT attisdropped AND has_column_privilege(attrelid, attnum, 'SELECT')
            ORDER BY attnum
            """
        )
    ]
    pairs = ", ".join(f"'{name}', s.{name}" for name in readable)
    rows = server.rows(
        f"""
        SELECT coalesce(d.datname, ''), coalesce(pg_get_userbyid(s.subowner), ''), jsonb_build_object({pairs})
        FROM pg_subscription s LEFT JOIN pg_database d ON d.oid = s.subdbid
        ORDER BY d.datname COLLATE "C", s.subname COLLATE "C"
        """
    )
    if rows and "subconninfo" not in readable:
        warn("how subscriptions reach their publishers is not recorded: the role may not read it; " + _RIGHTS_HINT)
    return [_subscription(database, owner, columns, warn) for database, owner, columns in rows]


def _subscription(database: str, owner: str, columns: dict[str, Any], warn: Warn) -> Subscription:
    name = columns["subname"]
    conninfo, has_password = _masked(columns.get("subconninfo") or "", f'subscription "{name}"', warn)
    skip_lsn = columns.get("subskiplsn") or "0/0"
    return Subscription(
        name=name,
        database=database,
        owner=owner,
        enabled=columns["subenabled"],
        conninfo=conninfo,
        has_password=has_password,
        slot_name=columns.get("subslotname") or "",
        publications=columns["subpublications"],
        synchronous_commit=columns.get("subsynccommit", "off"),
        binary=columns.get("subbinary", False),
        streaming=_STREAMING[columns.get("substream", False)],
        two_phase=columns.get("subtwophasestate", "d") != "d",
        disable_on_error=columns.get("subdisableonerr", False),
        skip_lsn="" if skip_lsn == "0/0" else skip_lsn,
        password_required=columns.get("subpasswordrequired", True),
        run_as_owner=columns.get("subrunasowner", False),
        origin=columns.get("suborigin", "any"),
        failover=columns.get("subfailover", False),
    )


def _slots(server: Server) -> list[Slot]:
    # Every column that there is: an older server has fewer, and the others keep their defaults.
    rows = server.rows(
        "SELECT jsonb_strip_nulls(to_jsonb(s)) FROM pg_replication_slots s "
        r"WHERE NOT (temporary AND slot_name ~ '^pgkeep_[0-9a-f]{16}$') ORDER BY slot_name"
    )
    return [msgspec.convert(row[0], Slot) for row in rows]


def _role(server: Server, warn: Warn) -> ServerRole:
    # On a standby the one function is an error, on a primary the other knows nothing: only one of them is called.
    is_standby, lsn = server.row(
        """
        SELECT r, CASE WHEN r THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text
        FROM (SELECT pg_is_in_recovery() AS r) s
        """
    )
    found: dict[str, str] = dict(
        server.rows(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s) ORDER BY name",
            [list(_ROLE_SETTINGS)],
        )
    )
    if is_standby and "primary_conninfo" not in found:
        warn("primary_conninfo is not recorded: the role may not read it; " + _RIGHTS_HINT)
    settings = {name: value for name, value in found.items() if value}
    if "restore_command" in settings:
        # A command may hold a key of somebody's store: only its program is named.
        settings["restore_command"] = _program_of(settings["restore_command"])
    has_password = False
    if settings.get("primary_conninfo"):
        settings["primary_conninfo"], has_password = _masked(settings["primary_conninfo"], "primary_conninfo", warn)
    return ServerRole(
        host=server.sql.info.host if not server.sql.info.host.startswith("/") else "",
        port=server.sql.info.port,
        is_standby=is_standby,
        lsn=lsn or "",
        signal_files=_signal_files(server),
        settings={name: value for name, value in settings.items() if value},
        has_password=has_password,
    )


def _signal_files(server: Server) -> list[str] | None:
    if not queries.may_execute(server, "pg_stat_file(text, boolean)"):
        return None
    return [
        name for name in _SIGNALS if server.value("SELECT (pg_stat_file(%s, true)).modification IS NOT NULL", [name])
    ]


def _followers(server: Server) -> list[Follower]:
    rows = server.rows(
        """
        SELECT coalesce(r.application_name, ''), coalesce(host(r.client_addr), ''), r.state,
               coalesce(r.sync_state, ''), coalesce(s.slot_name, '')
        FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
        WHERE r.state IN ('streaming', 'catchup') AND r.application_name <> current_setting('application_name')
        ORDER BY 1, 2, r.pid
        """
    )
    names = ("application_name", "client_addr", "state", "sync_state", "slot_name")
    return [Follower(**dict(zip(names, row, strict=True))) for row in rows]


def _publications(server: Server, warn: Warn) -> list[Publication]:
    found: list[Publication] = []
    refused: list[str] = []
    problem = ""
    if queries.setting(server, "wal_level") != "logical":
        # Nobody can subscribe to one.
        return found
    for database in queries.databases(server):
        if not database.allows_connections:
            continue
        try:
            with contextlib.closing(server.session(dbname=database.name)) as session:
                rows = fetch(
                    session,
                    "SELECT pubname, pg_get_userbyid(pubowner), puballtables FROM pg_publication "
                    'ORDER BY pubname COLLATE "C"',
                    where=server.where,
                )
        except ServerError as error:
            refused.append(f'"{database.name}"')
            problem = error.message
            continue
        found += [
            Publication(name=name, database=database.name, owner=owner, all_tables=all_tables)
            for name, owner, all_tables in rows
        ]
    if refused:
        more = f" and {len(refused) - _SAID} more" if len(refused) > _SAID else ""
        warn(f"publications of database {', '.join(refused[:_SAID])}{more} are not recorded: {problem}")
    return found


def _standbys(server: Server, hosts: Sequence[str], warn: Warn) -> list[ServerRole]:
    targets = standby_targets(replace(server.target, hostaddr=""), hosts)
    return [role for target in targets if (role := _ask_standby(server, target, warn)) is not None]


def _ask_standby(server: Server, target: ConnectionTarget, warn: Warn) -> ServerRole | None:
    place = (server.sql.info.host, server.sql.info.port)
    if (target.host, target.port or place[1]) == place:
        return None
    try:
        with Server.open(replace(target, target_session_attrs="")) as standby:
            if queries.identify(standby).system_identifier != queries.identify(server).system_identifier:
                warn(f"{standby.where} is not recorded as a standby: it is a server of another cluster")
                return None
            return msgspec.structs.replace(_role(standby, warn), slots=_slots(standby))
    except ServerError as error:
        warn(f"{target.where} is not recorded as a standby: {error.message}")
        return None


def _masked(conninfo: str, what: str, warn: Warn) -> tuple[str, bool]:
    try:
        return without_secrets(conninfo)
    except FormatError:
        # Nobody knows which part of it would be a password.
        warn(f"{what} is recorded without its connection string, which cannot be read")
        return "", True


def _program_of(command: str) -> str:
    """Return the first word of *command* that sets no variable."""
    return next((word for word in command.split() if "=" not in word), "")


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="seconds")
