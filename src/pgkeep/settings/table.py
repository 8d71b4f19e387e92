"""The one table of all parameters. Parsers, precedence, command line, restore menu and manual are made from it."""

from __future__ import annotations

from types import MappingProxyType

from pgkeep.settings.parameter import Group, Parameter, Place
from pgkeep.settings.parameters import connection, dump, general, physical, restore, vault

PARAMETERS: tuple[Parameter, ...] = (
    *general.PARAMETERS,
    *connection.PARAMETERS,
    *dump.PARAMETERS,
    *physical.PARAMETERS,
    *vault.PARAMETERS,
    *restore.PARAMETERS,
)
"""Every parameter, in the order of the manual."""

BY_NAME = MappingProxyType({parameter.name: parameter for parameter in PARAMETERS})
"""Canonical name to parameter."""

_BY_ANY_NAME = {name: parameter for parameter in PARAMETERS for name in parameter.names}


def normal_name(name: str) -> str:
    """Return *name* as the table spells names: lower case, underscores."""
    return name.strip().lower().replace("-", "_")


def find(name: str) -> Parameter | None:
    """Return the parameter called *name*, canonical or alias, in any case; None when there is none."""
    return _BY_ANY_NAME.get(normal_name(name))


def nearest_name(name: str, place: Place) -> str:
    """Return the known name that resembles *name* most and may be given at one of *place*; empty when none does."""
    import difflib  # only ever needed for an error

    known = [other for other, parameter in _BY_ANY_NAME.items() if place & parameter.places]
    found = difflib.get_close_matches(normal_name(name), known, n=1, cutoff=0.6)
    return found[0] if found else ""


def of_group(group: Group) -> tuple[Parameter, ...]:
    """Return the parameters of one chapter, in order."""
    return tuple(parameter for parameter in PARAMETERS if parameter.group is group)


def restore_menu() -> tuple[Parameter, ...]:
    """Return the items of Bacula's restore menu; the first is item 1."""
    return tuple(sorted((p for p in PARAMETERS if p.menu is not None), key=lambda parameter: parameter.menu or 0))
