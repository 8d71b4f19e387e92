"""
The ``where`` of a restore job: a directory, or options of pgkeep's in its place.

::

    /  or nothing                       the cluster's own place, the server
    /directory                          beneath that directory
    /@pgkeep/<profile>                  the options of a profile on the client
    /@pgkeep/?name=value&name=value     options, percent-encoded; where=/directory among them gives the directory
    #<base64 of a JSON object>          the same as names and values; consoles may put a slash before it

Bacula puts it before every name, and it is taken off again here.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pgkeep.errors import UsageError

OPTIONS_PREFIX = "/@pgkeep"
MAX_BYTES = 16 << 10

_PROFILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_PLACE_NAMES = ("where", "output_dir")


@dataclass(frozen=True, slots=True)
class Where:
    """
    What ``where`` says.

    Attributes:
        text: As it came; empty for none.
        place: The directory; None for the cluster's own place.
        options: Name and value of each option, as written.
    """

    text: str = ""
    place: Path | None = None
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def strip(self, name: str) -> str:
        """Return the name in the catalog of a file whose name with ``where`` before it is *name*."""
        if self.text and name.startswith(self.text):
            # Bacula puts a slash between the two when neither has one, and leaves two when both have.
            return "/" + name[len(self.text) :].lstrip("/")
        return name


def parse_where(text: str | None) -> Where:
    """Return what *text* says; raise UsageError when it is neither a directory nor options."""
    where = text or ""
    if len(where) > MAX_BYTES:
        raise UsageError(f"where must have at most {MAX_BYTES} bytes")
    if where.strip("/") == "":
        # Bacula treats a single slash as nothing.
        return Where()
    encoded = where.removeprefix("/")
    if encoded.startswith("#"):
        place, options = _split_place(_decoded(encoded[1:]))
        return Where(where, place, options)
    if where == OPTIONS_PREFIX or where.startswith((f"{OPTIONS_PREFIX}/", f"{OPTIONS_PREFIX}?")):
        inside = where.removeprefix(OPTIONS_PREFIX).strip("/")
        if inside.startswith("?"):
            place, options = _split_place(_query(where.partition("?")[2]))
            return Where(where, place, options)
        if _PROFILE.fullmatch(inside) is None:
            raise UsageError(
                f"where={OPTIONS_PREFIX}/ must be followed by the name of a profile or by ?name=value, "
                f'found "{inside[:80]}"'
            )
        return Where(where, None, (("profile", inside),))
    if not where.startswith("/"):
        raise UsageError(f'where must be an absolute directory, found "{where[:80]}"')
    return Where(where.rstrip("/"), Path(where.rstrip("/")))


def _query(text: str) -> list[tuple[str, str]]:
    options = []
    # A console may put a slash at the end.
    for part in text.removesuffix("/").split("&"):
        if not part:
            continue
        name, equals, value = part.partition("=")
        try:
            options.append((unquote(name, errors="strict"), unquote(value, errors="strict") if equals else "yes"))
        except UnicodeDecodeError as error:
            raise UsageError("where= holds percent-encoded bytes that are not UTF-8") from error
    if not options:
        raise UsageError(f"where={OPTIONS_PREFIX}/? holds no options")
    return options


def _decoded(text: str) -> list[tuple[str, str]]:
    stripped = text.rstrip("/") if len(text) % 4 == 1 else text
    try:
        # Both alphabets of base64 are in use, with or without their padding.
        plain = stripped.rstrip("=").replace("-", "+").replace("_", "/")
        content = json.loads(base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise UsageError("where=# must be followed by the base64 of a JSON object") from error
    if not isinstance(content, dict):
        raise UsageError("where=# must hold a JSON object of options")
    return [(str(name), _text(str(name), value)) for name, value in content.items() if value is not None]


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    raise UsageError(f"{name} in where=# must be a text, a number, yes or no, or a list of texts")


def _split_place(options: list[tuple[str, str]]) -> tuple[Path | None, tuple[tuple[str, str], ...]]:
    place = None
    rest = []
    for name, value in options:
        if name.lower() not in _PLACE_NAMES:
            rest.append((name, value))
        elif value.strip("/"):
            if not value.startswith("/"):
                raise UsageError(f'{name} must be an absolute directory, found "{value[:80]}" in where=')
            place = Path(value.rstrip("/"))
    return place, tuple(rest)
