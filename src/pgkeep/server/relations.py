"""Whether what a database's catalog names is there: questions that are asked of a restored cluster."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pgkeep.server.connection import Server, fetch

LISTED = 5
"""How many names a list has before it says how many more there are."""

# pg_stat_file() looks at the file itself: a catalog that was restored whole knows nothing of what was not. Relations
# without storage have no path. An unlogged one gets its main file when recovery ends; before that it has none. What an
# extension's access method stores, and what is indexed of it, need not have files of these names.
_MISSING_FILES = """
    SELECT c.oid::regclass::text, pg_relation_filepath(c.oid)
    FROM pg_class c
    WHERE c.relpersistence IN ('p', CASE WHEN pg_is_in_recovery() THEN 'p' ELSE 'u' END)
      AND c.relam < 16384
      AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
                      WHERE i.indexrelid = c.oid AND t.relam >= 16384)
      AND pg_relation_filepath(c.oid) IS NOT NULL
      AND (SELECT size FROM pg_stat_file(pg_relation_filepath(c.oid), true)) IS NULL
      AND CASE WHEN c.reltablespace = 0
               THEN (SELECT dattablespace FROM pg_database WHERE datname = current_database())
               ELSE c.reltablespace END <> ALL (%s::oid[])
    ORDER BY 1
"""
_COUNTS = """
    SELECT count(*) FILTER (WHERE c.relkind IN ('r', 'm')), count(i.indexrelid),
           coalesce(array_agg(i.indexrelid::regclass::text ORDER BY 1) FILTER (WHERE NOT i.indisvalid), '{}')
    FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
    WHERE c.oid >= 16384
"""
# Large objects are data: reading them all is not a look at the catalog.
_CATALOGS = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND relname <> 'pg_largeobject' ORDER BY 1
"""
_USED_COLLATIONS = """
    SELECT quote_ident(collname), collversion, pg_collation_actual_version(oid) FROM pg_collation
    WHERE oid IN (SELECT unnest(indcollation::oid[]) FROM pg_index)
      AND collversion <> pg_collation_actual_version(oid)
    ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class RelationCounts:
    """
    What a database holds beside its catalog.

    Attributes:
        tables: Tables and materialized views.
        indexes: All of them.
        invalid_indexes: Names of those that the server does not use; a failed CREATE INDEX CONCURRENTLY leaves one.
    """

    tables: int
    indexes: int
    invalid_indexes: tuple[str, ...]


def read_catalogs(server: Server) -> int:
    """Read every row of every system catalog by itself, not by an index, and return how many rows there are."""
    fetch(server.sql, "SET enable_indexscan = off", where=server.where)
    fetch(server.sql, "SET enable_indexonlyscan = off", where=server.where)
    names = [name for (name,) in server.rows(_CATALOGS)]
    return sum(int(server.value(f"SELECT count(*) FROM pg_catalog.{name}")) for name in names)


def missing_files(server: Server, *, left_out: Collection[int]) -> list[tuple[str, str]]:
    """
    Return the relations of the session's database without a file, and the paths where it should be.

    Args:
        server: As superuser.
        left_out: OIDs of tablespaces that were not to be restored.
    """
    return [(name, path) for name, path in server.rows(_MISSING_FILES, [sorted(left_out)])]


def count_relations(server: Server) -> RelationCounts:
    """Return what the session's database holds."""
    tables, indexes, invalid = server.row(_COUNTS)
    return RelationCounts(tables, indexes, tuple(invalid))


def changed_collations(server: Server) -> list[tuple[str, str, str]]:
    """Return the collations of indexes that this host sorts differently: name, version recorded, version here."""
    return [(name, recorded, here) for name, recorded, here in server.rows(_USED_COLLATIONS)]


def listed(names: Collection[str]) -> str:
    """Return the first few of *names*, and how many more there are."""
    shown = ", ".join(list(names)[:LISTED])
    return shown + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
