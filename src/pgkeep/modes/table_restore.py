"""
Bringing some tables of a dumped database back into a database that is in use.

Their definitions come from a *workshop*: a database under a temporary name that gets the whole schema and no rows but
those that pg_dump copied of these tables. There everything about them can be asked, names and partitions as well as
foreign keys, and pg_dump writes just their definitions. All that is done to the target is one transaction: what
has a table's name is moved into a schema of its own, the table is made, filled, proved, indexed, and only then seen by
others. So a restore that fails or is killed leaves the target as it was, and of a killed one the workshop is left,
whose name says what it is.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql

from pgkeep.errors import BackupUnusable, RestoreRefused
from pgkeep.modes.table_names import TableFilter, select_tables
from pgkeep.modes.table_rows import RowSource
from pgkeep.server.connection import Server
from pgkeep.server.database import refusal_as_error
from pgkeep.server.refusals import one_line
from pgkeep.server.table_catalog import (
    CatalogTable,
    ForeignKey,
    TableName,
    foreign_keys,
    list_catalog,
    missing_schemas,
    publications_of,
    relations_named,
    sequences_of,
    statistics_of,
    views_on,
)
from pgkeep.server.table_facts import needs_load_via_root

_LOCK_TIMEOUT = "30s"
_SETTINGS = ("SET row_security TO off", "SET xmloption TO content")


class Workshop(Protocol):
    """The database of a temporary name, with the whole schema of the backup in it."""

    dbname: str

    def define(self, relations: Sequence[TableName], section: str) -> bytes:
        """Return the statements that define *relations*, those of one section."""
        ...

    def rows(self, tables: Sequence[CatalogTable], session: psycopg.Connection[Any]) -> RowSource:
        """Return where the rows of *tables* are; *session* is one in the workshop."""
        ...


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is brought back, and what the catalog of the workshop said of it."""

    tables: list[CatalogTable]
    sequences: list[tuple[TableName, bool]]
    keys: list[ForeignKey]
    keys_to: list[ForeignKey]
    statistics: list[str]
    detached: list[CatalogTable]

    @property
    def names(self) -> list[TableName]:
        """The names of the tables."""
        return [table.name for table in self.tables]


def restore_tables(
    filters: Sequence[TableFilter],
    workshop: Workshop,
    *,
    dbname: str,
    overwrite_existing: bool,
    server: Server,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """
    Bring the tables that *filters* mean into database *dbname*.

    Raises:
        UsageError: A filter means no table.
        RestoreRefused: A name is taken.
        BackupUnusable: Rows are missing.
        ServerError: The server refuses; nothing has changed then.
    """
    with (
        contextlib.closing(server.session(dbname=workshop.dbname)) as there,
        contextlib.closing(server.session(dbname=dbname)) as session,
        refusal_as_error(f'cannot restore tables into database "{dbname}", which is as it was'),
    ):
        choice = _choose(there, filters, warn)
        taken = _taken(session, choice, dbname, overwrite_existing=overwrite_existing)
        relations = [*choice.names, *_lacking_sequences(session, choice)]
        before, after = (workshop.define(relations, section) for section in ("pre-data", "post-data"))
        with workshop.rows(choice.tables, there) as rows:
            for setting in _SETTINGS:
                session.execute(setting.encode())
            with session.transaction():
                aside = _move_aside(session, taken, warn)
                for schema in missing_schemas(session, relations):
                    session.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
                    warn(f'schema "{schema}" did not exist and was made, without the privileges that it had')
                session.execute(before)
                counts = rows.load(session)
                # Before policies that might hide rows.
                _prove(session, choice.tables, counts)
                for sequence, value, is_called in rows.sequence_values(relations, choice.sequences):
                    session.execute("SELECT setval(%s::regclass, %s, %s)", [sequence.quoted, value, is_called])
                session.execute(after)
                _add_keys(session, choice.keys, warn)
                for name in choice.names:
                    session.execute(f"ANALYZE {name.quoted}".encode())
    for table in choice.tables:
        if table.name in counts:
            say(f"table {table.name.quoted}: {counts[table.name]} rows")
    for key in choice.keys_to:
        warn(f"foreign key of another table is not restored: {key.statement}")
    for statement in choice.statistics:
        # pg_dump writes them only with their whole schema (selectDumpableStatisticsObject in pg_dump.c).
        warn(f"extended statistics are not restored: {statement}")
    what = f'; what was there is now in schema "{aside}": drop it when it is not needed' if aside else ""
    say(f'database "{dbname}": {len(choice.tables)} tables restored{what}')


def _choose(session: psycopg.Connection[Any], filters: Sequence[TableFilter], warn: Callable[[str], None]) -> _Choice:
    """Return what *filters* mean, and make a table of its own of a partition whose parent is not meant."""
    listed = list_catalog(session)
    meant = set(select_tables([table.name for table in listed], filters))
    chosen = {table.oid for table in listed if table.name in meant}
    while more := {table.oid for table in listed if table.parent in chosen} - chosen:
        chosen |= more
    by_oid = {table.oid: table for table in listed}
    tables = [table for table in listed if table.oid in chosen]
    for table in tables:
        if table.entrance and table.entrance not in chosen:
            # pg_dump loads it through that one, which sends rows to other partitions than those they were in.
            entrance = by_oid[table.entrance].name
            raise RestoreRefused(
                f"partition {table.name.quoted} cannot come back without {entrance.quoted}: a hash of OIDs, such as "
                "an enum's, says which rows are in it, and those are others in each database",
                hint=f"restore {entrance} with all its partitions",
            )
    detached = [table for table in tables if table.parent and table.parent not in chosen]
    if detached and needs_load_via_root(session):
        name, parent = detached[0].name, by_oid[detached[0].parent].name
        raise RestoreRefused(
            f"partition {name.quoted} cannot come back without {parent.quoted}: where a hash of OIDs says to which "
            "partition rows of any table belong, the dump has all partitions' rows as those of their tables",
            hint="restore the partitioned table with all its partitions",
        )
    for table in detached:
        parent = by_oid[table.parent].name
        session.execute(f"ALTER TABLE {parent.quoted} DETACH PARTITION {table.name.quoted}".encode())
        statement = f"ALTER TABLE {parent.quoted} ATTACH PARTITION {table.name.quoted} {table.bound}"
        warn(f"{table.name.quoted} comes back as a table of its own; to attach it: {statement}")
    oids = [table.oid for table in tables]
    choice = _Choice(
        tables,
        sequences_of(session, oids),
        foreign_keys(session, oids, of=True),
        foreign_keys(session, oids, of=False),
        statistics_of(session, oids),
        detached,
    )
    # They are added last, each by itself, since their other end may be missing; rows come without their checks.
    for key in choice.keys:
        session.execute(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                sql.SQL(key.table.quoted),
                sql.Identifier(key.name),
            )
        )
    return choice


