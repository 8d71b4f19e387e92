"""
The rights that a role needs, as SQL: per mode, transport and major version, and no more than that.

Function rights live in one database, roles and their memberships in the cluster; so the script is to be run as a
superuser in the database that pgkeep connects to. It can be run again.
"""

from __future__ import annotations

from collections.abc import Iterator

from pgkeep.errors import UsageError
from pgkeep.pg.capabilities import SUPPORTED_MAJORS, Capabilities

MODES = ("dump", "parallel_dump", "pitr", "pitr_block", "cdp")
TRANSPORTS = ("local", "stream")

_MAX_ROLE_BYTES = 63
_BODY_QUOTE = "$pgkeep$"


def grants(mode: str, major: int, role: str, *, transport: str = "local") -> str:
    """
    Return the SQL script that gives *role* what *mode* needs on a server of *major*.

    Args:
        mode: One of ``MODES``.
        major: PostgreSQL's major version, 12 to 18.
        role: Name of the role, unquoted; made when it does not exist, without a password.
        transport: ``local`` or ``stream``; matters for ``pitr`` only.

    Raises:
        UsageError: One of the arguments is none of these.
    """
    if mode not in MODES:
        raise UsageError(f'unknown mode "{mode}", expected one of {", ".join(MODES)}')
    if major not in SUPPORTED_MAJORS:
        raise UsageError(
            f"no rights known for PostgreSQL {major}, expected {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}"
        )
    capabilities = Capabilities(major * 10000)
    if mode == "pitr_block" and not capabilities.has_incremental_backup:
        raise UsageError(f"mode pitr_block needs PostgreSQL 17 or later, this is {major}")
    if transport not in TRANSPORTS:
        raise UsageError(f'unknown transport "{transport}", expected local or stream')
    if not 0 < len(role.encode()) <= _MAX_ROLE_BYTES or "\0" in role or "\n" in role or _BODY_QUOTE in role:
        raise UsageError(f'not a usable role name: "{role}"')
    lines = [
        f"-- Rights of a role for pgkeep's mode {mode}{_how(mode, transport)} on PostgreSQL {major}.",
        "-- Run it with psql as a superuser, in the database that pgkeep connects to. It can be run again.",
        *_role(role),
    ]
    if mode in ("dump", "parallel_dump"):
        lines += _dump_rights(identifier(role), capabilities)
    else:
        lines += _physical_rights(identifier(role), capabilities, is_local=mode == "pitr" and transport == "local")
    return "\n".join(lines) + "\n"


def identifier(name: str) -> str:
    """Return *name* quoted as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return *text* quoted as an SQL string, whatever ``standard_conforming_strings`` says."""
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return f"E{quoted}" if "\\" in text else quoted


def _how(mode: str, transport: str) -> str:
    return f" with transport {transport}" if mode == "pitr" else ""


def _role(role: str) -> Iterator[str]:
    yield ""
    yield f"DO {_BODY_QUOTE} BEGIN"
    yield f"  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal(role)}) THEN"
    yield f"    CREATE ROLE {identifier(role)} LOGIN;"
    yield "  END IF;"
    yield f"END {_BODY_QUOTE};"
    yield f"ALTER ROLE {identifier(role)} LOGIN;"
    yield "-- Give it a password with psql's \\password, or let pg_hba.conf say peer or cert."


def _dump_rights(role: str, capabilities: Capabilities) -> Iterator[str]:
    yield ""
    if not capabilities.has_read_all_data_role:
        yield f"-- PostgreSQL {capabilities.major} has no pg_read_all_data: only a superuser can read every table,"
        yield "-- those made later included, every large object, and the passwords of the roles."
        yield f"ALTER ROLE {role} SUPERUSER;"
        return
    yield "-- Every table, view and sequence, now and later; the passwords of roles are among what it can read."
    yield f"GRANT pg_read_all_data TO {role};"
    yield "-- Tables with row level security: without this, a dump of one ends with an error."
    yield f"ALTER ROLE {role} BYPASSRLS;"
    yield "-- Large objects, which pg_read_all_data leaves out. It lets the role write them, too."
    yield f"ALTER ROLE {role} SET lo_compat_privileges = on;"
    yield "-- Where the server's files are, and settings that only some may see."
    yield f"GRANT pg_read_all_settings, pg_read_all_stats TO {role};"


def _physical_rights(role: str, capabilities: Capabilities, *, is_local: bool) -> Iterator[str]:
    yield ""
    yield "-- BASE_BACKUP, streaming of WAL, replication slots. pg_hba.conf needs a line for it as well:"
    yield f"--   host  replication  {role}  <address of pgkeep>/32  scram-sha-256"
    yield f"ALTER ROLE {role} REPLICATION;"
    yield "-- Where the server's files are, and settings that only some may see."
    yield f"GRANT pg_read_all_settings, pg_read_all_stats TO {role};"
    if capabilities.has_checkpoint_role:
        yield "-- CHECKPOINT."
        yield f"GRANT pg_checkpoint TO {role};"
    yield "-- End a WAL segment, name a restore point, look at the WAL that the server keeps."
    functions = ["pg_switch_wal()", "pg_create_restore_point(text)", "pg_ls_waldir()"]
    for function in functions:
        yield f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};"
    if is_local:
        yield "-- Bring the server into backup mode and out of it."
        yield f"GRANT EXECUTE ON FUNCTION pg_catalog.{capabilities.start_signature} TO {role};"
        yield f"GRANT EXECUTE ON FUNCTION pg_catalog.{capabilities.stop_signature} TO {role};"
        yield "-- The files are read by the operating system user that runs pgkeep: the owner of the data directory,"
        yield "-- or a member of its group after initdb --allow-group-access."
