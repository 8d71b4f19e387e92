"""The settings of one job: a typed value for every parameter, and where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgkeep.errors import UsageError
from pgkeep.settings.assignment import DEFAULT, Assignment, Origin, assignments, carries_password
from pgkeep.settings.parameter import Place
from pgkeep.settings.table import BY_NAME, PARAMETERS
from pgkeep.settings.values import render_value


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and its origin; the value is never in the repr, since it may be a secret."""

    value: Any = field(repr=False)
    origin: Origin = DEFAULT


@dataclass(frozen=True, slots=True)
class Resolved:
    """
    What holds after precedence.

    Attributes:
        given: Canonical name to setting, for what is not a default.
        warnings: One line each, for the job log.
    """

    given: Mapping[str, Setting]
    warnings: tuple[str, ...] = ()

    def get(self, name: str) -> Any:
        """Return the value of the parameter whose canonical name is *name*: its default when nobody gave one."""
        setting = self.given.get(name)
        return BY_NAME[name].default if setting is None else setting.value

    def text(self, name: str) -> str | None:
        """Return the value of a text, choice, path or time; None when it is not set."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is not a text")
        return value

    def number(self, name: str) -> int:
        """Return the value of an integer, a size in bytes or a duration in seconds, which must have a default."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is not a number")
        return value

    def optional_number(self, name: str) -> int | None:
        """Return the value of a number that may not be set."""
        return None if self.get(name) is None else self.number(name)

    def flag(self, name: str) -> bool:
        """Return the value of a yes-or-no parameter."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise TypeError(f"{name} is not yes or no")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """Return the elements of a list, or the words of an option string; may be empty."""
        value = self.get(name)
        if not isinstance(value, tuple):
            raise TypeError(f"{name} is not a list")
        return value

    def mapping(self, name: str) -> dict[str, str]:
        """Return a map, key to path; may be empty."""
        return dict(self.get(name))

    def require(self, name: str) -> str:
        """Return the value of a text that this job cannot do without; raise UsageError with where to set it."""
        value = self.text(name)
        if value is None:
            parameter = BY_NAME[name]
            ways = [f"give {parameter.cli_flags[0]}"] if parameter.cli_flags else []
            if Place.CONFIG in parameter.places:
                ways.append(f"set {name} in [{parameter.section}] of the configuration file")
            raise UsageError(f"{name} is not set", hint=", or ".join(ways))
        return value

    def origin(self, name: str) -> Origin:
        """Return where the value of *name* came from."""
        setting = self.given.get(name)
        return DEFAULT if setting is None else setting.origin

    def is_given(self, name: str) -> bool:
        """Tell whether somebody gave a value, be it that of the default."""
        return name in self.given

    def explain(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, value as text (secrets masked) and origin of every parameter, in the order of the table."""
        for parameter in PARAMETERS:
            value = self.get(parameter.name)
            shown = "***" if parameter.is_secret and value else render_value(parameter, value)
            yield parameter.name, shown, self.origin(parameter.name).where

    def to_assignments(self, origin: Origin) -> list[Assignment]:
        """
        Return what was given as assignments from *origin*, without anything that holds a password.

        For handing settings on, to a later `finish` or another process.
        """
        texts = {name: render_value(BY_NAME[name], setting.value) for name, setting in self.given.items()}
        return assignments({n: t for n, t in texts.items() if not carries_password(BY_NAME[n], t)}, origin)
