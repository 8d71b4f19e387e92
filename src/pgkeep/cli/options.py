"""The command line's options, built from the table of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Optional

import typer

from pgkeep.cli.unbuilt_options import NOT_BUILT
from pgkeep.settings import CliOption, cli_options


def with_options(verb: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """
    Give a command the options that the table has for *verb*, as ``values``: canonical name to what was typed.

    A parameter that the command declares itself is left to it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "values"]
        options = {o.parameter.name: o for o in cli_options(verb) if o.parameter.name not in NOT_BUILT}
        taken = {parameter.name for parameter in own}

        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in options if name not in taken}
            command(**given, values=values)

        added = [_parameter(name, option) for name, option in options.items() if name not in taken]
        run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        return run

    return decorate


def _parameter(name: str, option: CliOption) -> inspect.Parameter:
    flags = [*option.flags]
    kind: Any = Optional[str]  # noqa: UP045 - typer reads the annotation at run time
    if option.negative_flags:
        flags = [f"{'/'.join([flags[0], option.negative_flags[0]])}", *flags[1:]]
        kind = Optional[bool]  # noqa: UP045 - the same
    elif option.is_repeatable:
        kind = Optional[list[str]]  # noqa: UP045 - the same
    default = typer.Option(
        None,
        *flags,
        help=option.help,
        metavar=option.metavar or None,
        show_default=False,
        rich_help_panel=option.parameter.group.value,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
