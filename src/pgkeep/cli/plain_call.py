"""
A command that is typed in its plain form, read without typer.

Loading typer, and letting it build every command, takes longer than many a command has to do otherwise. What is plain
means here exactly what typer makes of it; whatever is not, as help, a mistake, an abbreviation, is left to typer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgkeep.cli.door import open_call
from pgkeep.cli.unbuilt_options import NOT_BUILT
from pgkeep.settings import CliOption, cli_options

_RUN_SWITCHES: Mapping[str, Mapping[str, str]] = {
    "backup": {"--plan": "plan_only", "--json": "as_json"},
    "check": {"--json": "as_json"},
    "merge": {"--json": "as_json"},
    "receive": {},
    "restore": {"--json": "as_json"},
    "verify": {"--json": "as_json"},
}
"""The commands about one cluster, or some: what their own switches are to ``run``."""

_SEVERAL = frozenset({"receive"})
"""Those that take several."""


@dataclass(frozen=True, slots=True)
class PlainCall:
    """
    A plain command.

    Attributes:
        verb: The command.
        clusters: Its arguments: one, but for a command that takes several.
        values: Canonical name of each option to what was typed, None where nothing was.
        switches: What the command's own switches are set to, by the name that ``run`` has for them.
    """

    verb: str
    clusters: tuple[str, ...]
    values: dict[str, Any]
    switches: dict[str, bool]

    def run(self) -> None:
        """Run it."""
        # The settings first: what is wrong there is said before the job's libraries are loaded.
        calls = [open_call(self.verb, cluster, self.values) for cluster in self.clusters]
        run: Callable[..., None] = importlib.import_module(f"pgkeep.cli.{self.verb}").run
        run(calls if self.verb in _SEVERAL else calls[0], **self.switches)


def read_plain_call(arguments: Sequence[str]) -> PlainCall | None:
    """Return the command in *arguments*, without the program's name; None when typer must look at them."""
    if not arguments or arguments[0] not in _RUN_SWITCHES:
        return None
    verb, clusters = arguments[0], []
    own = _RUN_SWITCHES[verb]
    switches = dict.fromkeys(own.values(), False)
    options = [option for option in cli_options(verb) if option.parameter.name not in NOT_BUILT]
    by_flag = {flag: option for option in options for flag in (*option.flags, *option.negative_flags)}
    values: dict[str, Any] = {option.parameter.name: None for option in options}
    rest = iter(arguments[1:])
    for typed in rest:
        flag, has_value, value = typed.partition("=")
        option = by_flag.get(flag)
        if typed in own:
            switches[own[typed]] = True
        elif not typed.startswith("-"):
            clusters.append(typed)
        elif option is None:
            return None
        elif _is_switch(option):
            if has_value:
                return None
            values[option.parameter.name] = flag not in option.negative_flags
        else:
            value = value if has_value else next(rest, "-")
            # A value that looks like an option is as likely one that was forgotten.
            if value.startswith("-") and not has_value:
                return None
            _add(values, option, value)
    # An empty argument counts as none.
    if not clusters or not all(clusters) or (len(clusters) > 1 and verb not in _SEVERAL):
        return None
    return PlainCall(verb, tuple(clusters), values, switches)


def _is_switch(option: CliOption) -> bool:
    return bool(option.negative_flags)


def _add(values: dict[str, Any], option: CliOption, value: str) -> None:
    name = option.parameter.name
    if option.is_repeatable:
        values[name] = [*(values[name] or []), value]
    else:
        values[name] = value
