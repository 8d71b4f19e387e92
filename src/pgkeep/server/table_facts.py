"""The tables of a database, as far as a dump that divides them must know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgkeep.pg.capabilities import Capabilities

if TYPE_CHECKING:
    import psycopg

_NUMBERS = ("int2", "int4", "int8", "numeric")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """
    One ordinary table, or leaf of a partitioned one.

    Attributes:
        oid: Its OID.
        schema: Name of its schema, as it is.
        name: Its name, as it is.
        size_bytes: ``pg_table_size``: with TOAST, without indexes.
        pages: Pages of its main fork, at the time of asking.
        columns: Names of the columns that a COPY takes, in order: neither dropped nor generated.
        access_method: ``heap`` for all that PostgreSQL itself brings.
        is_unlogged: Whether a standby has nothing of it.
        is_of_extension: Whether an extension made it, which then says what of it is dumped.
        is_filtered: Whether row level security hides rows from the asking role.
        is_placed_by_oid: Whether a hash of OIDs says which rows of a partitioned table are in it, as that of an enum
            does. They are others in each database, so only that partitioned table knows where its rows go.
        key: Name of the first column of the primary key, where that is a number; empty otherwise.
        key_type: Name of that column's type; empty when there is no such key.
        histogram: Of that column, from the statistics; empty when there are none.
    """

    oid: int
    schema: str
    name: str
    size_bytes: int
    pages: int
    columns: tuple[str, ...]
    access_method: str = "heap"
    is_unlogged: bool = False
    is_of_extension: bool = False
    is_filtered: bool = False
    is_placed_by_oid: bool = False
    key: str = ""
    key_type: str = ""
    histogram: tuple[Decimal, ...] = ()

    @property
    def identity(self) -> tuple[int, str, str]:
        """What must not change between two looks at it."""
        return self.oid, self.schema, self.name

    def quoted(self) -> str:
        """Return its name as SQL has it: ``"Odd Schema"."Täble"``."""
        return sql.Identifier(self.schema, self.name).as_string(None)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def list_tables(
    connection: psycopg.Connection[Any],
    *,
    least_bytes: int,
    at_most: int,
    with_keys: bool,
    among: Sequence[int] | None = None,
) -> list[TableFacts]:
    """
    Return the tables of *connection*'s database whose rows take at least *least_bytes*, largest first.

    Args:
        connection: A session in the database.
        least_bytes: Smaller ones are left out.
        at_most: How many are returned.
        with_keys: Whether keys and their statistics are wanted.
        among: OIDs of the only ones that are looked at; None for all.
    """
    block_size = int(connection.execute("SELECT current_setting('block_size')").fetchall()[0][0])
    rows = connection.execute(
        f"""
        SELECT t.*, (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
               pg_catalog.row_security_active(t.oid::oid),
               EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass
                       AND d.objid = t.oid AND d.deptype = 'e'),
               {placed_by_oid("t.oid::oid")}
        FROM (SELECT c.oid::int8 AS oid, n.nspname::text, c.relname::text, c.relpersistence::text,
                     coalesce(pg_catalog.pg_table_size(c.oid), 0) AS size,
                     coalesce(pg_catalog.pg_relation_size(c.oid), 0), coalesce(m.amname::text, '')
              FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              LEFT JOIN pg_catalog.pg_am m ON m.oid = c.relam
              WHERE c.relkind = 'r' AND c.relpersistence <> 't'
                AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_'
                AND (%(among)s::oid[] IS NULL OR c.oid = ANY (%(among)s::oid[]))
                -- Of ten thousand small tables pg_table_size opens three relations each.
                AND (pg_catalog.pg_relation_size(c.oid) >= %(least)s OR pg_catalog.pg_relation_size(c.oid)
                     + coalesce(pg_catalog.pg_relation_size(nullif(c.reltoastrelid, 0)), 0) >= %(least)s)) t
        ORDER BY t.size DESC, t.oid LIMIT %(most)s
        """.encode(),
        {"least": least_bytes, "most": at_most, "among": None if among is None else list(among)},
    ).fetchall()
    tables = []
    for oid, schema, name, persistence, size, main, method, columns, is_filtered, is_of_extension, by_oid in rows:
        key, key_type, histogram = _key(connection, oid) if with_keys or method != "heap" else ("", "", ())
        tables.append(
            TableFacts(
                oid=oid,
                schema=schema,
                name=name,
                size_bytes=size,
                pages=main // block_size,
                columns=tuple(columns or ()),
                access_method=method,
                is_unlogged=persistence == "u",
                is_of_extension=is_of_extension,
                is_filtered=is_filtered,
                is_placed_by_oid=by_oid,
                key=key,
                key_type=key_type,
                histogram=histogram,
            )
        )
    return tables


_MAY_HOLD_OIDS = ("array_ops", "record_ops", "range_ops", "multirange_ops", "oid_ops")
"""Hashes of what may be made of enums, or be a ``regclass``; pg_dump does not look into these."""


def placed_by_oid(oid: str) -> str:
    """Return the SQL that says whether a hash of OIDs may decide which rows are in the partition with this *oid*."""
    return f"""
        EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors({oid}) AS ancestor(oid)
                JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = ancestor.oid
                WHERE {_hashes_by("enum_ops", *_MAY_HOLD_OIDS)})
    """


def needs_load_via_root(connection: psycopg.Connection[Any]) -> bool:
    """
    Tell whether partitions of *connection*'s database must be filled through their partitioned tables.

    pg_dump sees that by itself of a table that is partitioned by hash of an enum (forcePartitionRootLoad in
    pg_dump.c), not of an array of enums, say: ``--load-via-partition-root`` tells it, for all tables.
    """
    query = f"SELECT EXISTS (SELECT FROM pg_catalog.pg_partitioned_table p WHERE {_hashes_by(*_MAY_HOLD_OIDS)})"
    [(found,)] = connection.execute(query.encode()).fetchall()
    return bool(found)


def _hashes_by(*families: str) -> str:
    return f"""
        p.partstrat = 'h' AND EXISTS (SELECT FROM pg_catalog.pg_opclass o
            WHERE o.oid = ANY (p.partclass) AND o.opcnamespace = 'pg_catalog'::regnamespace
            AND o.opcname IN ({", ".join(f"'{name}'" for name in families)}))
    """


def filtered_tables(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the names of the tables of which row level security hides rows from the asking role, in order."""
    rows = connection.execute(
        """
        SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relrowsecurity AND c.relkind IN ('r', 'p') AND pg_catalog.row_security_active(c.oid) ORDER BY 1
        """
    ).fetchall()
    return [name for (name,) in rows]


