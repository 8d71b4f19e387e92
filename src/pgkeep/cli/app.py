"""The command line: ``pgkeep COMMAND``."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
from types import FrameType

from pgkeep.cli.output import fail, say
from pgkeep.errors import PgkeepError

ARCHIVE_COMMANDS = ("archive-push", "archive-get")
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
COMPLETION_VARIABLE = "_PGKEEP_COMPLETE"
"""In the environment when a shell asks how a command line may go on; typer answers."""

GARBAGE_THRESHOLD = 20_000
"""After how many new objects the interpreter looks for garbage in cycles; its own 700 costs a twentieth of a start."""

SIGNALLED_STATUS = 128
"""Exit status of a command that a signal ended, plus the signal's number, as shells have it."""


class Interrupted(BaseException):
    """A signal asks for the end of the command; not an error, so that nothing on the way takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def program() -> None:
    """Run one command as the whole process; take no module apart at its end, which costs a twentieth of a second."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        main()
        status = 0
    except SystemExit as leaving:
        if not isinstance(leaving.code, int):
            raise
        status = leaving.code
    # Where the last of the output cannot be written, the interpreter has its own words for it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Run one command; the exit status is that of the error's class."""
    if len(sys.argv) > 1 and sys.argv[1] in ARCHIVE_COMMANDS:
        # The server waits for these, so they load nothing that they do not need.
        from pgkeep.cli.archive import main as archive_main

        sys.exit(archive_main(sys.argv[1], sys.argv[2:]))
    _end_in_order()
    from pgkeep.cli.plain_call import read_plain_call

    try:
        call = None if COMPLETION_VARIABLE in os.environ else read_plain_call(sys.argv[1:])
        if call is None:
            from pgkeep.cli.commands import app

            try:
                app(prog_name="pgkeep")
            except SystemExit as leaving:
                # Typer takes any broken pipe for a reader that left.
                if isinstance(leaving.__context__, BrokenPipeError):
                    raise leaving.__context__ from None
                raise
        else:
            call.run()
    except PgkeepError as error:
        sys.exit(fail(error))
    except Interrupted as interrupted:
        say(f"interrupted by {signal.Signals(interrupted.number).name}")
        sys.exit(SIGNALLED_STATUS + interrupted.number)
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        _drop_output()
        sys.exit(1)


def _reader_has_left() -> bool:
    """Tell whether nobody reads the output, or the messages, any more; a child or a server may have left as well."""
    outputs = select.poll()
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                outputs.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in outputs.poll(0))


def _drop_output() -> None:
    """Let what is still to be written go nowhere: whoever read it has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _end_in_order() -> None:
    """Let signals end a command as an error does: what it began is undone, what it started is stopped."""
    for number in ENDING_SIGNALS:
        # Whoever runs a command by nohup has SIGHUP ignored, and means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what the interpreter passes
    # The second one does not wait for the tidying up.
    for ending in ENDING_SIGNALS:
        signal.signal(ending, signal.SIG_DFL)
    raise Interrupted(number)


if __name__ == "__main__":
    program()
