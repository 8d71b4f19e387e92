"""What somebody wrote: a name, a text, and where it stands."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pgkeep.errors import PgkeepError, SettingsError, UsageError
from pgkeep.settings.parameter import Kind, Parameter, Place

_PASSWORD_IN_CONNINFO = re.compile(r"password\s*=|://[^/@\s]*:[^/@\s]*@", re.IGNORECASE)


class Rank(enum.IntEnum):
    """Precedence: the higher one wins."""

    DEFAULT = 0
    OPTIONS = 1
    """[connection] and [options] of the configuration file."""
    CLUSTER = 2
    """[cluster:<id>] of the configuration file."""
    PROFILE = 3
    """A restore profile on this host."""
    LINE = 4
    """The Plugin line, or a flag of the command line."""
    RESTORE = 5
    """Bacula's restore menu."""
    WHERE = 6
    """Options inside ``where=``."""


@dataclass(frozen=True, slots=True)
class Origin:
    """
    Where an assignment stands.

    Attributes:
        rank: Its precedence.
        place: What the table calls this place.
        where: For messages, with its preposition: ``in the Plugin line``.
    """

    rank: Rank
    place: Place
    where: str

    def error(self, message: str, *, hint: str = "") -> PgkeepError:
        """Return the error for something wrong here: a usage error for what was just typed, else a settings error."""
        typed = self.place is Place.CLI or self.rank >= Rank.RESTORE
        return (UsageError if typed else SettingsError)(message, hint=hint)


DEFAULT = Origin(Rank.DEFAULT, Place(0), "by default")
PLUGIN_LINE = Origin(Rank.LINE, Place.PLUGIN_LINE, "in the Plugin line")
COMMAND_LINE = Origin(Rank.LINE, Place.CLI, "on the command line")
RESTORE_MENU = Origin(Rank.RESTORE, Place.RESTORE, "in the restore options")
WHERE = Origin(Rank.WHERE, Place.RESTORE, "in where=")


@dataclass(frozen=True, slots=True)
class Assignment:
    """
    One ``name=text`` as it was written.

    Attributes:
        name: As written: canonical or alias, any case.
        text: The unquoted value; None for a bare word, which only a yes-or-no parameter may be.
        origin: Where it stands.
    """

    name: str
    text: str | None = field(repr=False)
    origin: Origin


def assignments(pairs: Mapping[str, str | None] | Iterable[tuple[str, str | None]], origin: Origin) -> list[Assignment]:
    """Return the assignments of *pairs*, all from *origin*."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return [Assignment(name, text, origin) for name, text in items]


def carries_password(parameter: Parameter, text: str | None) -> bool:
    """Tell whether *text*, given for *parameter*, holds a password."""
    if not parameter.is_secret or not text:
        return False
    return parameter.name != "primary_conninfo" or _PASSWORD_IN_CONNINFO.search(text) is not None


def shown(parameter: Parameter, text: str) -> str:
    """Return *text* as a message may show it: masked for a secret, cut when it is long."""
    if parameter.is_secret:
        return "***"
    return f'"{text if len(text) <= 200 else text[:200] + "..."}"'


def is_bare_allowed(parameter: Parameter) -> bool:
    """Tell whether the bare name means yes."""
    return parameter.kind is Kind.BOOL or "yes" in parameter.synonyms
