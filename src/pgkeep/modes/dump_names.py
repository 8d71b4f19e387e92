"""Names of dumps: which databases a filter means, and under which virtual path each one's dump stands."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Sequence

from pgkeep.errors import SettingsError

GLOBALS = "globals"
"""The component that holds roles and tablespaces; a database of that name is encoded, so that they never meet."""
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~+=,")


def encode_name(database: str) -> str:
    """
    Return *database* as one component of a virtual path; ``we/ird "näme"`` is ``we%2Fird%20%22näme%22``.

    Letters and digits of any script stay; everything else but ``_.-~+=,`` is percent-encoded as UTF-8.
    """
    encoded = "".join(
        char if char in _PLAIN or (ord(char) > 127 and char.isalnum()) else _percent(char) for char in database
    )
    # "." and ".." cannot come alone, since a suffix follows; a leading dot would hide the file, so it is encoded too.
    if encoded.startswith(".") or encoded == GLOBALS:
        encoded = _percent(encoded[0]) + encoded[1:]
    return encoded


def decode_name(component: str) -> str:
    """Return the database's name that ``encode_name`` made *component* of."""
    raw = bytearray()
    position = 0
    while position < len(component):
        if component[position] == "%":
            raw.append(int(component[position + 1 : position + 3], 16))
            position += 3
        else:
            raw += component[position].encode()
            position += 1
    return raw.decode()


def select_names(
    existing: Sequence[str], *, wanted: Sequence[str], excluded: Sequence[str], warn: Callable[[str], None]
) -> list[str]:
    """
    Return the names of *existing* that the filters mean, in the order of *existing*.

    A filter that is a name is that name, even with ``*`` in it; otherwise it is a pattern with ``* ? [ ]``.

    Args:
        existing: Names of all databases that could be meant.
        wanted: Names and patterns; empty means all.
        excluded: Names and patterns.
        warn: Takes a line about a filter that matches nothing.

    Raises:
        SettingsError: A wanted name does not exist, or nothing is left.
    """
    chosen: set[str] = set()
    for filter_ in wanted or ("*",):
        matches = _matches(filter_, existing)
        if not matches and not _is_pattern(filter_):
            raise SettingsError(
                f'database "{filter_}" does not exist: the server has {_listing(existing)}',
                hint=_suggestion(filter_, existing),
            )
        if not matches:
            warn(f'no database matches "{filter_}"')
        chosen |= matches
    for filter_ in excluded:
        matches = _matches(filter_, existing)
        if not matches:
            warn(f'exclude_database: no database matches "{filter_}"')
        chosen -= matches
    if not chosen:
        raise SettingsError(
            f"no database is left to dump: the server has {_listing(existing)}",
            hint="look at the settings database and exclude_database",
        )
    return [name for name in existing if name in chosen]


def is_named(name: str, filters: Sequence[str]) -> bool:
    """Whether *name* is asked for literally, not only by a pattern."""
    return name in filters


def _matches(filter_: str, existing: Sequence[str]) -> set[str]:
    if filter_ in existing:
        return {filter_}
    return {name for name in existing if fnmatch.fnmatchcase(name, filter_)}


def _is_pattern(text: str) -> bool:
    return any(char in text for char in "*?[")


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:10])
    more = len(names) - 10
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def _suggestion(name: str, existing: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, existing, n=1)
    return f'did you mean "{close[0]}"?' if close else ""


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode())
