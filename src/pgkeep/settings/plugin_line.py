"""
Bacula's Plugin line: ``pgkeep: mode=pitr database="a b" abort_on_error``.

The text before the first colon names the plugin. Then words, divided by blanks; a double quote switches quoting on and
off anywhere in a word, a backslash takes the next character literally, in quotes or not; a word is split at its first
equals sign, and one without it is a bare name (Bacula ``lib/cmd_parser.h``, ``next_arg`` in ``lib/scan.c``). Where
Bacula lets an open quote run to the end of the line, we refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pgkeep.errors import SettingsError
from pgkeep.settings.assignment import PLUGIN_LINE, Assignment
from pgkeep.settings.table import find

_BLANKS = frozenset(" \t\n\v\f\r")  # C's isspace(), which knows no others
_PLUGIN_NAME = re.compile(r"[A-Za-z0-9_.*-]+")
_WORD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_PLAIN = re.compile(r"[^\s\"\\]+")
_ASSIGNED = re.compile(r'([A-Za-z_][A-Za-z0-9_-]*)=("(?:[^"\\]|\\.)*"?|(?:[^\s\\]|\\.)*)', re.DOTALL)
_MASK = "***"


@dataclass(frozen=True, slots=True)
class PluginLine:
    """
    A Plugin line, taken apart.

    Attributes:
        plugin: The name before the colon.
        words: Name and unquoted value in order; the value is None for a bare name.
    """

    plugin: str
    words: tuple[tuple[str, str | None], ...] = field(default=(), repr=False)

    def assignments(self) -> list[Assignment]:
        """Return the words as assignments."""
        return [Assignment(name, value, PLUGIN_LINE) for name, value in self.words]


def parse_plugin_line(line: str) -> PluginLine:
    """Return *line* taken apart; raise SettingsError when it is malformed. Names and values are not judged here."""
    plugin, _colon, _rest = line.partition(":")
    if _PLUGIN_NAME.fullmatch(plugin) is None:
        raise SettingsError(
            "Plugin line must begin with the plugin's name and a colon", hint='write "pgkeep: mode=... host=..."'
        )
    words = []
    for column, word in _split(line, len(plugin) + 1):
        name, equals, value = word.partition("=")
        if _WORD_NAME.fullmatch(name) is None:
            # The word itself is not shown: it may be the second half of a password with a blank in it.
            raise SettingsError(
                f"Plugin line must hold name=value words, found another at column {column}",
                hint="put a value with blanks into double quotes",
            )
        words.append((name, value if equals else None))
    return PluginLine(plugin, tuple(words))


def render_plugin_line(line: PluginLine) -> str:
    """Return the text that `parse_plugin_line` reads back as *line*."""
    words = [name if value is None else f"{name}={_quote(value)}" for name, value in line.words]
    return " ".join([f"{line.plugin}:", *words])


def render_for_director(line: PluginLine) -> str:
    """Return *line* as it stands in a FileSet, ``Plugin = "..."``: quoted once more for the Director's parser."""
    escaped = render_plugin_line(line).replace("\\", "\\\\").replace('"', '\\"')
    return f'Plugin = "{escaped}"'


def masked(line: str) -> str:
    """Return *line* for a log, with every secret masked; works on malformed lines too."""
    try:
        parsed = parse_plugin_line(line)
    except SettingsError:
        return _ASSIGNED.sub(_mask_match, line)
    words = tuple((name, _MASK if value and _is_secret(name) else value) for name, value in parsed.words)
    return render_plugin_line(PluginLine(parsed.plugin, words))


def _split(line: str, start: int) -> Iterator[tuple[int, str]]:
    """Yield the words of *line* from *start* on, unquoted, with the column (from 1) at which each begins."""
    position = start
    while True:
        while position < len(line) and line[position] in _BLANKS:
            position += 1
        if position >= len(line):
            return
        begin, word, quote = position, [], 0
        while position < len(line) and (quote or line[position] not in _BLANKS):
            character = line[position]
            position += 1
            if character == '"':
                quote = 0 if quote else position
            elif character == "\\":
                if position >= len(line):
                    raise SettingsError("Plugin line ends with a backslash that has nothing to quote")
                word.append(line[position])
                position += 1
            else:
                word.append(character)
        if quote:
            raise SettingsError(f"Plugin line has a double quote at column {quote} that is never closed")
        yield begin + 1, "".join(word)


def _quote(value: str) -> str:
    if _PLAIN.fullmatch(value) is not None and not _BLANKS & set(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _is_secret(name: str) -> bool:
    parameter = find(name)
    return parameter is not None and parameter.is_secret


def _mask_match(match: re.Match[str]) -> str:
    return f"{match[1]}={_MASK}" if _is_secret(match[1]) else match[0]
