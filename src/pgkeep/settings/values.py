"""Values: from text to a type and back, one pair of functions per kind."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

from pgkeep.settings.parameter import Kind, Parameter


class Unacceptable(ValueError):
    """A text that a parameter does not take; the message completes "must be ...". Never leaves this package."""


_TRUE = frozenset({"yes", "true", "on", "1"})
_FALSE = frozenset({"no", "false", "off", "0"})

_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))?\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_SIZE_EXPECTED = "a size such as 512k, 500M or 10G"
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}

_DURATION = re.compile(r"(?:[0-9]{1,12}\s*[a-z]+\s*)+|[0-9]{1,12}", re.IGNORECASE | re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_DURATION_EXPECTED = "a duration such as 30s, 5min, 2h or 7d"
_DURATION_UNITS = {"w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1}
_DURATION_NAMES = {"sec": "s", "second": "s", "minute": "min", "hour": "h", "day": "d", "week": "w"}

# Their parsers know which blanks at the ends are meant.
_SPLIT_KINDS = frozenset({Kind.LIST, Kind.MAP, Kind.WORDS})
_MAP_KEY = re.compile(r"[^:/]+")


def parse_value(parameter: Parameter, text: str) -> Any:
    """
    Return the value that *text* stands for.

    Returns:
        bool for BOOL; int for INTEGER, SIZE (bytes) and DURATION (seconds); a tuple of str for LIST and WORDS; a tuple
        of (key, absolute path) for MAP; else str. None for an empty text where the kind is a text: not set.

    Raises:
        Unacceptable: with what is expected, to follow "must be".
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise Unacceptable("one line without control characters")
    if not parameter.is_secret and parameter.kind not in _SPLIT_KINDS:
        text = text.strip()
    value = _PARSERS[parameter.kind](parameter, text)
    if isinstance(value, str):
        _check_text(parameter, value)
    return value


def render_value(parameter: Parameter, value: Any) -> str:
    """Return the text that `parse_value` reads back as *value*, in the form that people prefer."""
    if value is None:
        return ""
    return _RENDERERS.get(parameter.kind, str)(value)


def expected_range(parameter: Parameter) -> str:
    """Return the legal range or choices in words, as the manual and errors say it; empty when anything goes."""
    if parameter.kind is Kind.CHOICE:
        return "one of " + ", ".join(parameter.choices)
    if parameter.pattern_text:
        return parameter.pattern_text
    if parameter.kind is Kind.TEXT and parameter.maximum is not None:
        return f"at most {parameter.maximum} bytes"
    if parameter.kind is Kind.LIST:
        return "at least one name" if parameter.minimum else ""
    if parameter.minimum is None or parameter.maximum is None:
        return ""
    return f"from {render_value(parameter, parameter.minimum)} to {render_value(parameter, parameter.maximum)}"


def _parse_bool(_parameter: Parameter, text: str) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise Unacceptable("yes or no")
    return word in _TRUE


def _parse_integer(parameter: Parameter, text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII) is None:
        raise Unacceptable(f"a whole number {expected_range(parameter)}".rstrip())
    return _within(parameter, int(text))


