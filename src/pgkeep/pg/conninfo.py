"""
Connection strings of libpq, as subscriptions and standbys keep them: read, freed of their secrets, written.

The server takes them apart with a libpq of its own, which may know more keywords than ours: none is refused here.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from pgkeep.errors import FormatError

_SCHEMES = ("postgresql://", "postgres://")
_SECRETS = frozenset({"scram_client_key", "scram_server_key"})
_PLAIN_VALUE = re.compile(r"[^\s'\\]+", re.ASCII)
_SPACES = " \t\n\r\f\v"
_BROKEN_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})|%00")


def parse_conninfo(text: str) -> list[tuple[str, str]]:
    """
    Return the keywords and values of a connection string, a URI or not, in their order.

    Raises:
        FormatError: It is no connection string; the message holds nothing of it, since a secret may be anywhere.

    Source:
        PostgreSQL ``src/interfaces/libpq/fe-connect.c``, ``conninfo_parse`` and ``conninfo_uri_parse_options``.
    """
    for scheme in _SCHEMES:
        if text.startswith(scheme):
            return _parse_uri(text.removeprefix(scheme))
    return _parse_words(text)


def render_conninfo(words: list[tuple[str, str]]) -> str:
    """Return a connection string of *words*, never a URI."""
    return " ".join(f"{keyword}={_quoted(value)}" for keyword, value in words)


def without_secrets(text: str) -> tuple[str, bool]:
    """
    Return connection string *text* without passwords, and whether there were any.

    Raises:
        FormatError: It is no connection string.
    """
    words = parse_conninfo(text)
    kept = [(keyword, value) for keyword, value in words if not is_secret(keyword)]
    return render_conninfo(kept), len(kept) < len(words)


def is_secret(keyword: str) -> bool:
    """Tell whether the value of *keyword* is to be known to nobody: ``password``, ``sslpassword`` and the like."""
    return "password" in keyword or "secret" in keyword or keyword in _SECRETS


def _parse_words(text: str) -> list[tuple[str, str]]:
    words = []
    place, end = _after_spaces(text, 0), len(text)
    while place < end:
        start = place
        while place < end and text[place] != "=" and text[place] not in _SPACES:
            place += 1
        keyword = text[start:place]
        place = _after_spaces(text, place)
        if place == end or text[place] != "=" or not keyword:
            raise FormatError("not a connection string: a keyword without a value")
        value, place = _read_value(text, _after_spaces(text, place + 1))
        words.append((keyword, value))
        place = _after_spaces(text, place)
    return words


def _read_value(text: str, place: int) -> tuple[str, int]:
    end = len(text)
    is_quoted = place < end and text[place] == "'"
    place += is_quoted
    value: list[str] = []
    while place < end:
        letter = text[place]
        place += 1
        if (is_quoted and letter == "'") or (not is_quoted and letter in _SPACES):
            return "".join(value), place
        if letter == "\\":
            # A backslash at the very end stands for nothing.
            letter = text[place : place + 1]
            place += 1
        value.append(letter)
    if is_quoted:
        raise FormatError("not a connection string: a quoted value has no end")
    return "".join(value), place


def _after_spaces(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACES:
        place += 1
    return place


def _parse_uri(rest: str) -> list[tuple[str, str]]:
    words = []
    authority, slash, _ = rest.partition("/")
    userinfo, at, _ = authority.partition("@")
    if at:
        user, _, password = userinfo.partition(":")
        words += [("user", _decoded(user)), ("password", _decoded(password))]
        rest = rest[len(userinfo) + 1 :]
    place, question, query = rest.partition("?")
    hosts, slash, dbname = place.partition("/")
    # An address in brackets holds colons, which end no host.
    found = [re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]*)(?::(.*))?", host, re.DOTALL) for host in hosts.split(",")]
    matches = [match for match in found if match is not None]
    if len(matches) < len(found):
        raise FormatError("not a connection string: a host in the URI cannot be read")
    words.append(("host", ",".join(_decoded(match[1].strip("[]")) for match in matches)))
    words.append(("port", ",".join(_decoded(match[2] or "") for match in matches)))
    if slash:
        words.append(("dbname", _decoded(dbname)))
    for pair in query.split("&") if question and query else []:
        keyword, equals, value = pair.partition("=")
        if not equals or not keyword or "=" in value:
            raise FormatError("not a connection string: a parameter of the URI cannot be read")
        name, decoded = _decoded(keyword), _decoded(value)
        # What JDBC calls it.
        words.append(("sslmode", "require") if (name, decoded) == ("ssl", "true") else (name, decoded))
    return [(keyword, value) for keyword, value in words if value.strip(",")]


def _decoded(text: str) -> str:
    if _BROKEN_ESCAPE.search(text):
        raise FormatError("not a connection string: a percent sign in the URI that begins no letter")
    return unquote(text, errors="surrogateescape")


def _quoted(value: str) -> str:
    if _PLAIN_VALUE.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
