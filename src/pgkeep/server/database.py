"""The databases of a server: what they are, and how one is made anew, proved empty, renamed and dropped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from pgkeep.errors import ServerError
from pgkeep.pg.capabilities import Capabilities

_FIRST_NORMAL_OID = 16384
"""``FirstNormalObjectId`` in ``access/transam.h``: what initdb made is below."""

_LEAVING_SECONDS = 5.0
"""How long a rename waits for sessions that are leaving: ``CountOtherDBBackends`` in ``storage/ipc/procarray.c``."""
_LOOK_SECONDS = 0.1


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a database's access rights; an empty *grantee* is PUBLIC."""

    grantee: str
    privilege: str
    is_grantable: bool = False


class DatabaseSetting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One ``ALTER DATABASE … SET``, or with *role* one ``ALTER ROLE … IN DATABASE … SET``."""

    name: str
    value: str
    role: str = ""


class DatabaseProperties(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What a dump does not hold of its database, because it belongs to the cluster.

    Attributes:
        name: Its name, as it is.
        oid: Its OID.
        size_bytes: ``pg_database_size``; 0 when it may not be asked for.
        owner: Name of the owning role.
        encoding: Name of the encoding.
        collate: ``LC_COLLATE``.
        ctype: ``LC_CTYPE``.
        locale_provider: ``c`` libc, ``i`` ICU, ``b`` builtin.
        locale: ICU's or the builtin provider's locale; empty for libc.
        icu_rules: Additional collation rules; empty for none.
        tablespace: Name of the default tablespace.
        connection_limit: -1 for none.
        comment: Its comment; empty for none.
        grants: Its access rights; None where the defaults stand.
        settings: What is set for it.
        allows_connections: ``datallowconn``.
        may_connect: Whether the asking role may connect.
        is_valid: False for what an interrupted DROP DATABASE left.
    """

    name: str
    oid: int = 0
    size_bytes: int = 0
    owner: str = ""
    encoding: str = "UTF8"
    collate: str = ""
    ctype: str = ""
    locale_provider: str = "c"
    locale: str = ""
    icu_rules: str = ""
    tablespace: str = "pg_default"
    connection_limit: int = -1
    comment: str = ""
    grants: list[Grant] | None = None
    settings: list[DatabaseSetting] = msgspec.field(default_factory=list)
    allows_connections: bool = True
    may_connect: bool = True
    is_valid: bool = True


def list_databases(connection: psycopg.Connection[Any]) -> list[DatabaseProperties]:
    """Return every database of the server, by name."""
    capabilities = Capabilities(connection.info.server_version)
    provider = "d.datlocprovider::text" if capabilities.has_locale_provider else "'c'"
    locale = f"d.{capabilities.locale_column}" if capabilities.locale_column else "NULL"
    rules = "d.daticurules" if capabilities.has_icu_rules else "NULL"
    rows = connection.execute(
        f"""
        SELECT d.datname, d.oid::int8,
               CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN coalesce(pg_database_size(d.oid), 0) ELSE 0 END,
               pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,
               {provider}, coalesce({locale}, ''), coalesce({rules}, ''),
               t.spcname, d.datconnlimit, coalesce(shobj_description(d.oid, 'pg_database'), ''),
               d.datallowconn, has_database_privilege(d.oid, 'CONNECT'), d.datacl IS NULL
        FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace
        ORDER BY d.datname COLLATE "C"
        """
    ).fetchall()
    grants = _grants(connection)
    settings = _settings(connection)
    return [
        DatabaseProperties(
            name=row[0],
            oid=row[1],
            size_bytes=row[2],
            owner=row[3],
            encoding=row[4],
            collate=row[5],
            ctype=row[6],
            locale_provider=row[7],
            locale=row[8],
            icu_rules=row[9],
            tablespace=row[10],
            connection_limit=max(row[11], -1),
            comment=row[12],
            grants=None if row[15] else grants.get(row[1], []),
            settings=settings.get(row[1], []),
            allows_connections=row[13],
            may_connect=row[14],
            is_valid=row[11] != -2,
        )
        for row in rows
    ]


def is_empty(connection: psycopg.Connection[Any]) -> bool:
    """Whether *connection*'s database holds nothing that a user made, extensions and large objects included."""
    row = connection.execute(
        """
        SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid >= %(first)s)
            OR EXISTS (SELECT FROM pg_catalog.pg_proc WHERE oid >= %(first)s)
            OR EXISTS (SELECT FROM pg_catalog.pg_type WHERE oid >= %(first)s)
            OR EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE oid >= %(first)s AND nspname !~ '^pg_')
            OR EXISTS (SELECT FROM pg_catalog.pg_extension WHERE oid >= %(first)s)
            OR EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)
        """,
        {"first": _FIRST_NORMAL_OID},
    ).fetchone()
    assert row is not None
    return not row[0]


