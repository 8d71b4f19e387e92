"""The command line: ``pgkeep COMMAND``."""

from __future__ import annotations

import sys

from pgkeep.cli.output import fail, say
from pgkeep.errors import PgkeepError

ARCHIVE_COMMANDS = ("archive-push", "archive-get")
INTERRUPTED_STATUS = 130


def main() -> None:
    """Run one command; the exit status is that of the error's class."""
    if len(sys.argv) > 1 and sys.argv[1] in ARCHIVE_COMMANDS:
        # The server waits for these, so they load nothing that they do not need.
        from pgkeep.cli.archive import main as archive_main

        sys.exit(archive_main(sys.argv[1], sys.argv[2:]))
    from pgkeep.cli.commands import app

    try:
        app(prog_name="pgkeep")
    except PgkeepError as error:
        sys.exit(fail(error))
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(INTERRUPTED_STATUS)


if __name__ == "__main__":
    main()
