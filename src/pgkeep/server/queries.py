"""One function per question to a running server."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from pgkeep.errors import ServerError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.replay_settings import REPLAY_MINIMUMS
from pgkeep.pg.wal import check_segment_size
from pgkeep.server.connection import Server

GRANTS_HINT = 'run "pgkeep grants" for the rights that the role needs'

# What a restore needs to know, and what a person wants to see beside a backup.
RECOVERY_SETTINGS = (
    *REPLAY_MINIMUMS,
    "wal_level",
    "wal_log_hints",
    "track_commit_timestamp",
    "block_size",
    "wal_block_size",
    "wal_segment_size",
    "segment_size",
    "data_checksums",
    "full_page_writes",
    "hot_standby",
    "archive_mode",
    "summarize_wal",
    "shared_preload_libraries",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "log_timezone",
    "TimeZone",
    "server_encoding",
    "server_version",
    "lc_collate",
    "lc_ctype",
    "port",
)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """
    Which cluster a server is, and where in its history it stands.

    Attributes:
        system_identifier: Given by initdb.
        timeline: The timeline written to; on a standby the newest that its control file knows of.
        catalog_version: Part of the name of a tablespace's version directory.
        is_in_recovery: Whether it is a standby.
    """

    system_identifier: SystemIdentifier
    timeline: Timeline
    catalog_version: int
    is_in_recovery: bool


@dataclass(frozen=True, slots=True)
class ServerDatabase:
    """A database; *size_bytes* is None when the role may not ask."""

    name: str
    oid: int
    size_bytes: int | None
    is_template: bool
    allows_connections: bool
    encoding: str


@dataclass(frozen=True, slots=True)
class ServerTablespace:
    """
    A tablespace that a user made.

    Attributes:
        location: Absolute path on the server; empty for an in-place tablespace, a directory in ``pg_tblspc``.
    """

    oid: int
    name: str
    location: str

    @property
    def is_in_place(self) -> bool:
        """Whether its files are inside the data directory."""
        return not self.location


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Paths on the server of what makes a cluster; the three files may lie outside the data directory."""

    data_directory: str
    config_file: str
    hba_file: str
    ident_file: str


@dataclass(frozen=True, slots=True)
class Archiving:
    """How a server archives: *mode* is ``off``, ``on`` or ``always``; one of *command* and *library* may be empty."""

    mode: str
    command: str
    library: str


@dataclass(frozen=True, slots=True)
class ArchiverStatus:
    """What the archiver did since its statistics were reset; names are empty and times None when it did nothing."""

    archived_count: int
    last_archived_wal: str
    last_archived_time: dt.datetime | None
    failed_count: int
    last_failed_wal: str
    last_failed_time: dt.datetime | None


@dataclass(frozen=True, slots=True)
class ServerCheckpoint:
    """The last checkpoint (on a standby: restartpoint) in the control file; *time* is aware, whole seconds."""

    lsn: Lsn
    redo_lsn: Lsn
    timeline: Timeline
    time: dt.datetime


@dataclass(frozen=True, slots=True)
class RoleRights:
    """What the session's role may do; *memberships* are the predefined roles whose rights it has."""

    name: str
    is_superuser: bool
    can_replicate: bool
    can_bypass_row_security: bool
    memberships: frozenset[str]


def identify(server: Server) -> ServerIdentity:
    """Return which cluster *server* is."""
    # A primary's timeline is in the name of the file it writes: after a promotion the control file still names the
    # old one until the next checkpoint. On a standby that function is refused, and the control file is what there is.
    row = server.row(
        """
        SELECT s.system_identifier, s.catalog_version_no, r.recovering,
               CASE WHEN r.recovering
                    THEN (SELECT greatest(c.timeline_id, m.min_recovery_end_timeline)
                          FROM pg_control_checkpoint() c, pg_control_recovery() m)::text
                    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint::text END
        FROM pg_control_system() s, (SELECT pg_is_in_recovery() AS recovering) r
        """
    )
    # system_identifier is a signed bigint there.
    return ServerIdentity(SystemIdentifier(row[0] % (1 << 64)), Timeline(int(row[3])), row[1], row[2])


def is_in_recovery(server: Server) -> bool:
    """Tell whether *server* is a standby, or still recovering."""
    return bool(server.value("SELECT pg_is_in_recovery()"))


