"""The definitions of some tables as statements, and what of an archive holds their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pgkeep.server.client_program import conninfo_for
from pgkeep.server.table_catalog import TableName
from pgkeep.server.tools import Toolbox

_META = (b"\\restrict ", b"\\unrestrict ")
"""Commands of psql that pg_dump writes at the beginning and the end of a script since the minors of August 2025."""
_NEW_SETTING = b"SET transaction_timeout = 0;"


def definition_arguments(
    toolbox: Toolbox, dbname: str, relations: Sequence[TableName], *, section: str, role: str
) -> list[str | Path]:
    """Return the command that writes the definitions of *relations* in *dbname* as SQL."""
    words: list[str | Path] = [toolbox.program("pg_dump"), "--format=plain", "--schema-only", f"--section={section}"]
    # The names below, and the sessions that run the statements, are in this encoding, whatever the database's is.
    words += ["--encoding=UTF8", "--no-password", "--no-publications", "--no-subscriptions"]
    if role:
        words.append(f"--role={role}")
    # In quotes nothing in a name is a pattern (processSQLNamePattern in fe_utils/string_utils.c).
    words += [f"--table={one.quoted}" for one in relations]
    return [*words, f"--dbname={conninfo_for(dbname)}"]


def statements_of(script: bytes, *, knows_transaction_timeout: bool) -> bytes:
    """Return *script* without what only psql or only a newer server understands; the first and last lines at most."""
    lines = script.split(b"\n")
    edges = [number for number, line in enumerate(lines) if line.startswith(_META)]
    dropped = {edges[0], edges[-1]} if edges else set()
    if not knows_transaction_timeout and _NEW_SETTING in lines[:40]:
        dropped.add(lines.index(_NEW_SETTING))
    return b"\n".join(line for number, line in enumerate(lines) if number not in dropped)


def rows_listed(listing: bytes, tables: Iterable[TableName], *, as_stored: Iterable[bytes] = ()) -> bytes:
    """
    Return the lines of *listing*, what ``pg_restore --list`` prints, that stand for the rows of *tables*.

    And for the values of all sequences. The names in it are not quoted, so where some have blanks in them a line too
    many may be among them, never one too few. They are in the encoding of the archive: *as_stored* has them so,
    each with its schema and a blank before it.
    """
    names = {f"{one.schema} {one.name}".encode() for one in tables} | set(as_stored)
    starts = tuple(b" TABLE DATA %s " % name.replace(b"\n", b" ").replace(b"\r", b" ") for name in names)
    chosen = []
    for line in listing.splitlines():
        entry = b" " + b" ".join(line.split(b" ")[3:])
        if not line.startswith(b";") and (entry.startswith(starts) or entry.startswith(b" SEQUENCE SET ")):
            chosen.append(line)
    return b"\n".join([*chosen, b""])