def _taken(
    session: psycopg.Connection[Any], choice: _Choice, dbname: str, *, overwrite_existing: bool
) -> dict[TableName, int]:
    """Return the tables that stand where some are to come, with their OIDs; raise RestoreRefused if they must stay."""
    names = relations_named(session, choice.names)
    for name, (_, kind) in names.items():
        if kind:
            raise RestoreRefused(
                f'{name.quoted} exists in database "{dbname}" and is {kind}',
                hint="rename it, or restore into another database with new_database",
            )
    if names and not overwrite_existing:
        found = ", ".join(name.quoted for name in sorted(names, key=str))
        raise RestoreRefused(
            f'database "{dbname}" has {found} already',
            hint="overwrite_existing=yes moves what is there into a schema of its own first; new_database restores "
            "into another database",
        )
    return {name: oid for name, (oid, _) in names.items()}


def _lacking_sequences(session: psycopg.Connection[Any], choice: _Choice) -> list[TableName]:
    """Return the sequences that defaults ask, that belong to no table, and that the target lacks."""
    loose = [name for name, is_owned in choice.sequences if not is_owned]
    there = relations_named(session, loose)
    return [name for name in loose if name not in there]


def _move_aside(session: psycopg.Connection[Any], taken: dict[TableName, int], warn: Callable[[str], None]) -> str:
    """Move *taken* into a new schema, with their indexes and sequences; return its name, empty when there are none."""
    if not taken:
        return ""
    aside = f"pgkeep_before_{dt.datetime.now(dt.UTC):%Y%m%d_%H%M%S}"
    session.execute(f"SET LOCAL lock_timeout TO '{_LOCK_TIMEOUT}'".encode())
    session.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(aside)))
    oids = list(taken.values())
    for view in views_on(session, oids):
        warn(f'view {view.quoted} goes on reading what is moved to schema "{aside}"')
    for key in foreign_keys(session, oids, of=False):
        warn(f'foreign key {key.name} of {key.table.quoted} goes on referring to what is moved to schema "{aside}"')
    for publication, table in publications_of(session, oids):
        warn(f'publication "{publication}" goes on publishing {table.quoted}, which is moved to schema "{aside}"')
    for name in taken:
        session.execute(f"ALTER TABLE {name.quoted} SET SCHEMA {sql.Identifier(aside).as_string(None)}".encode())
    return aside


def _add_keys(session: psycopg.Connection[Any], keys: Sequence[ForeignKey], warn: Callable[[str], None]) -> None:
    """Add each foreign key whose other end is there and has what the rows refer to."""
    session.execute(f"SET LOCAL lock_timeout TO '{_LOCK_TIMEOUT}'".encode())
    for key in keys:
        try:
            with session.transaction():
                session.execute(key.statement.encode())
        except psycopg.Error as error:
            if session.closed:
                raise
            warn(f"foreign key is not restored ({one_line(str(error))}): {key.statement}")


def _prove(session: psycopg.Connection[Any], tables: Sequence[CatalogTable], counts: dict[TableName, int]) -> None:
    """Raise BackupUnusable when a table has not the rows that it should have."""
    for table in tables:
        if table.name not in counts:
            continue
        only = "ONLY " if table.has_rows else ""
        row = session.execute(f"SELECT count(*) FROM {only}{table.name.quoted}".encode()).fetchone()
        assert row is not None
        if row[0] != counts[table.name]:
            raise BackupUnusable(
                f"table {table.name.quoted} has {row[0]} rows, expected {counts[table.name]}",
                hint="restore again; if that does not help, use another backup",
            )