def _parse_size(parameter: Parameter, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Unacceptable(_SIZE_EXPECTED)
    unit = _SIZE_UNITS[match[3].lower()]
    part = match[2] or "0"
    return _within(parameter, int(match[1]) * unit + int(part) * unit // 10 ** len(part))


def _parse_duration(parameter: Parameter, text: str) -> int:
    if _DURATION.fullmatch(text) is None:
        raise Unacceptable(_DURATION_EXPECTED)
    seconds = 0
    for number, unit in _DURATION_PART.findall(text):
        name = unit.lower()
        if len(name) > 3:
            name = name.removesuffix("s")
        name = (parameter.unit or "s") if not name else _DURATION_NAMES.get(name, name)
        if name not in _DURATION_UNITS:
            raise Unacceptable(_DURATION_EXPECTED)
        seconds += int(number) * _DURATION_UNITS[name]
    return _within(parameter, seconds)


def _parse_choice(parameter: Parameter, text: str) -> str:
    word = text.lower()
    word = parameter.synonyms.get(word, word)
    if word not in parameter.choices:
        raise Unacceptable(expected_range(parameter))
    return word


def _parse_text(_parameter: Parameter, text: str) -> str | None:
    return text or None


def _parse_timezone(_parameter: Parameter, text: str) -> str | None:
    if not text:
        return None
    import zoneinfo  # only for who sets a zone

    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Unacceptable("the name of a time zone such as America/Sao_Paulo") from error
    return text


def _parse_path(parameter: Parameter, text: str) -> str | None:
    if not text or text in parameter.choices:
        return text or None
    if not text.startswith("/"):
        words = "".join(f" or {word}" for word in parameter.choices)
        raise Unacceptable(f"an absolute path{words}")
    return text


def _parse_list(parameter: Parameter, text: str) -> tuple[str, ...]:
    elements = tuple(_elements(text))
    if "" in elements:
        raise Unacceptable("a list without empty elements")
    if len(elements) < (parameter.minimum or 0):
        raise Unacceptable("at least one name")
    return elements


def _parse_words(_parameter: Parameter, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise Unacceptable("words with closed quotes") from error


def _parse_map(_parameter: Parameter, text: str) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for element in _elements(text):
        key, colon, path = element.partition(":")
        key, path = key.strip(), path.strip()
        if not colon or _MAP_KEY.fullmatch(key) is None or not path.startswith("/") or pairs.get(key, path) != path:
            raise Unacceptable("a list such as 16405:/srv/fast,slow:/srv/slow that names each tablespace once")
        pairs[key] = path
    return tuple(pairs.items())


def _elements(text: str) -> list[str]:
    """Split at commas and strip blanks; a backslash before a comma, a blank or a backslash keeps that character."""
    elements = [""]
    kept = 0  # length up to which trailing blanks of the current element are meant
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] in {",", " ", "\\"}:
            position += 1
            elements[-1] += text[position]
            kept = len(elements[-1])
        elif character == ",":
            elements[-1] = _strip_after(elements[-1], kept)
            elements.append("")
            kept = 0
        elif character != " " or elements[-1]:
            elements[-1] += character
        position += 1
    elements[-1] = _strip_after(elements[-1], kept)
    return [] if elements == [""] else elements


def _strip_after(element: str, kept: int) -> str:
    """Return *element* without trailing blanks after its first *kept* characters."""
    return element[:kept] + element[kept:].rstrip(" ")


def _escape_element(element: str) -> str:
    escaped = element.replace("\\", "\\\\").replace(",", "\\,")
    inner = escaped.strip(" ")
    if not inner:
        return escaped.replace(" ", "\\ ")
    before = len(escaped) - len(escaped.lstrip(" "))
    after = len(escaped) - len(escaped.rstrip(" "))
    return "\\ " * before + inner + "\\ " * after


def _within(parameter: Parameter, number: int) -> int:
    below = parameter.minimum is not None and number < parameter.minimum
    if below or (parameter.maximum is not None and number > parameter.maximum):
        raise Unacceptable(expected_range(parameter))
    return number


def _check_text(parameter: Parameter, text: str) -> None:
    """Hold *text* against pattern and length."""
    if parameter.kind is not Kind.TEXT or text in parameter.choices:
        return
    if parameter.pattern and re.fullmatch(parameter.pattern, text, re.ASCII) is None:
        raise Unacceptable(expected_range(parameter))
    if parameter.maximum is not None and len(text.encode("utf-8", "surrogatepass")) > parameter.maximum:
        raise Unacceptable(expected_range(parameter))


def _render_bool(value: Any) -> str:
    return "yes" if value else "no"


def _render_size(value: Any) -> str:
    return _in_largest_unit(value, {name.upper(): size for name, size in reversed(_SIZE_UNITS.items())})


def _render_duration(value: Any) -> str:
    return _in_largest_unit(value, {name: seconds for name, seconds in _DURATION_UNITS.items() if name != "w"})


def _in_largest_unit(number: int, units: dict[str, int]) -> str:
    """Return *number* in the largest of *units*, largest first, that divides it."""
    return next((f"{number // size}{name}" for name, size in units.items() if number and number % size == 0), "0")


def _render_list(value: Any) -> str:
    return ",".join(_escape_element(element) for element in value)


def _render_map(value: Any) -> str:
    return ",".join(_escape_element(f"{key}:{path}") for key, path in value)


_PARSERS = {
    Kind.BOOL: _parse_bool,
    Kind.INTEGER: _parse_integer,
    Kind.SIZE: _parse_size,
    Kind.DURATION: _parse_duration,
    Kind.CHOICE: _parse_choice,
    Kind.TEXT: _parse_text,
    Kind.TIME: _parse_text,
    Kind.TIMEZONE: _parse_timezone,
    Kind.PATH: _parse_path,
    Kind.LIST: _parse_list,
    Kind.WORDS: _parse_words,
    Kind.MAP: _parse_map,
}

_RENDERERS: dict[Kind, Callable[[Any], str]] = {
    Kind.BOOL: _render_bool,
    Kind.SIZE: _render_size,
    Kind.DURATION: _render_duration,
    Kind.LIST: _render_list,
    Kind.MAP: _render_map,
    Kind.WORDS: shlex.join,
}
