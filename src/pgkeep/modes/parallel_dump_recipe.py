"""restore.sh: how to rebuild one database of a parallel dump with PostgreSQL's own programs, without pgkeep."""

from __future__ import annotations

import shlex

from psycopg import sql

from pgkeep.modes.parallel_dump_parts import DatabaseParts
from pgkeep.modes.parallel_dump_plan import DATA_DIRECTORY, RECIPE_FILE, SCHEMA_FILE, TABLES_DIRECTORY
from pgkeep.modes.parallel_dump_tables import quoted_columns

_READERS = {"": "cat", ".gz": "gzip -dc", ".lz4": "lz4 -dcm", ".zst": "zstd -dcq"}
_CHECKS = {"": "true", ".gz": "gzip -t", ".lz4": "lz4 -tqm", ".zst": "zstd -tq"}


def copy_in_command(schema: str, name: str, columns: list[str], encoding: str, *, options: str = "") -> str:
    """Return the command that takes a chunk; *options* as in ``COPY … (options)``."""
    table = sql.Identifier(schema, name).as_string(None)
    more = f", {options}" if options else ""
    encoded = sql.Literal(encoding).as_string(None)
    return f"COPY {table} ({quoted_columns(columns)}) FROM STDIN (ENCODING {encoded}{more})"


def render_recipe(parts: DatabaseParts, suffix: str) -> str:
    """Return the script for the parts of one database, whose chunks have *suffix*."""
    loads = "\n".join(
        f"load {shlex.quote(table.plan.directory)} {table.chunks} {table.rows} "
        + shlex.quote(
            copy_in_command(
                table.plan.facts.schema, table.plan.facts.name, list(table.plan.facts.columns), parts.encoding
            )
        )
        for table in parts.tables
    )
    name = parts.database.name.replace("\n", " ")
    rows = f"{_READERS[suffix]} {DATA_DIRECTORY}/*" if parts.pieces else "true"
    return f"""\
#!/bin/sh
# Brings back database {name} from the files beside this script, without pgkeep. It needs PostgreSQL's psql and
# pg_restore, not older than the pg_dump that was used{_needs(suffix)}.
# PGHOST, PGPORT and PGUSER say where. Roles first:
#
#     psql -X -f ../globals.sql postgres
#     createdb -T template0 NEW_NAME
#     sh {RECIPE_FILE} NEW_NAME
#
# The database is whole only when this ends with "restored".
set -eu
new=${{1:?usage: sh {RECIPE_FILE} NEW_NAME}}
cd "$(dirname "$0")"
# That of this script; rows are in the one that COPY names.
export PGCLIENTENCODING=UTF8

# directory, how many files must be in it
expect() {{
    found=$(find "$1" -type f 2>/dev/null | wc -l)
    [ "$found" -eq "$2" ] || {{ echo "{RECIPE_FILE}: $found files in $1, expected $2" >&2; exit 1; }}
    [ "$2" -eq 0 ] || find "$1" -type f -exec {_CHECKS[suffix]} {{}} +
}}

# directory, number of chunks, number of rows, command
load() {{
    expect "{TABLES_DIRECTORY}/$1" "$2"
    [ "$2" -ne 0 ] || return 0
    rows=0
    for chunk in "{TABLES_DIRECTORY}/$1"/*; do
        told=$({_READERS[suffix]} "$chunk" | psql -X -v ON_ERROR_STOP=1 -d "$new" -c 'SET xmloption TO content' -c "$4")
        rows=$((rows + ${{told##*COPY }}))
    done
    [ "$rows" -eq "$3" ] || {{ echo "{RECIPE_FILE}: $rows rows in {TABLES_DIRECTORY}/$1, expected $3" >&2; exit 1; }}
}}

expect {DATA_DIRECTORY} {parts.pieces}
pg_restore --exit-on-error --section=pre-data -d "$new" {SCHEMA_FILE}
{{ cat {SCHEMA_FILE}; {rows}; }} | pg_restore --exit-on-error --section=data -d "$new"
{loads}
pg_restore --exit-on-error --section=post-data -d "$new" {SCHEMA_FILE}
psql -Xq -v ON_ERROR_STOP=1 -d "$new" -c ANALYZE
echo "{RECIPE_FILE}: restored"
"""


def _needs(suffix: str) -> str:
    programs = {"": "", ".gz": "gzip", ".lz4": "lz4", ".zst": "zstd"}
    return f", and {programs[suffix]}" if suffix else ""
