"""
A local server over a data directory: started, watched and stopped.

``postgres`` is started directly, detached from pgkeep, so that it outlives a job that ends and so that no shell reads
its arguments. As root it is started as the owner of the data directory. What its configuration file says about other
places is overridden: a restored ``postgresql.conf`` may well name the data directory, the pid file and the port of the
server that it was copied from.
"""

from __future__ import annotations

import enum
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pgkeep.datadir.owner import Owner
from pgkeep.datadir.postmaster import read_postmaster_file, running_postmaster
from pgkeep.datadir.recovery_files import foreign_places
from pgkeep.errors import RecoveryFailed, ToolError

POLL_SECONDS = 0.05
LOG_TAIL_BYTES = 64 << 10
PRIVATE_PREFIX = "pgkeep-"
"""Begins the name of the directory that holds a fenced server's socket."""

_ACCESS_FILES = {"hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}


class ServerStatus(enum.Enum):
    """Where a server stands; the values are those of ``postmaster.pid``, but for the first."""

    STOPPED = ""
    STARTING = "starting"
    STOPPING = "stopping"
    READY = "ready"
    STANDBY = "standby"
    """It is in recovery and takes no connections; once it answers read-only queries it is READY, too."""


class StopMode(enum.Enum):
    """How a server is told to stop."""

    FAST = signal.SIGINT
    IMMEDIATE = signal.SIGQUIT


@dataclass(frozen=True, slots=True)
class PrivateAccess:
    """
    The one way into a server that nobody else may reach: a socket in a directory of its owner's.

    Attributes:
        directory: Holds the socket; only the owner and root may enter.
        port: Part of the socket's name.
    """

    directory: Path
    port: int = 5432

    @classmethod
    def make(cls, owner: Owner) -> PrivateAccess:
        """Make the directory, with a ``pg_hba.conf`` that trusts whoever can enter it."""
        # Under /tmp and not under TMPDIR: a socket's path has at most 107 bytes.
        directory = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir="/tmp"))
        try:
            (directory / "pg_hba.conf").write_text("local all all trust\nlocal replication all trust\n")
            (directory / "pg_ident.conf").write_text("")
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        if os.geteuid() == 0:
            # The directory goes last: from then on its owner may put links in place of the files.
            for path in (*directory.iterdir(), directory):
                os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
        return cls(directory)

    def settings(self) -> dict[str, str]:
        """Return the settings that shut every other way."""
        return {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "unix_socket_group": "",
            "unix_socket_permissions": "0700",
            "port": str(self.port),
            "hba_file": str(self.directory / "pg_hba.conf"),
            "ident_file": str(self.directory / "pg_ident.conf"),
            "ssl": "off",
            "bonjour": "off",
        }

    def remove(self) -> None:
        """Remove the directory; the server is stopped, or listens elsewhere by now."""
        shutil.rmtree(self.directory, ignore_errors=True)


