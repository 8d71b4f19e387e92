"""
The options of one restore, from everywhere they may stand.

The higher place wins: ``where=``, the restore menu, the Plugin line, a profile on the client, the configuration file.
"""

from __future__ import annotations

import re
from dataclasses import replace

from pgkeep.bacula.session import Session
from pgkeep.bacula.where import Where
from pgkeep.errors import SettingsError, UsageError
from pgkeep.settings import (
    RESTORE_MENU,
    WHERE,
    Assignment,
    Place,
    Resolved,
    assignments,
    find,
    profile_path,
    read_config,
    read_profile,
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def parse_options_text(text: str) -> list[tuple[str, str]]:
    """
    Return name and value of each option in *text*, what was chosen in Bacula's restore menu.

    A line is empty, a comment, or ``name=value``; a value in double quotes has backslashes before quotes and
    backslashes. Options that were left empty are left out.

    Raises:
        UsageError: A line is none of these.
    """
    options = []
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        name, value = name.rstrip(), value.lstrip()
        if not equals or _NAME.fullmatch(name) is None:
            raise UsageError(f"line {number} of the restore options must be name=value")
        if value.startswith('"'):
            found = _QUOTED.fullmatch(value)
            if found is None:
                raise UsageError(f"the value of {name} in the restore options has a quote that is not closed")
            value = _ESCAPE.sub(r"\1", found[1])
        elif '"' in value or "\\" in value:
            raise UsageError(f"the value of {name} in the restore options must stand in quotes as a whole")
        if value:
            options.append((name, value))
    return options


def restore_settings(session: Session, where: Where) -> Resolved:
    """
    Return what holds for this restore, and put its warnings into the job's log.

    Raises:
        SettingsError, UsageError: An option is unknown, not allowed where it stands, or not acceptable.
    """
    line, menu = _line_and_menu(session)
    menu += assignments(parse_options_text(session.restore_options), RESTORE_MENU)
    further = [*menu, *assignments(where.options, WHERE)]
    profile = _profile(further)
    if profile:
        further += _profile_assignments(session, profile)
    return replace(session, words=line).settings("restore", further)


def _line_and_menu(session: Session) -> tuple[tuple[tuple[str, str | None], ...], list[Assignment]]:
    """Return the Plugin line's words, and those that a plain bridge mixed in among them from the menu."""
    if session.hello.is_extended:
        return session.words, []
    line, menu = [], []
    for name, value in session.words:
        parameter = find(name)
        if parameter is not None and not parameter.places & Place.PLUGIN_LINE and parameter.places & Place.RESTORE:
            if value:
                menu.append((name, value))
        else:
            line.append((name, value))
    return tuple(line), assignments(menu, RESTORE_MENU)


def _profile(written: list[Assignment]) -> str:
    named = [one for one in written if (parameter := find(one.name)) is not None and parameter.name == "profile"]
    return max(named, key=lambda one: one.origin.rank).text or "" if named else ""


def _profile_assignments(session: Session, name: str) -> list[Assignment]:
    parameter = find("profile")
    assert parameter is not None
    if re.fullmatch(parameter.pattern, name) is None:
        # It becomes a path.
        raise UsageError(f'profile must be {parameter.pattern_text}, found "{name[:80]}"')
    path = profile_path(read_config(session.config_path()), name)
    try:
        return list(read_profile(path).profile)
    except SettingsError as error:
        raise SettingsError(f"profile {name}: {error.message}", hint=error.hint) from error
