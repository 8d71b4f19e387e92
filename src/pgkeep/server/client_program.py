"""
PostgreSQL's client programs as children: how they reach the server, are fed, read, and ended.

A child connects to the very host that the session it is derived from is connected to, so that a list of hosts, a
service or ``target_session_attrs`` is resolved once. Its parameters travel in the environment, the password in a
password file in memory that only the child can open: never in ``argv``, in the environment, or on a disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pgkeep.errors import ToolError
from pgkeep.streams.item import CHUNK_BYTES, Buffer

if TYPE_CHECKING:
    import psycopg

_STDERR_BYTES = 32 << 10
"""How much of a child's complaints is kept: this much of the beginning and as much of the end."""
_END_SECONDS = 10.0
"""How long a child may take to cancel its query and leave before it is killed."""
_NOT_PASSED = frozenset({"dbname", "password", "passfile", "service", "servicefile", "options", "client_encoding"})
_REASON = "Error message from server: "
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass(frozen=True, slots=True)
class ClientEnvironment:
    """
    What a child gets from its parent to reach a server.

    Attributes:
        variables: All of its environment.
        descriptors: Open files that it inherits.
    """

    variables: Mapping[str, str]
    descriptors: tuple[int, ...] = ()


@contextlib.contextmanager
def client_environment(
    connection: psycopg.Connection[Any], *, program: str, role: str = "", waits_for_disk: bool = True
) -> Iterator[ClientEnvironment]:
    """
    Give the environment in which a child connects as *connection* does.

    Args:
        connection: An open session on the server.
        program: Name of the child, for ``application_name``.
        role: Role to become at once, for a program that has no option for it.
        waits_for_disk: Whether each of its commits waits for the disk; if not, a later one of another session must.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    variables |= _parameters(connection)
    variables["PGAPPNAME"] = f"pgkeep {program}"
    options = [] if waits_for_disk else ["-c synchronous_commit=off"]
    if role:
        escaped = re.sub(r"([\\\s])", r"\\\1", role)
        options.append(f"-c role={escaped}")
    if options:
        variables["PGOPTIONS"] = " ".join(options)
    # Complaints are read for what they mean, so they must not be translated.
    variables["LC_ALL"] = "C"
    variables.pop("LANGUAGE", None)
    password = connection.pgconn.password
    if not password:
        yield ClientEnvironment(variables)
        return
    # In memory, so that no kill leaves it on a disk; libpq wants a plain file that only its owner may read.
    descriptor = os.memfd_create("pgpass")
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, b"*:*:*:*:" + _escaped(password) + b"\n")
        variables["PGPASSFILE"] = f"/proc/self/fd/{descriptor}"
        yield ClientEnvironment(variables, (descriptor,))
    finally:
        os.close(descriptor)


def conninfo_for(dbname: str) -> str:
    """Return what ``--dbname`` takes for *dbname*; a bare name with ``=`` in it would be a connection string."""
    escaped = dbname.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"


class ProgramFailed(ToolError):
    """A child ended with an error; *complaints* are the lines of its standard error."""

    def __init__(self, message: str, *, hint: str = "", complaints: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.complaints = tuple(complaints)


class ClientProgram:
    """
    One running child; a context manager that ends it, and all that it started, on leaving.

    The child also dies with the *thread* that started it (``PR_SET_PDEATHSIG``), so that thread stays until the end.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        environment: ClientEnvironment,
        *,
        task: str,
        reads_input: bool = False,
        gives_output: bool = False,
    ) -> None:
        """
        Start *command*.

        Args:
            command: Program and arguments; nothing secret.
            environment: From ``client_environment``.
            task: What it does, for messages: ``pg_dump of database "app"``.
            reads_input: Whether ``feed`` will be called.
            gives_output: Whether ``chunks`` will be called; output is dropped otherwise.
        """
        self.task = task
        try:
            self._child = subprocess.Popen(
                [str(word) for word in command],
                env=dict(environment.variables),
                pass_fds=environment.descriptors,
                stdin=subprocess.PIPE if reads_input else subprocess.DEVNULL,
                stdout=subprocess.PIPE if gives_output else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                process_group=0,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  one C call, bound beforehand; nothing is imported or locked
            )
        except OSError as error:
            raise ToolError(f"cannot start {task}: {error}") from error
        self._complaints = _Complaints(self._child)

    def __enter__(self) -> ClientProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group."""
        return self._child.pid

    @property
    def complaints(self) -> list[str]:
        """Lines of standard error, oldest first; complete after ``finish``."""
        return self._complaints.lines()

    def chunks(self) -> Iterator[Buffer]:
        """Yield standard output to its end; each chunk is valid until the next is asked for."""
        pipe = self._child.stdout
        assert pipe is not None
        # The default of 64 KiB makes the child and us take turns; a refusal leaves it as it is.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while length := os.readv(pipe.fileno(), [buffer]):
            yield buffer[:length]

    def feed(self, chunks: Iterable[Buffer]) -> None:
        """
        Write *chunks* to standard input and close it.

        Raises:
            ToolError: The child closed its input early, which it does only when it failed.
        """
        pipe = self._child.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(pipe.fileno(), view) :]
            pipe.close()
        except BrokenPipeError:
            status = self.wait()
            if status != 0:
                raise self.failure(status) from None
            raise ToolError(f"{self.task} ended before it had read everything") from None

    def wait(self) -> int:
        """Wait for the end and return the exit status; negative for a signal."""
        status = self._child.wait()
        self._complaints.join()
        return status

    def finish(self) -> None:
        """Wait for the end; raise ToolError when the child failed."""
        status = self.wait()
        if status != 0:
            raise self.failure(status)

    def failure(self, status: int, complaints: Sequence[str] | None = None) -> ProgramFailed:
        """Return the error that says how the child ended with *status*; *complaints* instead of all it told."""
        lines = self.complaints if complaints is None else complaints
        if status < 0:
            name = signal.Signals(-status).name
            return ProgramFailed(f"{self.task} was ended by signal {-status} ({name})", complaints=lines)
        message = f"{self.task} ended with status {status}: {first_error(lines)}"
        return ProgramFailed(message, hint=_advice("\n".join(lines)), complaints=lines)

    def terminate(self) -> None:
        """Ask the child to end; may be called from another thread, whose reading or feeding then comes to an end."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGTERM)

    def _end(self) -> None:
        if self._child.poll() is None:
            # SIGTERM first: pg_dump then asks the server to cancel, which a session that waits for a lock needs.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGTERM)
            try:
                self._child.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        self._complaints.join()
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def first_error(lines: Sequence[str]) -> str:
    """Return what *lines* say went wrong, in one line without the program's name; ``silent`` when there are none."""
    errors = [line for line in lines if "error:" in line or "ERROR:" in line or "FATAL:" in line]
    chosen = (errors or lines or ["silent"])[0]
    chosen = chosen.partition(" error: ")[2] or chosen
    chosen = chosen.strip().rstrip(".")
    # When a connection breaks, the reason is told in a line of its own.
    reason = next((line.partition(_REASON)[2].strip() for line in lines if _REASON in line), "")
    return f"{chosen} ({reason})" if reason and reason not in chosen else chosen