def databases(server: Server) -> list[ServerDatabase]:
    """Return all databases by name, templates and those that allow no connections included."""
    rows = server.rows(
        """
        SELECT datname, oid::bigint,
               CASE WHEN has_database_privilege(oid, 'CONNECT')
                      OR pg_has_role('pg_read_all_stats', 'USAGE') THEN pg_database_size(oid) END,
               datistemplate, datallowconn, pg_encoding_to_char(encoding)
        FROM pg_database ORDER BY datname COLLATE "C"
        """
    )
    return [ServerDatabase(*row) for row in rows]


def tablespaces(server: Server) -> list[ServerTablespace]:
    """Return the tablespaces that users made, by OID; the two built-in ones have no directory of their own."""
    rows = server.rows(
        """
        SELECT oid::bigint, spcname, pg_tablespace_location(oid) FROM pg_tablespace
        WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid
        """
    )
    # For an in-place tablespace the location is relative: pg_tblspc/16385.
    return [ServerTablespace(oid, name, location if location.startswith("/") else "") for oid, name, location in rows]


def check_stream_is_complete(server: Server) -> None:
    """Raise ServerError when BASE_BACKUP of this server would silently leave tablespaces out."""
    if server.capabilities.streams_in_place_tablespaces:
        return
    in_place = [tablespace.name for tablespace in tablespaces(server) if tablespace.is_in_place]
    if in_place:
        raise ServerError(
            f"PostgreSQL {server.capabilities.major} at {server.where} does not stream the files of the in-place "
            f"tablespace {', '.join(in_place)}",
            hint="use transport=local on the server's host, or PostgreSQL 16 or later",
        )


def recovery_settings(server: Server) -> dict[str, str]:
    """Return the settings that matter for a recovery, as ``SHOW`` prints them; those that the role may not see lack."""
    rows = server.rows(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s) ORDER BY name",
        [list(RECOVERY_SETTINGS)],
    )
    return dict(rows)


def setting(server: Server, name: str) -> str | None:
    """Return one setting as ``SHOW`` prints it; None when there is no such setting."""
    value: str | None = server.value("SELECT current_setting(%s, true)", [name])
    return value


