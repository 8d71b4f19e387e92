"""What a database's catalog says of its tables, for the restore of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgkeep.server.table_facts import placed_by_oid

if TYPE_CHECKING:
    import psycopg

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}


@dataclass(frozen=True, slots=True)
class TableName:
    """A schema and a name in it, as they are."""

    schema: str
    name: str

    @property
    def quoted(self) -> str:
        """As SQL has it, in quotes throughout."""
        return sql.Identifier(self.schema, self.name).as_string(None)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """
    A table.

    Attributes:
        name: Its name.
        oid: Its OID.
        has_rows: Whether it holds rows itself: a partitioned one does not.
        parent: OID of the table that it is a partition of; 0 for none.
        bound: Of which values, ``FOR VALUES …``.
        columns: Those that a COPY takes.
        entrance: OID of the partitioned table through which alone its rows come in, since a hash of OIDs says in
            which partition they are, and that is another one in each database; 0 for none.
    """

    name: TableName
    oid: int
    has_rows: bool
    parent: int
    bound: str
    columns: tuple[str, ...]
    entrance: int


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """One foreign key: *definition* follows ``ADD CONSTRAINT`` and its quoted *name*."""

    table: TableName
    name: str
    target: TableName
    definition: str

    @property
    def statement(self) -> str:
        """What adds it."""
        name = sql.Identifier(self.name).as_string(None)
        return f"ALTER TABLE {self.table.quoted} ADD CONSTRAINT {name} {self.definition}"


def list_catalog(session: psycopg.Connection[Any]) -> list[CatalogTable]:
    """Return the tables of *session*'s database that no extension made, by schema and name."""
    rows = session.execute(
        f"""
        SELECT n.nspname, c.relname, c.oid, c.relkind = 'r', coalesce(i.inhparent, 0),
               coalesce(pg_get_expr(c.relpartbound, c.oid), ''),
               ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                     AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum),
               CASE WHEN {placed_by_oid("c.oid")} THEN pg_partition_root(c.oid)::oid ELSE 0 END
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_inherits i ON c.relispartition AND i.inhrelid = c.oid
        WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                          AND d.deptype = 'e')
        ORDER BY 1, 2
        """.encode()
    ).fetchall()
    return [
        CatalogTable(TableName(schema, name), oid, has_rows, parent, bound, tuple(columns), entrance)
        for schema, name, oid, has_rows, parent, bound, columns, entrance in rows
    ]


def sequences_of(session: psycopg.Connection[Any], tables: Sequence[int]) -> list[tuple[TableName, bool]]:
    """Return the sequences that belong to *tables* (True), or that their defaults ask (False)."""
    rows = session.execute(
        """
        SELECT n.nspname, c.relname, bool_or(found.is_owned)
        FROM (SELECT d.objid AS sequence, true AS is_owned FROM pg_depend d
              WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                AND d.refobjid = ANY(%(tables)s) AND d.deptype IN ('a', 'i')
              UNION
              SELECT d.refobjid, false FROM pg_depend d JOIN pg_attrdef a ON a.oid = d.objid
              WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
                AND a.adrelid = ANY(%(tables)s)) AS found
        JOIN pg_class c ON c.oid = found.sequence AND c.relkind = 'S'
        JOIN pg_namespace n ON n.oid = c.relnamespace
        GROUP BY 1, 2 ORDER BY 1, 2
        """,
        {"tables": list(tables)},
    ).fetchall()
    return [(TableName(row[0], row[1]), row[2]) for row in rows]


def foreign_keys(session: psycopg.Connection[Any], tables: Sequence[int], *, of: bool) -> list[ForeignKey]:
    """Return the foreign keys *of* these tables, or else those of other tables that refer to them."""
    mine, other = ("conrelid", "confrelid") if of else ("confrelid", "conrelid")
    rows = session.execute(
        f"""
        SELECT n.nspname, c.relname, f.conname, fn.nspname, fc.relname, pg_get_constraintdef(f.oid)
        FROM pg_constraint f
        JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_class fc ON fc.oid = f.confrelid JOIN pg_namespace fn ON fn.oid = fc.relnamespace
        WHERE f.contype = 'f' AND f.conparentid = 0 AND f.{mine} = ANY(%(tables)s)
          AND (%(of)s OR NOT f.{other} = ANY(%(tables)s))
        ORDER BY 1, 2, 3
        """.encode(),
        {"tables": list(tables), "of": of},
    ).fetchall()
    return [ForeignKey(TableName(row[0], row[1]), row[2], TableName(row[3], row[4]), row[5]) for row in rows]


def views_on(session: psycopg.Connection[Any], tables: Sequence[int]) -> list[TableName]:
    """Return the views that read one of *tables*."""
    rows = session.execute(
        """
        SELECT DISTINCT n.nspname, c.relname
        FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class c ON c.oid = r.ev_class
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
          AND d.refobjid = ANY(%s) AND c.relkind IN ('v', 'm')
        ORDER BY 1, 2
        """,
        [list(tables)],
    ).fetchall()
    return [TableName(*row) for row in rows]


def publications_of(session: psycopg.Connection[Any], tables: Sequence[int]) -> list[tuple[str, TableName]]:
    """Return the publications that name one of *tables*, each with that table; those of all tables do not."""
    rows = session.execute(
        """
        SELECT p.pubname, n.nspname, c.relname
        FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE r.prrelid = ANY(%s) ORDER BY 1, 2, 3
        """,
        [list(tables)],
    ).fetchall()
    return [(row[0], TableName(row[1], row[2])) for row in rows]


def statistics_of(session: psycopg.Connection[Any], tables: Sequence[int]) -> list[str]:
    """Return the statements that make the extended statistics of *tables*."""
    rows = session.execute(
        "SELECT pg_get_statisticsobjdef(oid) FROM pg_statistic_ext WHERE stxrelid = ANY(%s) ORDER BY 1", [list(tables)]
    ).fetchall()
    return [statement for (statement,) in rows]


def relations_named(session: psycopg.Connection[Any], names: Sequence[TableName]) -> dict[TableName, tuple[int, str]]:
    """Return which of *names* are taken: the OID, and what it is in words, empty for a table."""
    rows = session.execute(
        """
        SELECT n.nspname, c.relname, c.oid, c.relkind::text
        FROM unnest(%s::text[], %s::text[]) AS asked(schema, name)
        JOIN pg_namespace n ON n.nspname = asked.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = asked.name
        """,
        [[one.schema for one in names], [one.name for one in names]],
    ).fetchall()
    return {
        TableName(row[0], row[1]): (row[2], "" if row[3] in "rp" else _KINDS.get(row[3], "of another kind"))
        for row in rows
    }


def missing_schemas(session: psycopg.Connection[Any], names: Sequence[TableName]) -> list[str]:
    """Return the schemas of *names* that the database lacks."""
    rows = session.execute("SELECT nspname FROM pg_namespace").fetchall()
    return sorted({one.schema for one in names} - {row[0] for row in rows})
