"""A PostgreSQL cluster of the lab: made, started, hurt, stopped, and asked."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.lab.guardian import Guardian
from tests.lab.installation import Installation
from tests.lab.new_cluster import copy_new_cluster
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation

SUPERUSER = "postgres"

PATIENCE_SECONDS = 180
"""When what a test waits for will never come: a busy machine is no reason to fail."""

_SEGMENT_HEADER_BYTES = 40
_PORTS = (20_000, 32_768)
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# What every test server runs with, unless the test says otherwise. Durability is off: a test that cuts the power of a
# machine would need a machine. Full page writes stay on, because WAL without them is not what anybody backs up.
_SETTINGS = {
    "fsync": "off",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_connections": "40",
    "shared_buffers": "32MB",
    # Beneath the data directory: what a killed server leaves elsewhere is memory that nobody gives back.
    "dynamic_shared_memory_type": "mmap",
    "max_wal_size": "512MB",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_min_messages": "info",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "lc_messages": "C",
    "jit": "off",
}


class Cluster:
    """
    One data directory and the server on it.

    The server listens on a Unix socket and on 127.0.0.1, and ends when this process ends, whatever ends it.

    Attributes:
        installation: Whose programs run it.
        data_directory: Belongs to the server's account.
        socket_directory: Anybody may enter it.
        log_file: What the server said, over all its starts.
        port: Free when the server was started; another one after a start that found it taken.
    """

    def __init__(self, installation: Installation, data_directory: Path, *, work_directory: Path | None = None) -> None:
        """Adopt an existing *data_directory*; socket and log go to *work_directory*, by default the one above it."""
        self.installation = installation
        self.data_directory = Path(data_directory)
        self.socket_directory = work_directory or self.data_directory.parent
        self.log_file = self.socket_directory / f"{self.data_directory.name}.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: Guardian | None = None

    @classmethod
    def create(
        cls,
        installation: Installation,
        data_directory: Path,
        *,
        data_checksums: bool = True,
        wal_segment_size_mb: int = 16,
        settings: Mapping[str, str] | None = None,
        initdb_options: Sequence[str] = (),
    ) -> Cluster:
        """
        Make a new cluster in *data_directory*; it is not started.

        Args:
            installation: A PostgreSQL of any major.
            data_directory: Must not exist; its parent belongs to the server's account.
            data_checksums: Whether pages carry checksums.
            wal_segment_size_mb: A power of two, 1 to 1024.
            settings: Added to the lab's own; an empty value removes one of those.
            initdb_options: More words for initdb, such as ``--waldir=...``.
        """
        options = [
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            f"--wal-segsize={wal_segment_size_mb}",
        ]
        if data_checksums:
            options.append("--data-checksums")
        elif installation.major >= 18:
            options.append("--no-data-checksums")
        if initdb_options:
            command: list[str | Path] = [
                installation.program("initdb"),
                f"--pgdata={data_directory}",
                *options,
                *initdb_options,
            ]
            server_user().run(command, env=_environment())
        else:
            copy_new_cluster(installation, data_directory, options, env=_environment())
        cluster = cls(installation, data_directory)
        cluster.configure(_SETTINGS | dict(settings or {}))
        return cluster

    @property
    def major(self) -> int:
        """PostgreSQL's major version."""
        return self.installation.major

    # ---------------------------------------------------------------------------------------------------- running

    @property
    def is_running(self) -> bool:
        """Whether the postmaster is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id; it must be running."""
        assert self._process is not None
        return self._process.pid

    def start(
        self, *, options: Sequence[str] = (), wait: bool = True, timeout_seconds: float = PATIENCE_SECONDS
    ) -> Cluster:
        """
        Start the server, and wait until it takes connections (a standby: until it is consistent).

        Args:
            options: More words for postgres, such as ``-c archive_mode=on``.
            wait: False returns at once; ``wait_until_ready`` does the rest.
            timeout_seconds: An error with the server's log after this.
        """
        assert not self.is_running, "the server is already running"
        for attempts_left in (4, 3, 2, 1, 0):
            log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
            self._spawn(options)
            if not wait:
                break
            try:
                self.wait_until_ready(timeout_seconds=timeout_seconds)
                break
            except ServerDied:
                taken = "Address already in use" in self.log_text()[log_start:]
                if not (taken and attempts_left):
                    raise
                self.port = free_port()
        return self

    def _spawn(self, options: Sequence[str]) -> None:
        user = server_user()
        command: list[str | Path] = [
            self.installation.program("postgres"),
            *("-D", str(self.data_directory), "-p", str(self.port)),
            *("-c", f"unix_socket_directories={self.socket_directory}", "-c", "listen_addresses=127.0.0.1"),
            *options,
        ]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **user.popen_arguments(),
            )
        self._guardian = Guardian(self._process.pid, how=signal.SIGQUIT)

    def wait_until_ready(self, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the server takes connections; raise ServerDied with its log when it ends before that."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            status = self._process.poll() if self._process is not None else 0
            if status is not None:
                self._forget()
                raise ServerDied(f"postgres ended with status {status}\n{self.log_text()[-4000:]}")
            if self._reported_state() in {"ready", "standby"} and self._answers():
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"postgres is not ready after {timeout_seconds} s\n{self.log_text()[-4000:]}")
            time.sleep(0.01)

    def _reported_state(self) -> str:
        """Return the last line of postmaster.pid, which the postmaster keeps up to date since PostgreSQL 10."""
        with suppress(OSError):
            lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
            if len(lines) >= 8 and int(lines[0]) == self.pid:
                return lines[7].strip()
        return ""

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError as error:
            # A server that wants a password is a server that answers; one that is still starting is not.
            return not any(
                word in str(error) for word in ("starting up", "refused", "not yet accepting", "shutting down")
            )
        return True

    def stop(self, mode: str = "fast", *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Stop the server: ``fast``, ``smart`` or ``immediate``. Nothing happens when it does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"postgres did not stop in {timeout_seconds} s\n{self.log_text()[-4000:]}") from None
        self._forget()

    def kill(self) -> None:
        """Kill the postmaster and all its children with SIGKILL, as the kernel does when memory runs out."""
        if self._process is None:
            return
        children = _children(self._process.pid)
        if self._process.poll() is None:
            self._process.kill()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        wait_for(lambda: not any(_is_alive(pid) for pid in children), "the server's children are gone")
        self._forget()

    def restart(self, mode: str = "fast") -> Cluster:
        """Stop the server and start it again, on the same port."""
        self.stop(mode)
        return self.start()

    def wait_until_ended(self, *, timeout_seconds: float = PATIENCE_SECONDS) -> int:
        """Wait until the server ends by itself, as at ``recovery_target_action=shutdown``; return its exit status."""
        assert self._process is not None
        status = self._process.wait(timeout_seconds)
        self._forget()
        return status

    def _forget(self) -> None:
        self._process = None
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        # Not by kill(): a server that is killed leaves its shared memory segment, of which a machine has 4,096.
        with suppress(TimeoutError):
            self.stop("immediate", timeout_seconds=10)

    # ------------------------------------------------------------------------------------------------ configuring

    def configure(self, settings: Mapping[str, str]) -> None:
        """Append *settings* to postgresql.conf; whoever calls this says ``reload`` or ``restart``. Empty resets one."""
        with (self.data_directory / "postgresql.conf").open("a") as file:
            for name, value in settings.items():
                quoted = value.replace("\\", "\\\\").replace("'", "''")
                file.write(f"{name} = '{quoted}'\n" if value else f"# {name} is at its default\n")

    def reload(self) -> None:
        """Make the server read its configuration again."""
        os.kill(self.pid, signal.SIGHUP)

    def set_hba(self, text: str) -> None:
        """Replace pg_hba.conf with *text*; superusers keep the Unix socket, so that the lab is not locked out."""
        head = f"local all {SUPERUSER} trust\nlocal replication {SUPERUSER} trust\n"
        (self.data_directory / "pg_hba.conf").write_text(head + text + "\n")
        if self.is_running:
            self.reload()

    def archive_to(self, directory: Path) -> None:
        """Turn archiving on, into a plain directory that is made if missing; before the first start."""
        directory.mkdir(exist_ok=True)
        server_user().own(directory)
        self.configure(
            {
                "archive_mode": "on",
                "archive_command": f'test ! -f "{directory}/%f" && cp "%p" "{directory}/%f"',
            }
        )

    # ----------------------------------------------------------------------------------------------------- asking

    def connection_arguments(
        self, *, tcp: bool = False, dbname: str = "postgres", user: str = SUPERUSER
    ) -> dict[str, Any]:
        """Return keyword arguments for ``psycopg.connect``: host, port, dbname and user."""
        host = "127.0.0.1" if tcp else str(self.socket_directory)
        return {"host": host, "port": self.port, "dbname": dbname, "user": user}

    def conninfo(self, *, tcp: bool = False, dbname: str = "postgres", user: str = SUPERUSER, **more: str | int) -> str:
        """Return a libpq connection string."""
        arguments = self.connection_arguments(tcp=tcp, dbname=dbname, user=user) | more
        return psycopg.conninfo.make_conninfo(**{name: str(value) for name, value in arguments.items()})

    def connect(self, dbname: str = "postgres", **arguments: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a new connection in autocommit mode; the caller closes it."""
        return psycopg.connect(
            **(self.connection_arguments(dbname=dbname) | {"autocommit": True, "connect_timeout": 10} | arguments)
        )

    def sql(
        self, statement: str, parameters: Sequence[object] | None = None, *, dbname: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one *statement* in a connection of its own; return its rows, none for a statement without."""
        with self.connect(dbname) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, parameters: Sequence[object] | None = None, *, dbname: str = "postgres") -> Any:
        """Return the single value of a one-row *statement*."""
        [(value,)] = self.sql(statement, parameters, dbname=dbname)
        return value

    def current_lsn(self) -> str:
        """Return the end of the WAL written so far, or on a standby replayed so far, as PostgreSQL prints it."""
        if self.value("SELECT pg_is_in_recovery()"):
            return str(self.value("SELECT pg_last_wal_replay_lsn()"))
        [(inserted, offset)] = self.sql(
            "SELECT lsn::text, (pg_walfile_name_offset(lsn)).file_offset FROM pg_current_wal_insert_lsn() AS lsn"
        )
        # After a switch that is behind the header of a segment which nobody has begun: a standby gets there when
        # something is written, up to 15 s later.
        if offset != _SEGMENT_HEADER_BYTES:
            return str(inserted)
        high, _, low = inserted.partition("/")
        return f"{high}/{int(low, 16) - offset:X}"

    def switch_wal(self) -> str:
        """Complete the current WAL segment; return its name, or that of the one before if nothing is in it."""
        # From 17 on, the LSN at which a segment begins belongs to that segment, which does not exist yet.
        before = " - 1" if self.major >= 17 else ""
        return str(self.value(f"SELECT pg_walfile_name(pg_switch_wal(){before})"))

    def log_text(self) -> str:
        """Return all that the server has logged."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # --------------------------------------------------------------------------------------------------- relatives

    def create_standby(
        self, data_directory: Path, *, slot: str = "", settings: Mapping[str, str] | None = None
    ) -> Cluster:
        """Return a streaming standby of this running server, copied to *data_directory* and not yet started."""
        command: list[str | Path] = [
            newest_installation().program("pg_basebackup"),
            f"--pgdata={data_directory}",
            *("-X", "stream", "-c", "fast", "--no-sync", "-d", self.conninfo()),
        ]
        server_user().run(command, env=_environment())
        standby = Cluster(self.installation, data_directory)
        standby.configure(
            {
                # pg_basebackup -R would write options of its own libpq, which an older server refuses.
                "primary_conninfo": f"host={self.socket_directory} port={self.port} user={SUPERUSER}",
                "primary_slot_name": slot,
                **(settings or {}),
            }
        )
        (data_directory / "standby.signal").touch()
        server_user().own(data_directory / "standby.signal")
        return standby

    def promote(self) -> None:
        """Promote this standby, and wait until it is a primary."""
        self.sql("SELECT pg_promote(wait_seconds => 30)")
        wait_for(lambda: not self.value("SELECT pg_is_in_recovery()"), "the standby is promoted")

    def wait_for_replay(self, lsn: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until this standby has replayed everything before *lsn*."""
        wait_for(
            lambda: bool(self.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn])),
            f"WAL is replayed up to {lsn}",
            timeout_seconds=timeout_seconds,
        )


MakeCluster = Callable[..., Cluster]
"""What the fixture `make_cluster` returns."""


class ServerDied(Exception):
    """The server ended before it was ready; the message ends with its log."""


def wait_for(condition: Callable[[], bool], what: str, *, timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Return when *condition* holds; TimeoutError naming *what* was expected when it never does."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout_seconds} s: {what}")
        time.sleep(0.01)


def free_port() -> int:
    """
    Return a TCP port of 127.0.0.1 that was free a moment ago.

    It is below those that the kernel gives to connections (from 32768), of which one may have it by the time the server
    starts, or starts again.
    """
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _environment() -> dict[str, str]:
    """No PG* variable of the person who runs the tests, and no language but C."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_alive(pid: int) -> bool:
    """Whether *pid* still runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