def files(server: Server) -> ServerFiles:
    """Return where the cluster's files are; raise ServerError when the role may not know."""
    names = ("data_directory", "config_file", "hba_file", "ident_file")
    rows = server.rows("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(names)])
    found: dict[str, str] = dict(rows)
    if "data_directory" not in found:
        raise ServerError(
            f"the role that is connected to PostgreSQL at {server.where} may not see data_directory", hint=GRANTS_HINT
        )
    return ServerFiles(*(found.get(name, "") for name in names))


def wal_segment_size(server: Server) -> int:
    """Return the size of the server's WAL segments in bytes."""
    # pg_settings counts this one in bytes.
    return check_segment_size(int(server.value("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'")))


def has_data_checksums(server: Server) -> bool:
    """Tell whether the cluster's pages carry checksums."""
    return bool(server.value("SELECT current_setting('data_checksums') = 'on'"))


def archiving(server: Server) -> Archiving:
    """Return how the server archives WAL."""
    mode, command, library = server.row(
        """
        SELECT current_setting('archive_mode'), current_setting('archive_command'),
               coalesce(current_setting('archive_library', true), '')
        """
    )
    # SHOW says "(disabled)" for a command that archive_mode makes meaningless.
    return Archiving(mode, "" if command == "(disabled)" else command, library)


def archiver_status(server: Server) -> ArchiverStatus:
    """Return what the archiver has done."""
    return ArchiverStatus(
        *server.row(
            """
            SELECT archived_count, coalesce(last_archived_wal, ''), last_archived_time,
                   failed_count, coalesce(last_failed_wal, ''), last_failed_time
            FROM pg_stat_archiver
            """
        )
    )


def current_lsn(server: Server) -> Lsn:
    """Return the end of WAL: inserted on a primary, replayed on a standby."""
    return _lsn(
        server,
        """
        SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text
        """,
    )


def flushed_lsn(server: Server) -> Lsn:
    """Return up to where WAL is on the server's disk; on a standby at least what is replayed."""
    return _lsn(
        server,
        """
        SELECT CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
                    ELSE pg_current_wal_flush_lsn() END::text
        """,
    )


def who_waits_for_apply(server: Server) -> list[str]:
    """Return for which roles and databases ``synchronous_commit`` is ``remote_apply``, in words."""
    rows = server.rows(
        """
        SELECT coalesce(nullif(concat_ws(' in ', 'role "' || rolname || '"', 'database "' || datname || '"'), ''),
                        'all roles')
        FROM pg_db_role_setting LEFT JOIN pg_roles ON pg_roles.oid = setrole
             LEFT JOIN pg_database ON pg_database.oid = setdatabase
        WHERE 'synchronous_commit=remote_apply' = ANY (setconfig) ORDER BY 1
        """
    )
    return [str(row[0]) for row in rows]


def last_checkpoint(server: Server) -> ServerCheckpoint:
    """Return the last checkpoint."""
    lsn, redo_lsn, timeline, time = server.row(
        "SELECT checkpoint_lsn::text, redo_lsn::text, timeline_id, checkpoint_time FROM pg_control_checkpoint()"
    )
    return ServerCheckpoint(Lsn.parse(lsn), Lsn.parse(redo_lsn), Timeline(timeline), time)


def running_transactions(server: Server) -> tuple[int, int]:
    """Return the oldest transaction id that may still run, and the first one not yet given out; both of 32 bits."""
    oldest, following = server.row(
        "SELECT txid_snapshot_xmin(s), txid_snapshot_xmax(s) FROM (SELECT txid_current_snapshot() AS s) t"
    )
    return oldest % (1 << 32), following % (1 << 32)


def switch_wal(server: Server) -> Lsn:
    """Begin a new WAL segment, so that the current one is complete; return where the old one was left."""
    return _lsn(server, "SELECT pg_switch_wal()::text")


def create_restore_point(server: Server, name: str) -> Lsn:
    """Write a named restore point into WAL; return the end of its record."""
    return _lsn(server, "SELECT pg_create_restore_point(%s)::text", [name])


def checkpoint(server: Server) -> None:
    """Make the server write a checkpoint at once."""
    server.rows("CHECKPOINT")


def wal_file_names(server: Server) -> list[str]:
    """Return the names of the files in the server's pg_wal, sorted."""
    return [row[0] for row in server.rows("SELECT name FROM pg_ls_waldir() ORDER BY name")]


def server_time(server: Server) -> dt.datetime:
    """Return the server's clock, aware."""
    time: dt.datetime = server.value("SELECT clock_timestamp()")
    return time


def start_time(server: Server) -> dt.datetime:
    """Return when the server started, aware."""
    time: dt.datetime = server.value("SELECT pg_postmaster_start_time()")
    return time


def libraries(server: Server) -> dict[str, str]:
    """
    Return the versions of what sorts text, by ``libc`` and ``icu``; a library that nothing uses lacks.

    An index on text is corrupt when it is restored on a machine where they sort differently. Of ICU's 800 collations
    the root is asked, which all build on: opening each takes a fortieth of a second.
    """
    providers = """
        SELECT collprovider, pg_collation_actual_version(oid) AS version FROM pg_collation
        WHERE collprovider = 'c' OR collprovider = 'i' AND collname = 'und-x-icu'
    """
    if server.capabilities.has_database_collation_version:
        providers += """
            UNION ALL SELECT datlocprovider, pg_database_collation_actual_version(oid) FROM pg_database
            WHERE datlocprovider IN ('c', 'i')
        """
    rows = server.rows(f"SELECT collprovider, max(version) FROM ({providers}) p WHERE version <> '' GROUP BY 1")
    names = {"c": "libc", "i": "icu"}
    return {names[_letter(provider)]: version for provider, version in sorted(rows)}


def role_rights(server: Server) -> RoleRights:
    """Return what the session's role may do."""
    name, superuser, replication, bypass = server.row(
        """
        SELECT rolname, rolsuper, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = current_user
        """
    )
    memberships = server.rows(
        r"SELECT rolname FROM pg_roles WHERE rolname LIKE 'pg\_%%' AND pg_has_role(oid, 'USAGE')", ()
    )
    return RoleRights(name, superuser, replication, bypass, frozenset(row[0] for row in memberships))


def may_execute(server: Server, function: str) -> bool:
    """Tell whether the role may call *function*, given with its argument types; False when there is none."""
    return bool(
        server.value("SELECT coalesce(has_function_privilege(to_regprocedure(%s), 'EXECUTE'), false)", [function])
    )


def _lsn(server: Server, query: str, parameters: list[object] | None = None) -> Lsn:
    text = server.value(query, parameters or ())
    if text is None:
        raise ServerError(f"PostgreSQL at {server.where} knows no LSN yet: it has replayed nothing since its start")
    return Lsn.parse(text)


def _letter(value: object) -> str:
    # The type "char" arrives as str or as bytes, as the client encoding has it.
    return value.decode() if isinstance(value, bytes) else str(value)
