"""
``tablespace_map``: which links the server makes in ``pg_tblspc`` when it starts from a backup.

One line per tablespace, OID, blank, path; line ends in a path are written with a backslash before them, and from
PostgreSQL 14 on so are backslashes (``do_pg_backup_start`` and ``read_tablespace_map`` in
``src/backend/access/transam/``). In-place tablespaces are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pgkeep.errors import FormatError, UsageError

_MAX_OID = 0xFFFFFFFF
_ESCAPED = re.compile(r"[\n\r\\]")
_ESCAPED_BEFORE_14 = re.compile(r"[\n\r]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPE_BEFORE_14 = re.compile(r"\\([\n\r])")
# A line ends at a line end without a backslash before it; from 14 on one that is itself escaped does not count.
_LINE = re.compile(r"((?:[^\\\n\r]|\\.)*)[\n\r]", re.DOTALL)
_LINE_BEFORE_14 = re.compile(r"((?:[^\n\r]|(?<=\\)[\n\r])*)(?<!\\)[\n\r]")
_ENTRY = re.compile(r"([0-9]{1,10}) (.+)", re.DOTALL)


def parse_tablespace_map(text: str, *, major: int) -> dict[int, str]:
    """
    Return OID to path, in the order of *text*, the file's content; empty when it is.

    Raises:
        FormatError: A line is not OID and path, is cut off, or names an OID again.
    """
    line_pattern, escape = (_LINE, _ESCAPE) if major >= 14 else (_LINE_BEFORE_14, _ESCAPE_BEFORE_14)
    paths: dict[int, str] = {}
    position = 0
    while position < len(text):
        line = line_pattern.match(text, position)
        if line is None:
            raise FormatError(f'tablespace map ends inside a line: "{text[position:]}"')
        position = line.end()
        entry = _ENTRY.fullmatch(line[1])
        if entry is None:
            raise FormatError(f'tablespace map: expected OID and path, found "{line[1]}"')
        oid = int(entry[1])
        if not 0 < oid <= _MAX_OID:
            raise FormatError(f"tablespace map: OID out of range: {oid}")
        if oid in paths:
            raise FormatError(f"tablespace map names tablespace {oid} twice")
        paths[oid] = escape.sub(r"\1", entry[2])
    return paths


def render_tablespace_map(paths: Mapping[int, str], *, major: int) -> str:
    """
    Return the file's content for *paths*, OID to path.

    Raises:
        UsageError: A path is empty, or *major* is 12 or 13 and a path ends with a backslash, which those cannot read.
    """
    escaped = _ESCAPED if major >= 14 else _ESCAPED_BEFORE_14
    lines = []
    for oid, path in paths.items():
        if not path or "\0" in path:
            raise UsageError(f"tablespace {oid} has no usable path")
        if major < 14 and path.endswith("\\"):
            raise UsageError(f'PostgreSQL {major} cannot read a backslash at the end of a tablespace path: "{path}"')
        lines.append(f"{oid} {escaped.sub(lambda found: chr(92) + found[0], path)}\n")
    return "".join(lines)


def remap(paths: Mapping[int, str], targets: Mapping[int, str]) -> dict[int, str]:
    """
    Return *paths* with those that *targets*, OID to new path, names put elsewhere.

    Raises:
        UsageError: *targets* names a tablespace that the backup does not have, or two end at one path.
    """
    for oid in targets:
        if oid not in paths:
            known = ", ".join(map(str, sorted(paths))) or "none"
            raise UsageError(f"the backup has no tablespace {oid}, it has {known}")
    moved = {oid: targets.get(oid, path) for oid, path in paths.items()}
    seen: dict[str, int] = {}
    for oid, path in moved.items():
        if path in seen:
            raise UsageError(f'tablespaces {seen[path]} and {oid} would both be put into "{path}"')
        seen[path] = oid
    return moved
