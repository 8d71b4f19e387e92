"""What people and programs read: lines on stderr, JSON on stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

from pgkeep.errors import PgkeepError

PREFIX = "pgkeep: "


def say(text: str) -> None:
    """Write one line of the job's log."""
    print(f"{PREFIX}{text}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Write one warning."""
    say(f"warning: {text}")


def fail(error: PgkeepError) -> int:
    """Write what went wrong and what to do about it; return the exit status."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    return error.exit_status


def print_json(document: Any) -> None:
    """Write *document* to stdout."""
    json.dump(document, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def print_line(text: str = "") -> None:
    """Write one line of a report to stdout."""
    print(text, flush=True)


def progress_is_shown() -> bool:
    """Tell whether somebody watches a terminal."""
    return sys.stderr.isatty()
