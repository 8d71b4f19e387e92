"""The command line's options, as data: a door builds its own from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pgkeep.settings.assignment import COMMAND_LINE, Assignment
from pgkeep.settings.parameter import Kind, Parameter, Place
from pgkeep.settings.table import BY_NAME, PARAMETERS
from pgkeep.settings.values import expected_range, render_value

_METAVARS = {
    Kind.BOOL: "",
    Kind.INTEGER: "N",
    Kind.SIZE: "SIZE",
    Kind.DURATION: "DURATION",
    Kind.TEXT: "TEXT",
    Kind.TIME: "TIME",
    Kind.TIMEZONE: "ZONE",
    Kind.PATH: "PATH",
    Kind.LIST: "NAME,...",
    Kind.WORDS: "WORDS",
    Kind.MAP: "KEY:/PATH,...",
}


_NEVER_EMPTY = frozenset(
    {"target_time", "target_lsn", "target_name", "target_timeline", "backup_id", "pgdata_dir", "output_dir"}
)
"""What a restore brings back, and to where: who types an empty text does not mean the default."""

Typed = str | bool | list[str] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CliOption:
    """
    One option of a verb.

    Attributes:
        parameter: The row of the table.
        flags: ``--port``; the one to show first.
        negative_flags: ``--no-start-fast``, for a switch; empty otherwise.
        metavar: What stands for the value in the usage; empty for a switch.
        is_repeatable: Several occurrences add up to one list.
        help: One line, with range and default.
    """

    parameter: Parameter
    flags: tuple[str, ...]
    negative_flags: tuple[str, ...]
    metavar: str
    is_repeatable: bool
    help: str


def cli_options(verb: str) -> tuple[CliOption, ...]:
    """Return the options of *verb* in the order of the manual. Their values are texts; `from_flags` takes them."""
    return tuple(_option(p) for p in PARAMETERS if verb in p.verbs and Place.CLI in p.places)


def from_flags(values: Mapping[str, Typed | None]) -> list[Assignment]:
    """
    Return the assignments that the command line made.

    Args:
        values: Canonical name to what was typed: a text, True or False for a switch, texts for a repeatable option;
            None or an empty list when it was not typed. A relative path counts from the working directory.

    Raises:
        UsageError: What says where to or what up to is empty.
    """
    written = []
    for name, value in values.items():
        if value is None or (isinstance(value, list | tuple) and not value):
            continue
        parameter = BY_NAME[name]
        text = _text(parameter, value)
        if not text and name in _NEVER_EMPTY:
            # It would mean "not set": to the end of the WAL, or into the directory of the live server.
            raise COMMAND_LINE.error(
                f'{name} must not be empty, found "" on the command line',
                hint=f"is a variable of the shell not set? Leave {parameter.cli_flags[0]} out for the default: "
                f"{default_in_words(parameter)}",
            )
        written.append(Assignment(name, text, COMMAND_LINE))
    return written


def default_in_words(parameter: Parameter) -> str:
    """Return the default as the manual shows it."""
    return parameter.default_text or f"`{render_value(parameter, parameter.default)}`".replace("``", "none")


def _option(parameter: Parameter) -> CliOption:
    is_switch = parameter.kind is Kind.BOOL
    flags = parameter.cli_flags
    metavar = "|".join(parameter.choices) if parameter.kind is Kind.CHOICE else _METAVARS[parameter.kind]
    return CliOption(
        parameter=parameter,
        flags=flags,
        negative_flags=tuple(f"--no-{flag.removeprefix('--')}" for flag in flags[:1]) if is_switch else (),
        metavar=metavar,
        is_repeatable=parameter.kind in (Kind.LIST, Kind.MAP),
        help=_help(parameter),
    )


def _help(parameter: Parameter) -> str:
    notes = []
    if parameter.kind in (Kind.INTEGER, Kind.SIZE, Kind.DURATION) and (legal := expected_range(parameter)):
        notes.append(legal)
    if parameter.default is not None and parameter.default != () and not parameter.default_text:
        notes.append(f"default {render_value(parameter, parameter.default)}")
    summary = parameter.summary.replace("`", "")
    return f"{summary} [{'; '.join(notes)}]" if notes else summary


def _text(parameter: Parameter, value: Typed) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str):
        return ",".join(value)
    if parameter.kind is Kind.PATH and value and value not in parameter.choices:
        return os.path.abspath(value)
    return value
