"""
The manual's page of commands, made from the commands themselves: ``python -m pgkeep.cli.reference [--check]``.

What is typed is in ``commands.py`` and in the table of parameters; the exit statuses are those of the error classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from pgkeep import errors
from pgkeep.cli.archive import USAGE
from pgkeep.cli.commands import app
from pgkeep.errors import PgkeepError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "commands.md"

_INTRODUCTION = """\
# Commands and exit statuses

<!-- Made by `python -m pgkeep.cli.reference`; edit the commands, not this page. -->

People read stderr, programs read `--json` on stdout. Fields of the JSON are only ever added. Each value is taken from
the command line, else from the cluster's section of the [configuration file](parameters.md), else from its
`[connection]` and `[options]`, else from the default. `pgkeep --install-completion` installs completion for your shell.
"""

_STATUSES = """\
## Exit statuses

| Status | Class | What to do |
|---|---|---|
| 0 | | done |
"""

_ARCHIVE_STATUSES = """
`archive-push` fails within 1 to 125, so that the server tries again. `archive-get` says 0 for a file that it delivered
and 1 for one that is proved absent and that no restore plan needs; everything else is above 125, because PostgreSQL
takes 1 to 125 for "no such file" and may end recovery early.
"""


def render() -> str:
    """Return the page."""
    group = typer.main.get_command(app)
    commands: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    lines = [_INTRODUCTION]
    for name, command in commands.items():
        for words, one in _single(name, command):
            lines += _command(words, one)
    lines += [_STATUSES.rstrip("\n"), *_status_rows(), _ARCHIVE_STATUSES]
    return "\n".join(lines)


def _single(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield the command itself, or of a group its commands, each with all its words."""
    below: dict[str, Any] = getattr(command, "commands", {})
    if not below:
        yield name, command
    for word, one in below.items():
        yield f"{name} {word}", one


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## pgkeep {name}\n"
    yield f"{(command.help or '').strip().splitlines()[0]}\n"
    if name in USAGE:
        yield f"```\n{USAGE[name]}\n```\n"
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["pgkeep", name, *(p.metavar or p.name.upper() for p in arguments), "[OPTION]..."])
    yield f"```\n{usage}\n```\n"
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    yield "| Option | |"
    yield "|---|---|"
    for option in options:
        yield f"| {_flags(option)} | {_cell(option.help or '')} |"
    yield ""


def _flags(option: Any) -> str:
    flags = [f"`{flag}`" for flag in (*option.opts, *option.secondary_opts) if flag.startswith("-")]
    value = "" if option.is_flag else f" {_cell(option.metavar or '')}"
    return ", ".join(flags) + value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _status_rows() -> Iterator[str]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PgkeepError)]
    for kind in sorted(kinds, key=lambda kind: kind.exit_status):
        yield f"| {kind.exit_status} | {kind.__name__} | {(kind.__doc__ or '').strip().splitlines()[0]} |"
    yield "| 128 + n | | signal n ended it: 130 for Ctrl-C, 143 for SIGTERM |"


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is stale; return the exit status."""
    text = render()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != text:
        sys.stderr.write(f"{PAGE} is stale: run python -m pgkeep.cli.reference\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
