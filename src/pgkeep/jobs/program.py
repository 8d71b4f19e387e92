"""Where this program itself is, for commands that somebody else will run: the server, a service, the demo."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path


def pgkeep_words() -> list[str]:
    """Return the command line that runs pgkeep as it runs now, with absolute paths."""
    called = Path(sys.argv[0])
    for candidate in (called if called.is_absolute() else called.absolute(), Path(sys.executable).with_name("pgkeep")):
        if candidate.name == "pgkeep" and candidate.is_file():
            return [str(candidate)]
    return [sys.executable, "-m", "pgkeep.cli.app"]


def archive_words() -> list[str]:
    """Return the command line up to ``archive-push`` or ``archive-get``: the small client's where it is installed."""
    words = pgkeep_words()
    client = Path(words[0]).with_name("pgkeep-wal")
    return [str(client)] if client.is_file() else words


def server_command(words: Iterable[str], placeholders: str) -> str:
    """Return *words* as the server takes an archive_command or restore_command, its *placeholders* behind them."""
    # Through a shell, and before that a percent sign in a path would be taken for one of the server's own.
    quoted = " ".join(shlex.quote(word).replace("%", "%%") for word in words)
    return f"{quoted} {placeholders}"


def has_client() -> bool:
    """Tell whether the small client is installed beside this program."""
    return Path(archive_words()[0]).name == "pgkeep-wal"
