"""
Run pgkeep, and kill it with SIGKILL at the n-th event of a kind.

::

    python killed_at.py 1 os.link manifest backup main --vault=...

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
    """Take the count, the event and the pattern off the command line; the rest is pgkeep's."""
    left, wanted, pattern = int(sys.argv[1]), sys.argv[2], re.compile(sys.argv[3])
    del sys.argv[1:4]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == wanted and pattern.search(" ".join(map(str, arguments))):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    from pgkeep.cli.app import main as pgkeep

    sys.addaudithook(watch)
    pgkeep()


if __name__ == "__main__":
    main()
