"""
Phase 6 of a restore: the proof that what was restored is a cluster. Nobody is let in before it is given.

Behind the fence every database must answer, its system catalogs must be readable and every relation must have its
file. What the operator asked for comes on top: amcheck, a file of SQL, and, when the server has been stopped in order,
pg_checksums. All checks are run, each fault has its line, and one is enough for the restore to fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgkeep.datadir.checksums import PROGRAM, check_page_checksums
from pgkeep.errors import CheckFailed, PgkeepError, RestoreRefused
from pgkeep.server import queries
from pgkeep.server.amcheck import check_relations
from pgkeep.server.connection import Server
from pgkeep.server.operator_sql import read_operator_sql, run_operator_sql
from pgkeep.server.relations import changed_collations, count_relations, listed, missing_files, read_catalogs

FAILED_HINT = (
    'the server is stopped and was never opened: mend the reason and run "pgkeep finish", which checks again, or give '
    'the restore up by "pgkeep rollback"'
)
Say = Callable[[str], None]
Ask = Callable[[str], Server]
"""Connects as superuser to the database of that name; empty for whichever there is."""

# A connection limit of -2 marks what an interrupted DROP DATABASE left: nobody can connect to it.
_DATABASES = 'SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname COLLATE "C"'


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedChecks:
    """
    What is asked beyond what every restore must pass.

    Attributes:
        amcheck: Check every index and table.
        checksums: Check every page of the stopped cluster.
        sql: A file of SQL; None for none.
        sql_timeout_seconds: For each of its statements; 0 for ever.
    """

    amcheck: bool = False
    checksums: bool = False
    sql: Path | None = None
    sql_timeout_seconds: int = 600

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> WantedChecks:
        """Return what the parameters in *options*, by their names, ask for."""
        sql = options.get("post_restore_sql", "")
        return cls(
            amcheck=bool(options.get("verify_amcheck_after", False)),
            checksums=bool(options.get("verify_checksum_after", False)),
            sql=Path(sql) if sql else None,
            sql_timeout_seconds=int(options.get("post_restore_sql_timeout", 600)),
        )

    def check(self, *, bin_directory: Path, owner_uid: int) -> None:
        """
        Refuse what could not be done in the end, before the server is started.

        Raises:
            RestoreRefused: There is no ``pg_checksums`` in *bin_directory*.
            SettingsError, UsageError: The file of SQL cannot be used.
        """
        if self.checksums and not os.access(bin_directory / PROGRAM, os.X_OK):
            raise RestoreRefused(
                f"verify_checksum_after needs {PROGRAM}, which is not in {bin_directory}",
                hint="install the server package that brings it, or leave verify_checksum_after out",
            )
        if self.sql is not None:
            read_operator_sql(self.sql, owner_uid=owner_uid)


def database_names(ask: Ask) -> tuple[str, ...]:
    """Return the databases that can be connected to, in their order."""
    with ask("") as server:
        return tuple(name for (name,) in server.rows(_DATABASES))


def check_behind_fence(
    ask: Ask,
    wanted: WantedChecks,
    *,
    owner_uid: int,
    left_out: Collection[int] = (),
    libraries: Mapping[str, str] | None = None,
    say: Say,
    warn: Say,
) -> tuple[str, ...]:
    """
    Check the restored cluster while its server runs behind the fence, and return the names of its databases.

    Args:
        ask: Leads to its databases.
        wanted: What was asked for.
        owner_uid: Of the cluster.
        left_out: OIDs of tablespaces that were not to be restored.
        libraries: Versions of what sorts text, by ``libc`` and ``icu``, where the backup was made.
        say: Takes a line of the log.
        warn: Takes a warning.

    Raises:
        CheckFailed: At least one check failed; each fault was said.
    """
    faults: list[str] = []
    names = database_names(ask)
    for index, name in enumerate(names):
        try:
            with ask(name) as server:
                faults += _faults_of_database(server, name, left_out=left_out, say=say, warn=warn)
                if index == 0:
                    _compare_libraries(server, libraries or {}, warn=warn)
                if wanted.amcheck:
                    report = check_relations(server, with_shared=index == 0)
                    say(f"database {name}: amcheck read {report.indexes} indexes and {report.tables} tables")
                    faults += [f"database {name}: {fault}" for fault in report.faults]
        except PgkeepError as error:
            faults.append(f"database {name}: {error}")
    if wanted.sql is not None:
        faults += _faults_of_sql(ask, wanted, wanted.sql, owner_uid=owner_uid, say=say)
    _raise(faults, say)
    return names


def check_stopped(data_directory: Path, wanted: WantedChecks, *, bin_directory: Path, say: Say, warn: Say) -> None:
    """
    Check the pages of the restored cluster, whose server was stopped in order, when that was asked for.

    Raises:
        CheckFailed: A page is damaged.
    """
    if not wanted.checksums:
        return
    try:
        checked = check_page_checksums(data_directory, program=bin_directory / PROGRAM)
    except PgkeepError as error:
        _raise([str(error)], say)
        return
    if checked:
        say(f"{PROGRAM} read {checked}: none is damaged")
    else:
        warn(f"{PROGRAM} had nothing to check: the cluster has no page checksums")


def _faults_of_database(server: Server, name: str, *, left_out: Collection[int], say: Say, warn: Say) -> list[str]:
    rows = read_catalogs(server)
    counts = count_relations(server)
    invalid = f", {len(counts.invalid_indexes)} of them not valid" if counts.invalid_indexes else ""
    say(f"database {name}: {rows} rows of catalog, {counts.tables} tables, {counts.indexes} indexes{invalid}")
    if counts.invalid_indexes:
        warn(f"database {name}: indexes that were not valid: {listed(counts.invalid_indexes)}")
    for collation, recorded, here in changed_collations(server):
        warn(
            f"database {name}: collation {collation} was version {recorded} and is {here} on this host: REINDEX what "
            "uses it"
        )
    return [
        f"database {name}: {relation} has no file {path}" for relation, path in missing_files(server, left_out=left_out)
    ]


def _compare_libraries(server: Server, recorded: Mapping[str, str], *, warn: Say) -> None:
    """Warn when this host may sort text otherwise than the one where the backup was made."""
    here = queries.libraries(server)
    for library, version in recorded.items():
        if here.get(library, version) != version:
            warn(
                f"text was sorted by {library} {version}, and is by {here[library]} on this host: indexes on text may "
                "be in the wrong order; verify_amcheck_after tells which, REINDEX mends them"
            )


def _faults_of_sql(ask: Ask, wanted: WantedChecks, path: Path, *, owner_uid: int, say: Say) -> list[str]:
    try:
        for part in read_operator_sql(path, owner_uid=owner_uid):
            with ask(part.database) as server:
                run_operator_sql(part, server, path=path, timeout_seconds=wanted.sql_timeout_seconds, say=say)
    except PgkeepError as error:
        # What comes behind a failure may build on what came before it.
        return [str(error)]
    return []


def _raise(faults: list[str], say: Say) -> None:
    if not faults:
        return
    for fault in faults:
        say(f"check failed: {fault}")
    more = f" ({len(faults)} checks failed)" if len(faults) > 1 else ""
    raise CheckFailed(f"the restored cluster did not pass: {faults[0]}{more}", hint=FAILED_HINT)