def create_database(
    connection: psycopg.Connection[Any], name: str, like: DatabaseProperties, *, warn: Callable[[str], None]
) -> None:
    """
    Create database *name* from template0, with encoding, locale, owner and tablespace of *like* as far as they exist.

    Raises:
        ServerError: The server refuses, for example for a locale that this host does not have.
    """
    options: list[sql.Composable] = [sql.SQL("TEMPLATE template0")]
    if _exists(connection, "SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", like.owner):
        options.append(sql.SQL("OWNER {}").format(sql.Identifier(like.owner)))
    else:
        warn(f'role "{like.owner}" does not exist here: database "{name}" belongs to "{connection.info.user}"')
    if like.tablespace != "pg_default":
        if _exists(connection, "SELECT FROM pg_catalog.pg_tablespace WHERE spcname = %s", like.tablespace):
            options.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(like.tablespace)))
        else:
            warn(f'tablespace "{like.tablespace}" does not exist here: database "{name}" is in the default one')
    options.append(sql.SQL("ENCODING {}").format(sql.Literal(like.encoding)))
    if like.collate:
        options.append(sql.SQL("LC_COLLATE {}").format(sql.Literal(like.collate)))
        options.append(sql.SQL("LC_CTYPE {}").format(sql.Literal(like.ctype)))
    if Capabilities(connection.info.server_version).has_locale_provider:
        words = {"c": "libc", "i": "icu", "b": "builtin"}
        options.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.SQL(words[like.locale_provider])))
        if like.locale_provider == "i":
            options.append(sql.SQL("ICU_LOCALE {}").format(sql.Literal(like.locale)))
            if like.icu_rules:
                options.append(sql.SQL("ICU_RULES {}").format(sql.Literal(like.icu_rules)))
        elif like.locale_provider == "b":
            options.append(sql.SQL("BUILTIN_LOCALE {}").format(sql.Literal(like.locale)))
    statement = sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(" ").join(options))
    with refusal_as_error(f'cannot create database "{name}"'):
        connection.execute(statement)


def apply_properties(
    connection: psycopg.Connection[Any], name: str, like: DatabaseProperties, *, warn: Callable[[str], None]
) -> None:
    """
    Give database *name* the rights, settings, comment and connection limit of *like*; what is refused is a warning.

    To be called when the content is in: a setting such as ``default_transaction_read_only`` would keep it out.
    """
    database = sql.Identifier(name)
    with _warned(f'comment of database "{name}"', warn):
        if like.comment:
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, sql.Literal(like.comment)))
    with _warned(f'connection limit of database "{name}"', warn):
        if like.connection_limit != -1:
            limit = sql.Literal(like.connection_limit)
            connection.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(database, limit))
    if like.grants is not None:
        with _warned(f'rights on database "{name}"', warn):
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
            if _exists(connection, "SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", like.owner):
                owner = sql.Identifier(like.owner)
                connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(database, owner))
        for grant in like.grants:
            with _warned(f'right {grant.privilege} of "{grant.grantee or "PUBLIC"}" on database "{name}"', warn):
                connection.execute(_grant_statement(database, grant))
    for setting in like.settings:
        with _warned(f'setting {setting.name} of database "{name}"', warn):
            _apply_setting(connection, database, setting)


def rename_database(connection: psycopg.Connection[Any], old: str, new: str) -> None:
    """Rename a database; raise ServerError when somebody is connected to it or the new name is taken."""
    with refusal_as_error(f'cannot rename database "{old}" to "{new}"'):
        connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))


