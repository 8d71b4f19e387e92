"""
The files of a server's configuration, as far as they name each other.

``postgresql.conf`` includes files and directories; ``pg_hba.conf`` and ``pg_ident.conf`` take lists of names from files
that begin with ``@``, and from PostgreSQL 16 on include others as well. A relative name is one beside the file that has
it.

Source:
    PostgreSQL ``src/backend/utils/misc/guc-file.l`` and ``src/backend/libpq/hba.c`` (``next_token``,
    ``tokenize_auth_file``).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DEPTH = 10
"""How deep files include each other before the server refuses (CONF_FILE_MAX_DEPTH)."""

_SETTING = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_$.]*)(?:\s*=\s*|\s+)('(?:[^'\\\n]|''|\\.)*'|[^\s#'=]+)")
_TOKEN = re.compile(r'((?:"[^"]*"|[^\s,"#])+)|#.*')
_ESCAPE = re.compile(r"''|\\([0-7]{1,3}|.)")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class ReferenceKind(enum.Enum):
    """What a configuration file does with another; the value is the word for it."""

    FILE = "include"
    OPTIONAL_FILE = "include_if_exists"
    DIRECTORY = "include_dir"


@dataclass(frozen=True, slots=True)
class Reference:
    """
    Another file that a configuration file takes in.

    Attributes:
        kind: How.
        path: As it is written.
        is_list: Whether it is a list of names, which itself may name such lists and nothing else.
    """

    kind: ReferenceKind
    path: str
    is_list: bool = False


def settings_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield name, in lower case, and value of every setting in *text*, a ``postgresql.conf``; the last one counts."""
    for line in text.splitlines():
        match = _SETTING.match(line)
        if match is not None:
            value = match[2]
            yield match[1].lower(), _unquoted(value[1:-1]) if value.startswith("'") else value


def references_of(text: str) -> Iterator[Reference]:
    """Yield what *text*, a ``postgresql.conf``, includes, in order."""
    kinds = {kind.value: kind for kind in ReferenceKind}
    for name, value in settings_of(text):
        if name in kinds and value:
            yield Reference(kinds[name], value)


def access_references_of(text: str, *, is_list: bool = False) -> Iterator[Reference]:
    """Yield what *text*, a ``pg_hba.conf``, a ``pg_ident.conf`` or (*is_list*) a list of names, takes in, in order."""
    kinds = {kind.value: kind for kind in ReferenceKind}
    for line in text.replace("\\\n", " ").splitlines():
        tokens = [match[1] for match in _TOKEN.finditer(line) if match[1]]
        if not is_list and len(tokens) == 2 and tokens[0] in kinds:
            yield Reference(kinds[tokens[0]], tokens[1].strip('"'))
            continue
        # In quotes it is a name that begins so.
        for token in tokens:
            if token.startswith("@") and len(token) > 1:
                yield Reference(ReferenceKind.FILE, token[1:].strip('"'), is_list=True)


def is_included_name(name: str) -> bool:
    """Tell whether ``include_dir`` takes the file *name* in (``GetConfFilesInDir`` in ``conffiles.c``)."""
    return len(name) >= len("x.conf") and not name.startswith(".") and name.endswith(".conf")


def _unquoted(text: str) -> str:
    def replacement(match: re.Match[str]) -> str:
        letter = match[1]
        if letter is None:
            return "'"
        return chr(int(letter, 8) & 0xFF) if letter.isdigit() else _ESCAPED.get(letter, letter)

    return _ESCAPE.sub(replacement, text)