class Instance:
    """The server of one data directory, started by pgkeep or found running."""

    def __init__(
        self, data_directory: Path, *, bin_directory: Path, log_path: Path, config_file: Path | None = None
    ) -> None:
        """
        Touch nothing yet.

        Args:
            data_directory: Absolute.
            bin_directory: Where the ``postgres`` of the right major version is.
            log_path: Takes the server's output, which is appended; where it cannot be written, a file under the
                directory for temporary files does, and ``log_path`` names that from the first start on.
            config_file: Its ``postgresql.conf`` when that is not in the data directory.
        """
        self.data_directory = data_directory
        self.log_path = log_path
        self._config_file = config_file
        self._program = bin_directory / "postgres"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self, settings: Mapping[str, str], *, is_final: bool = False) -> None:
        """
        Start the server and return without waiting for it.

        Args:
            settings: Passed on its command line, where every user of the host can read them; they win over all files.
            is_final: The server is to stay: its configuration says who may enter and where its log goes. Only where it
                names an access file that is not on this host, the one in the data directory takes its place.

        Raises:
            RecoveryFailed: A server runs there already, or pgkeep may not start one for the directory's owner, or there
                is nowhere to write its log.
            ToolError: There is no ``postgres`` to start.
        """
        postmaster = running_postmaster(self.data_directory)
        if postmaster is not None:
            raise RecoveryFailed(f"a server already runs in {self.data_directory}: process {postmaster.pid}")
        owner = Owner.of(self.data_directory)
        if os.geteuid() not in (0, owner.uid):
            raise RecoveryFailed(
                f'cannot start the server in {self.data_directory}: it belongs to "{owner.user_name}"',
                hint=f'run pgkeep as root or as "{owner.user_name}"',
            )
        arguments = [str(self._program), "-D", str(self.data_directory)]
        places = self._lasting_places(owner) if is_final else self._places()
        for name, value in (places | dict(settings)).items():
            arguments += ["-c", f"{name}={value}"]
        is_root = os.geteuid() == 0
        with self._opened_log() as log:
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=_server_environment(),
                    start_new_session=True,
                    umask=0o077,
                    user=owner.uid if is_root else None,
                    group=owner.gid if is_root else None,
                    extra_groups=owner.all_groups if is_root else None,
                )
            except OSError as error:
                raise ToolError(f"cannot start {self._program}: {error.strerror}") from error

    def status(self) -> ServerStatus:
        """Return where the server stands now."""
        if self._process is not None and self._process.poll() is not None:
            return ServerStatus.STOPPED
        postmaster = running_postmaster(self.data_directory)
        if postmaster is not None:
            return ServerStatus(postmaster.status) if postmaster.status else ServerStatus.STARTING
        return ServerStatus.STARTING if self._process is not None else ServerStatus.STOPPED

    def wait_for(
        self,
        statuses: Collection[ServerStatus],
        *,
        timeout_seconds: float,
        tick: Callable[[ServerStatus], None] | None = None,
    ) -> ServerStatus:
        """
        Return the status when it is one of *statuses*.

        Args:
            statuses: A server that stops ends the wait even when STOPPED is not among them, as an error.
            timeout_seconds: 0 waits for ever.
            tick: Called at each look, so that a caller may show progress or raise to give up.

        Raises:
            RecoveryFailed: The server stopped, with the last fatal line of its log, or the time is over.
        """
        deadline = time.monotonic() + timeout_seconds if timeout_seconds else float("inf")
        pause = threading.Event()
        while True:
            status = self.status()
            if status in statuses:
                return status
            if status is ServerStatus.STOPPED:
                raise RecoveryFailed(
                    f"the server in {self.data_directory} stopped: {self._last_words()}",
                    hint=f"see {self.log_path}",
                )
            if time.monotonic() > deadline:
                raise RecoveryFailed(
                    f"the server in {self.data_directory} is still {status.value or 'stopped'} "
                    f"after {timeout_seconds:g} s",
                    hint=f"see {self.log_path}",
                )
            if tick is not None:
                tick(status)
            pause.wait(POLL_SECONDS)

    def stop(self, mode: StopMode = StopMode.FAST, *, timeout_seconds: float = 300) -> None:
        """Stop the server if it runs and wait until it has; raise RecoveryFailed when it does not in time."""
        postmaster = running_postmaster(self.data_directory)
        pid = postmaster.pid if postmaster is not None else None
        if pid is None and self._process is not None and self._process.poll() is None:
            pid = self._process.pid
        if pid is None:
            return
        try:
            os.kill(pid, mode.value)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + timeout_seconds
        pause = threading.Event()
        while self._is_alive(pid):
            if time.monotonic() > deadline:
                raise RecoveryFailed(f"the server in {self.data_directory} did not stop within {timeout_seconds:g} s")
            pause.wait(POLL_SECONDS)
        # What runs there from now on may be somebody else's: its service's.
        self._process = None

    def configured(self, setting: str) -> str:
        """Return what the server makes of *setting* in its files, includes and all; empty when it refuses them."""
        return self._configured(setting, self._places(), Owner.of(self.data_directory))

    def log_tail(self, lines: int = 20) -> list[str]:
        """Return the last *lines* that the server wrote since it was started here, oldest first."""
        with open(self.log_path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-lines:]

    def _opened_log(self) -> BinaryIO:
        try:
            return open(self.log_path, "ab", opener=_open_private)
        except OSError as error:
            problem = error.strerror
        # Often the parent of a data directory is root's. That is no reason to lose a restore that got this far.
        try:
            descriptor, name = tempfile.mkstemp(prefix=f"{self.log_path.stem}-", suffix=self.log_path.suffix)
        except OSError:
            raise RecoveryFailed(
                f"cannot write the server's log: {self.log_path}: {problem}",
                hint=f"make it writable, or the directory for temporary files, {tempfile.gettempdir()}",
            ) from None
        self.log_path = Path(name)
        return os.fdopen(descriptor, "ab")

    def _places(self) -> dict[str, str]:
        """Return settings that keep the server inside its own directory."""
        places = self._main_places() | {"logging_collector": "off", "log_destination": "stderr"}
        # An empty name is one that cannot be written, which the server complains about: only where there is another.
        if "external_pid_file" in foreign_places(self.data_directory):
            places["external_pid_file"] = ""
        for setting, name in _ACCESS_FILES.items():
            if (self.data_directory / name).exists():
                places[setting] = str(self.data_directory / name)
        return places

    def _lasting_places(self, owner: Owner) -> dict[str, str]:
        """Return settings without which the server would not start as its configuration says."""
        places = self._main_places()
        for setting, name in _ACCESS_FILES.items():
            configured = self._configured(setting, places, owner)
            if configured and not os.path.exists(configured) and (self.data_directory / name).exists():
                places[setting] = str(self.data_directory / name)
        return places

    def _main_places(self) -> dict[str, str]:
        places = {"data_directory": str(self.data_directory)}
        if self._config_file is not None:
            places["config_file"] = str(self._config_file)
        return places

    def _configured(self, setting: str, places: Mapping[str, str], owner: Owner) -> str:
        """Return what the server makes of *setting*, includes and all; empty when it refuses its configuration."""
        arguments = [str(self._program), "-D", str(self.data_directory), "-C", setting]
        for name, value in places.items():
            arguments += ["-c", f"{name}={value}"]
        is_root = os.geteuid() == 0
        try:
            answer = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                env=_server_environment(),
                check=False,
                user=owner.uid if is_root else None,
                group=owner.gid if is_root else None,
                extra_groups=owner.all_groups if is_root else None,
            )
        except OSError as error:
            raise ToolError(f"cannot start {self._program}: {error.strerror}") from error
        # A configuration that is refused here is refused by the start as well, with the reason in the log.
        return os.fsdecode(answer.stdout).removesuffix("\n") if answer.returncode == 0 else ""

    def _is_alive(self, pid: int) -> bool:
        if self._process is not None and self._process.pid == pid:
            return self._process.poll() is None
        # postmaster.pid goes last, when the server's work is done; a killed server leaves it behind.
        postmaster = read_postmaster_file(self.data_directory)
        return postmaster is not None and postmaster.pid == pid and running_postmaster(self.data_directory) is not None

    def _last_words(self) -> str:
        fatal = [line for line in self.log_tail(200) if "FATAL:" in line or "PANIC:" in line]
        if fatal:
            return fatal[-1].strip()
        returncode = self._process.returncode if self._process is not None else None
        return f"exit status {returncode}" if returncode is not None else "its log has no fatal line"


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _server_environment() -> dict[str, str]:
    # libpq's variables, PGPASSWORD first of all, are not the server's business; restore_command may need PGKEEP_*.
    return {
        name: value for name, value in os.environ.items() if not name.startswith("PG") or name.startswith("PGKEEP_")
    }
