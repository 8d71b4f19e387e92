"""Which tables a filter means: ``public.orders``, ``audit.*``, ``"Odd.Schema"."a, b"``, several divided by commas."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pgkeep.errors import UsageError
from pgkeep.server.table_catalog import TableName

_PART = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^".,\s](?:[^".,]*[^".,\s])?))\s*')
_EXPECTED = 'expected names such as public.orders, audit.* or "Odd Schema"."Table", divided by commas'
_NEAR = 5


@dataclass(frozen=True, slots=True)
class _Part:
    """One part of a name: *text* as it is, or with wildcards."""

    text: str
    is_quoted: bool

    def fits(self, name: str) -> bool:
        """Whether *name* is meant."""
        return name == self.text or (not self.is_quoted and fnmatch.fnmatchcase(name, self.text))


@dataclass(frozen=True, slots=True)
class TableFilter:
    """
    One filter; *schema* is None where it was not given.

    What is not in quotes is taken as it stands, letters' case included, and may have ``* ? [ ]`` in it.
    """

    schema: _Part | None
    name: _Part
    text: str

    def fits(self, table: TableName) -> bool:
        """Whether *table* is meant."""
        return self.name.fits(table.name) and (self.schema is None or self.schema.fits(table.schema))


def parse_filters(text: str) -> tuple[TableFilter, ...]:
    """Return the filters of *text*; raise UsageError when it is no list of names."""
    filters: list[TableFilter] = []
    position = 0
    while not filters or position < len(text):
        begin, parts = position, list[_Part]()
        while len(parts) < 2:
            match = _PART.match(text, position)
            if match is None:
                raise UsageError(f"target_table: {_EXPECTED}, found {text}")
            quoted, bare = match.groups()
            parts.append(_Part(bare if quoted is None else quoted.replace('""', '"'), quoted is not None))
            position = match.end()
            if text[position : position + 1] != ".":
                break
            position += 1
        if position < len(text) and text[position] != ",":
            raise UsageError(f"target_table: {_EXPECTED}, found {text}")
        schema = parts[0] if len(parts) == 2 else None
        filters.append(TableFilter(schema, parts[-1], text[begin:position].strip()))
        position += 1
    if text.rstrip().endswith(","):
        raise UsageError(f"target_table: {_EXPECTED}, found {text}")
    return tuple(filters)


def select_tables(existing: Sequence[TableName], filters: Sequence[TableFilter]) -> list[TableName]:
    """
    Return the tables of *existing* that *filters* mean, in the order of *existing*.

    Raises:
        UsageError: A filter means none; the message lists those whose names are near.
    """
    chosen: set[TableName] = set()
    for one in filters:
        fitting = {table for table in existing if one.fits(table)}
        if not fitting:
            raise UsageError(f"no table {one.text} is in the backup of this database", hint=_nearest(one, existing))
        chosen |= fitting
    return [table for table in existing if table in chosen]


def _nearest(wanted: TableFilter, existing: Sequence[TableName]) -> str:
    by_key = {f"{table.schema}.{table.name}".lower(): table for table in existing}
    schema = wanted.schema.text if wanted.schema else "public"
    close = difflib.get_close_matches(f"{schema}.{wanted.name.text}".lower(), by_key, n=_NEAR)
    names = [by_key[key] for key in close] or list(existing[:_NEAR])
    if not names:
        return "this database had no table when it was backed up"
    word = "near it are" if close else "there are"
    return f"{word} {', '.join(table.quoted for table in names)}"