def _advice(text: str) -> str:
    for sign, advice in _ADVICE:
        if re.search(sign, text):
            return advice
    return ""


_ADVICE = (
    ("permission denied for large object", 'give the role rights on large objects: run "pgkeep grants --mode dump"'),
    ("row-level security policy", 'give the role BYPASSRLS: run "pgkeep grants --mode dump"'),
    ("permission denied to", "the restoring role lacks a right: restore as a superuser"),
    ("permission denied", 'give the role the rights that "pgkeep grants --mode dump" prints'),
    ('ERROR: +role ".*" does not exist', "restore the globals first, or create the role"),
    ("No space left on device", "free space, or point tmpdir at a larger file system"),
    ("aborting because of server version mismatch", "set bin_dir to the programs of the server's major version"),
)


class _Complaints:
    """Reads a child's standard error in a thread, so that it never blocks, and keeps a bounded part of it."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        self._descriptor = child.stderr.fileno()
        self._head = bytearray()
        self._tail = bytearray()
        self._thread = threading.Thread(target=self._read, name=f"stderr of {child.pid}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def lines(self) -> list[str]:
        text = bytes(self._head) + bytes(self._tail)
        return [line for line in text.decode(errors="replace").splitlines() if line.strip()]

    def _read(self) -> None:
        while data := os.read(self._descriptor, 4096):
            room = _STDERR_BYTES - len(self._head)
            self._head += data[:room]
            self._tail += data[room:]
            del self._tail[:-_STDERR_BYTES]


def _parameters(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return the environment variables for what *connection* uses; an older libpq ignores what it does not know."""
    parameters = {
        option.envvar.decode(): (option.val or b"").decode()
        for option in connection.pgconn.info
        if option.envvar and option.val not in (None, option.compiled) and option.keyword.decode() not in _NOT_PASSED
    }
    # Of a list of hosts the session has chosen one, and with it the question which is primary is answered.
    parameters["PGHOST"] = connection.info.host
    parameters["PGPORT"] = str(connection.info.port)
    parameters.pop("PGTARGETSESSIONATTRS", None)
    parameters.pop("PGLOADBALANCEHOSTS", None)
    hostaddr = parameters.pop("PGHOSTADDR", "")
    if hostaddr and "," not in hostaddr:
        parameters["PGHOSTADDR"] = hostaddr
    passfile = _option(connection, "passfile")
    if passfile:
        parameters["PGPASSFILE"] = passfile
    return parameters


def _option(connection: psycopg.Connection[Any], keyword: str) -> str:
    for option in connection.pgconn.info:
        if option.keyword.decode() == keyword and option.val is not None:
            return option.val.decode()
    return ""


def _escaped(password: bytes) -> bytes:
    """Return *password* as the last field of a password file takes it."""
    return password.replace(b"\\", b"\\\\").replace(b":", b"\\:")


def _die_with_parent() -> None:
    """Ask for SIGTERM at the parent's death; runs between fork and exec, so it only calls what is already loaded."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
