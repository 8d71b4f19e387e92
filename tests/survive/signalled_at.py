"""
Run pgkeep, and send it a signal at the n-th event of a kind.

::

    python signalled_at.py KILL 1 os.link manifest backup main --vault=...

Events are those of ``sys.audit``, raised just before the interpreter does what they say; the pattern is searched in
their arguments.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any


def main() -> None:
    """Take signal, count, event and pattern off the command line; the rest is pgkeep's."""
    number, left = signal.Signals[f"SIG{sys.argv[1]}"], int(sys.argv[2])
    wanted, pattern = sys.argv[3], re.compile(sys.argv[4])
    del sys.argv[1:5]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == wanted and pattern.search(" ".join(map(str, arguments))):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

    from pgkeep.cli.app import main as pgkeep

    sys.addaudithook(watch)
    pgkeep()


if __name__ == "__main__":
    main()
