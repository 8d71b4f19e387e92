"""``pgkeep-backend``: the process that the bridge runs for one Plugin line of one job."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import traceback
from types import TracebackType

from pgkeep import __version__
from pgkeep.bacula.channel import Channel
from pgkeep.bacula.interruption import Interrupted, Interruption
from pgkeep.bacula.session import converse
from pgkeep.errors import ChannelClosed, PgkeepError, SettingsError, UsageError

PIPE_BYTES = 1 << 20
CRASH_STATUS = 70
"""Exit status after a fault of pgkeep's own."""


def main() -> None:
    """Hold one conversation on standard input and output."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"pgkeep-backend {__version__}\n")
        return
    if sys.argv[1:]:
        sys.stderr.write("pgkeep-backend takes no arguments but --version: Bacula's File Daemon runs it\n")
        sys.exit(UsageError.exit_status)
    _keep_quiet()
    read_fd, write_fd = _take_descriptors()
    channel = Channel(read_fd, write_fd)
    interruption = Interruption(read_fd, write_fd)
    interruption.begin()
    channel.on_silence = interruption.end_for
    status = _hold(channel, interruption)
    interruption.end()
    channel.abandon()
    # Threads of libraries must not keep a job waiting that is over.
    sys.stderr.flush()
    os._exit(status)


def _hold(channel: Channel, interruption: Interruption) -> int:
    """Hold the conversation; return the exit status."""
    try:
        try:
            converse(channel)
            channel.flush()
        except BaseException:
            interruption.leave()
            raise
    except Interrupted as interrupted:
        # A bridge that cancels listens no more, one that hears nothing of the end does.
        if interruption.is_for_silence:
            _report(channel, interrupted)
        return interrupted.exit_status
    except ChannelClosed as closed:
        return closed.exit_status
    except PgkeepError as error:
        _report(channel, error)
        return error.exit_status
    except Exception as error:  # noqa: BLE001 - the last line of defence
        _report_crash(channel, error)
        return CRASH_STATUS
    return 0


def _report(channel: Channel, error: PgkeepError) -> None:
    """Tell the bridge why the operation ends. Plain bridges may go on after an E, so they get an A."""
    text = f"{error.message}\n{error.hint}" if error.hint else error.message
    with contextlib.suppress(PgkeepError):
        if channel.is_extended and not isinstance(error, SettingsError | UsageError):
            channel.error(text)
        else:
            channel.fatal(text)


def _report_crash(channel: Channel, error: Exception) -> None:
    """Tell where pgkeep failed; never with the error's own words, in which there may be a secret."""
    places = _places(error.__traceback__)
    with contextlib.suppress(PgkeepError):
        channel.fatal(
            f"internal error: {type(error).__name__} in {places[-1] if places else 'an unknown place'}\n"
            f"this is a fault of pgkeep {__version__}; please report it with this line: {' < '.join(reversed(places))}"
        )


def _keep_quiet() -> None:
    """Let no traceback reach standard error, which the bridge puts into the job's log: it may show a secret."""

    def tell(kind: type[BaseException] | None, trace: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, PgkeepError | KeyboardInterrupt):
            place = _places(trace)[-1:] or ["an unknown place"]
            sys.stderr.write(f"internal error: {kind.__name__} in {place[0]}\n")

    sys.excepthook = lambda kind, _, trace: tell(kind, trace)
    threading.excepthook = lambda told: tell(told.exc_type, told.exc_traceback)
    sys.unraisablehook = lambda told: tell(told.exc_type, told.exc_traceback)


def _places(trace: TracebackType | None) -> list[str]:
    """Return where each frame of *trace* is, outermost first."""
    frames = traceback.extract_tb(trace)
    return [f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]


def _take_descriptors() -> tuple[int, int]:
    """Return the conversation's descriptors; nothing else may write to standard output, or read standard input."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    # The default of 64 KiB makes both sides take turns; a refusal leaves it as it is.
    with contextlib.suppress(OSError):
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    # Whatever a library prints goes where the bridge reads complaints.
    os.dup2(2, 1)
    os.close(null)
    return read_fd, write_fd


if __name__ == "__main__":
    main()
