"""What a data directory says about its server: ``postmaster.pid`` and ``global/pg_control``."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import FormatError, ServerError
from pgkeep.pg import data_directory as names
from pgkeep.pg.control_file import ControlFile, parse_control_file

_CONTROL_FILE_ATTEMPTS = 5
_CONTROL_FILE_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class PostmasterFile:
    """
    What ``postmaster.pid`` says; the server writes it line by line while it starts.

    Attributes:
        pid: The postmaster's, or that of a single-user server.
        start_time: When it started, seconds since the epoch; 0 while it is not known.
        port: 0 while it is not known.
        socket_directory: Empty while it is not known, or when there is none.
        status: ``starting``, ``stopping``, ``ready``, ``standby``; empty while it is not known.

    Source:
        ``src/include/utils/pidfile.h``.
    """

    pid: int
    start_time: int
    port: int
    socket_directory: str
    status: str


def read_postmaster_file(data_directory: Path) -> PostmasterFile | None:
    """Return what ``postmaster.pid`` says, whether or not its server lives; None when there is no such file."""
    try:
        lines = (data_directory / names.POSTMASTER_PID).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServerError(f"cannot read {data_directory / names.POSTMASTER_PID}: {error.strerror}") from error
    lines += [""] * (8 - len(lines))
    try:
        # A single-user server writes its own number with a minus sign.
        pid = abs(int(lines[0]))
    except ValueError:
        return None
    start_time, port = (int(line) if line.strip().isdigit() else 0 for line in lines[2:4])
    return PostmasterFile(pid, start_time, port, lines[4].strip(), lines[7].strip())


def running_postmaster(data_directory: Path) -> PostmasterFile | None:
    """Return what ``postmaster.pid`` says when the server that wrote it lives; None otherwise."""
    found = read_postmaster_file(data_directory)
    if found is None or found.pid == os.getpid():
        return None
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    # After a reboot the number may be another program's. A postmaster works in its data directory.
    try:
        working_directory = os.stat(f"/proc/{found.pid}/cwd")
    except OSError:
        return None if _is_zombie(found.pid) else found
    return found if os.path.samestat(working_directory, os.stat(data_directory)) else None


def read_control_file(data_directory: Path) -> ControlFile:
    """
    Return the state of the cluster in *data_directory*, whose server may be running.

    Raises:
        ServerError: The file cannot be read.
        FormatError: It is damaged or of a version that is not supported.
    """
    path = data_directory / names.CONTROL_FILE
    pause = threading.Event()
    for attempt in range(1, _CONTROL_FILE_ATTEMPTS + 1):
        try:
            return parse_control_file(path.read_bytes())
        except OSError as error:
            raise ServerError(f"cannot read {path}: {error.strerror}") from error
        except FormatError:
            # The server may have been writing it; see get_controlfile in src/common/controldata_utils.c.
            if attempt == _CONTROL_FILE_ATTEMPTS:
                raise
            pause.wait(_CONTROL_FILE_PAUSE_SECONDS)
    raise AssertionError


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return False