def drop_database(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop a database when it exists, and end the sessions in it; raise ServerError when the server refuses."""
    database = sql.Identifier(name)
    with refusal_as_error(f'cannot drop database "{name}"'):
        if Capabilities(connection.info.server_version).has_forced_drop:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
            return
        connection.execute(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = %s", [name]
        )
        # DROP DATABASE itself waits up to five seconds for sessions that are leaving (CountOtherDBBackends).
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(database))


def users_of(connection: psycopg.Connection[Any], name: str) -> list[str]:
    """
    Return what keeps database *name* from being renamed, each as ``session PID (user, application)`` and its like.

    As the rename itself does (``CountOtherDBBackends``), wait for sessions that are leaving, and pass over autovacuum's
    workers, which it ends.
    """
    deadline = time.monotonic() + _LEAVING_SECONDS
    while (found := _users_of(connection, name)) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return found


def _users_of(connection: psycopg.Connection[Any], name: str) -> list[str]:
    sessions = connection.execute(
        """
        SELECT pid, coalesce(usename::text, backend_type, '?'), coalesce(nullif(application_name, ''), 'no name')
        FROM pg_catalog.pg_stat_activity
        WHERE datname = %s AND pid <> pg_backend_pid()
          -- Who may not read all statistics sees no type.
          AND backend_type IS DISTINCT FROM 'autovacuum worker'
        ORDER BY 1
        """,
        [name],
    ).fetchall()
    prepared = connection.execute(
        "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = %s ORDER BY prepared", [name]
    ).fetchall()
    return [
        *(f"session {pid} ({user}, {application})" for pid, user, application in sessions),
        *(f'prepared transaction "{gid}"' for (gid,) in prepared),
    ]


def lock_holders(connection: psycopg.Connection[Any]) -> list[str]:
    """Return who holds or awaits a lock that keeps pg_dump from a table of *connection*'s database, longest first."""
    rows = connection.execute(
        """
        SELECT a.pid, coalesce(a.usename::text, '?'), coalesce(nullif(a.application_name, ''), 'no name'),
               CASE WHEN l.granted THEN 'holds' ELSE 'waits for' END, l.relation::regclass::text
        FROM pg_catalog.pg_locks l
        JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
        JOIN pg_catalog.pg_class c ON c.oid = l.relation
        JOIN pg_catalog.pg_database d ON d.oid = l.database
        WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND d.datname = current_database()
          AND c.relkind IN ('r', 'p', 'S', 'v', 'm', 'f')
        ORDER BY a.xact_start, 5 LIMIT 3
        """
    ).fetchall()
    return [f"session {row[0]} ({row[1]}, {row[2]}) {row[3]} an exclusive lock on {row[4]}" for row in rows]


@contextlib.contextmanager
def refusal_as_error(failed: str) -> Iterator[None]:
    """Turn an error of the server into a ServerError that begins with *failed*."""
    try:
        yield
    except psycopg.Error as error:
        raise ServerError(f"{failed}: {_told(error)}") from error


@contextlib.contextmanager
def _warned(what: str, warn: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        warn(f"{what} not restored: {_told(error)}")


def _told(error: psycopg.Error) -> str:
    text = error.diag.message_primary or str(error).strip() or type(error).__name__
    detail = error.diag.message_detail
    told = text.splitlines()[0]
    return f"{told} ({detail.rstrip('.')})" if detail else told


def _exists(connection: psycopg.Connection[Any], query: str, name: str) -> bool:
    return connection.execute(query.encode(), [name]).fetchone() is not None


def _grant_statement(database: sql.Identifier, grant: Grant) -> sql.Composed:
    grantee = sql.Identifier(grant.grantee) if grant.grantee else sql.SQL("PUBLIC")
    option = sql.SQL(" WITH GRANT OPTION" if grant.is_grantable else "")
    privilege = sql.SQL({"CREATE": "CREATE", "CONNECT": "CONNECT", "TEMPORARY": "TEMPORARY"}[grant.privilege])
    return sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(privilege, database, grantee, option)


def _apply_setting(connection: psycopg.Connection[Any], database: sql.Identifier, setting: DatabaseSetting) -> None:
    if setting.role:
        whom = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(setting.role), database)
    else:
        whom = sql.SQL("DATABASE {}").format(database)
    name = sql.SQL(".").join(map(sql.Identifier, setting.name.split(".")))
    try:
        # FROM CURRENT takes the value as it is stored; a list such as search_path would be one name as a literal.
        with connection.transaction():
            connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", [setting.name, setting.value])
            connection.execute(sql.SQL("ALTER {} SET {} FROM CURRENT").format(whom, name))
    except psycopg.Error:
        # What cannot be changed in a running session (log_connections) can still be set for later ones.
        connection.execute(sql.SQL("ALTER {} SET {} TO {}").format(whom, name, sql.Literal(setting.value)))


def _grants(connection: psycopg.Connection[Any]) -> dict[int, list[Grant]]:
    found: dict[int, list[Grant]] = {}
    for oid, grantee, privilege, is_grantable in connection.execute(
        """
        SELECT d.oid::int8, CASE WHEN a.grantee = 0 THEN '' ELSE pg_get_userbyid(a.grantee) END,
               a.privilege_type, a.is_grantable
        FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a ORDER BY 1, 2, 3
        """
    ):
        found.setdefault(oid, []).append(Grant(grantee=grantee, privilege=privilege, is_grantable=is_grantable))
    return found


def _settings(connection: psycopg.Connection[Any]) -> dict[int, list[DatabaseSetting]]:
    found: dict[int, list[DatabaseSetting]] = {}
    for oid, role, text in connection.execute(
        """
        SELECT s.setdatabase::int8, coalesce(r.rolname, ''), c.c
        FROM pg_catalog.pg_db_role_setting s CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c(c)
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
        WHERE s.setdatabase <> 0 AND (s.setrole = 0 OR r.oid IS NOT NULL) ORDER BY 1, 2, 3
        """
    ):
        name, _, value = text.partition("=")
        found.setdefault(oid, []).append(DatabaseSetting(name=name, value=value, role=role))
    return found