def names_in_encoding(connection: psycopg.Connection[Any], names: Sequence[str], encoding: str) -> list[bytes]:
    """Return *names* as they are in *encoding*, one that PostgreSQL knows, in order."""
    rows = connection.execute(
        """
        SELECT pg_catalog.convert_to(name, %s::name)
        FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY AS given(name, number) ORDER BY number
        """,
        [encoding, list(names)],
    ).fetchall()
    return [name for (name,) in rows]


def key_ends(connection: psycopg.Connection[Any], table: TableFacts) -> tuple[Decimal, Decimal] | None:
    """Return the least and the greatest key of *table*, from its index; None when it is empty."""
    query = sql.SQL("SELECT min({0})::numeric, max({0})::numeric FROM ONLY {1}").format(
        sql.Identifier(table.key), sql.Identifier(table.schema, table.name)
    )
    [(lowest, highest)] = connection.execute(query).fetchall()
    return None if lowest is None else (lowest, highest)


def has_ctid_ranges(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server reads a range of ``ctid`` without looking at the rest of the table."""
    return Capabilities(connection.info.server_version).has_tid_range_scan


def _key(connection: psycopg.Connection[Any], oid: int) -> tuple[str, str, tuple[Decimal, ...]]:
    """Return the numeric first column of a table's primary key, its type and its histogram."""
    # A primary key cannot hold NULL; a unique index could.
    rows = connection.execute(
        """
        SELECT a.attname::text, t.typname::text, s.histogram_bounds::text::numeric[]
        FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_catalog.pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname
             AND s.attname = a.attname AND NOT s.inherited
        WHERE i.indrelid = %s AND i.indisprimary AND i.indisvalid AND a.attnotnull AND a.attgenerated = ''
          AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typname = ANY (%s)
        """,
        [oid, list(_NUMBERS)],
    ).fetchall()
    if not rows:
        return "", "", ()
    [(name, type_name, histogram)] = rows
    return name, type_name, tuple(histogram or ())
