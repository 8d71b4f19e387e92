"""
A Bacula of one's own: Director, Storage Daemon and File Daemon 15.0.3 in one directory, catalog in SQLite.

Nothing of the machine's is touched: packages are unpacked beside it, ports are this lab's alone, and the daemons run in
the foreground, as the account that the test's servers have, until the lab or the test's process ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.lab.bacula_config import JobDefinition, Layout
from tests.lab.bacula_console import Console
from tests.lab.bacula_packages import BaculaInstallation, bacula_installation
from tests.lab.cluster import wait_for
from tests.lab.guardian import Guardian
from tests.lab.server_user import server_user
from tests.lab.servers import cache_directory

DAEMONS = ("sd", "fd", "dir")
_FIRST_PORT, _LAST_PORT = 19101, 19999
# Nothing that ends a job comes later than this in one of the lab's jobs.
JOB_TIMEOUT_SECONDS = 200

_JOB_COLUMNS = "JobId, Job, Name, Type, Level, JobStatus, JobErrors, JobFiles, JobBytes, ReadBytes"


class JobNotQueued(Exception):
    """The Director did not take a command for a job; the message is what it said."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """
    What the catalog says of a job that has ended.

    Attributes:
        status: ``T`` for OK, with warnings or without; ``W``, ``E``, ``f``, ``A`` for canceled.
        errors: JobErrors: a job is only well when they are 0.
        log: Lines of its log, without the date before each.
    """

    job_id: int
    unique_name: str
    name: str
    level: str
    status: str
    errors: int
    files: int
    bytes: int
    log: list[str]

    @property
    def is_ok(self) -> bool:
        """Whether it ended well, without a single error."""
        return self.status == "T" and self.errors == 0

    @property
    def text(self) -> str:
        """The log as one text."""
        return "\n".join(self.log)

    @property
    def told(self) -> list[str]:
        """What pgkeep said, without its prefix; ``Warning: ``, ``Error: `` and ``Fatal error: `` stay before it."""
        lines = []
        for line in self.log:
            match = re.search(r"JobId \d+: ((?:Warning: |Error: |Fatal error: )?)pgkeep: (.*)", line)
            if match:
                lines.append(match[1] + match[2])
        return lines

    def must(self) -> JobResult:
        """Return itself when it is OK; otherwise raise AssertionError with its log."""
        assert self.is_ok, f"job {self.job_id} {self.name} ended with {self.status}, {self.errors} errors\n{self.text}"
        return self


class Director:
    """
    The three daemons of one lab.

    Attributes:
        directory: The lab's own; it belongs to the daemons' account.
        layout: What the configuration files say.
    """

    def __init__(
        self,
        directory: Path,
        *,
        transport: bool = True,
        volume_directory: Path | None = None,
        plugin_options: Sequence[str] = (),
        fast: bool = True,
        installation: BaculaInstallation | None = None,
    ) -> None:
        """
        Write everything and make the catalog; nothing runs yet.

        Args:
            directory: Must not exist; its parent belongs to the daemons' account.
            transport: Whether TLS and CommCompression are on, as they are by default.
            volume_directory: Where volumes go, instead of a directory of the lab's.
            plugin_options: Lines ``pgkeep: key=value …`` for the File Daemon.
            fast: Whether the Director is spared its pauses.
            installation: Another one than the cache's.
        """
        self.directory = directory
        self.installation = installation or bacula_installation()
        self._fast = fast
        self._ports, self._port_lock = _take_ports()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._guardian: Guardian | None = None
        names = (
            "etc/jobs.d",
            "work-dir",
            "work-sd",
            "work-fd",
            "volumes",
            "second",
            "shared",
            "plugins",
            "log",
            "bin",
            "restore",
        )
        for name in names:
            (directory / name).mkdir(parents=True)
        self.layout = Layout(
            directory,
            secrets.token_hex(12),
            self._ports,
            transport,
            directory / "plugins",
            volume_directory or directory / "volumes",
            plugin_options,
        )
        self.layout.write()
        with closing(sqlite3.connect(self.catalog_file)) as catalog:
            catalog.executescript(self.installation.catalog_schema.read_text())
        # A plugin's backend is looked for beside the real file of the daemon: so a copy, no link.
        for name in DAEMONS:
            shutil.copy(self.installation.program(f"bacula-{name}"), directory / "bin")
        server_user().own(directory)

    # ------------------------------------------------------------------------------------------------------ running

    def __enter__(self) -> Director:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._port_lock.close()

    def start(self) -> Director:
        """Start the daemons and wait until they listen."""
        for name in DAEMONS:
            self.start_daemon(name)
        return self

    def start_daemon(self, name: str, *, env: Mapping[str, str] | None = None, as_root: bool = False) -> None:
        """Start the daemon *name*: ``dir``, ``sd`` or ``fd``; *env* is added to its environment."""
        preload = {"LD_PRELOAD": str(self.installation.nosleep)} if name == "dir" and self._fast else {}
        with (self.directory / "log" / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [
                    self.directory / "bin" / f"bacula-{name}",
                    "-f",
                    "-P",
                    "-c",
                    self.layout.configuration / f"bacula-{name}.conf",
                ],
                env=self._environment() | preload | dict(env or {}),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
                **({} if as_root else server_user().popen_arguments()),
            )
        self._guard()
        port = dict(zip(("dir", "fd", "sd"), self._ports, strict=True))[name]
        wait_for(lambda: _listens(port) or self._processes[name].poll() is not None, f"bacula-{name} listens on {port}")
        assert self._processes[name].poll() is None, (
            f"bacula-{name} ended\n{(self.directory / 'log' / f'{name}.out').read_text()[-3000:]}"
        )

    def _guard(self) -> None:
        self._release()
        self._guardian = Guardian(*(process.pid for process in self._processes.values()), how=signal.SIGKILL)

    def _release(self) -> None:
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None

    def stop(self) -> None:
        """Stop the daemons that run."""
        # The Director takes 3 s to end, and has nothing to put in order that a test would look at.
        self.stop_daemon("dir", signal.SIGKILL)
        for name in ("fd", "sd"):
            self.stop_daemon(name)
        self._release()

    def stop_daemon(self, name: str, how: signal.Signals = signal.SIGTERM, *, patience_seconds: float = 2) -> None:
        """End one daemon by *how*, and wait until it has ended; by SIGKILL when that takes too long."""
        process = self._processes.pop(name, None)
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pid(self, name: str) -> int:
        """Return the process id of the daemon *name*."""
        return self._processes[name].pid

    def children(self, name: str = "fd") -> list[int]:
        """Return the process ids of a daemon's children: the backends."""
        found: set[int] = set()
        with suppress(OSError):
            for task in Path(f"/proc/{self.pid(name)}/task").iterdir():
                found.update(int(word) for word in (task / "children").read_text().split())
        return sorted(found)

    def _environment(self) -> dict[str, str]:
        path = os.environ.get("PATH", "/usr/bin:/bin")
        return {
            "PATH": path,
            "HOME": "/",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "LD_LIBRARY_PATH": self.installation.library_path,
        }

    # -------------------------------------------------------------------------------------------------- configuring

    def add_job(self, name: str, *plugins: str, **arguments: Any) -> JobDefinition:
        """Add a Job and its FileSet, or replace them; *arguments* are those of `JobDefinition`."""
        job = JobDefinition(name, plugins, **arguments)
        path = self.layout.configuration / "jobs.d" / f"{name}.conf"
        path.write_text(job.text())
        server_user().own(path)
        if "dir" in self._processes:
            answer = self.console("reload")
            assert "error" not in answer.lower(), answer
        return job

    def add_resource(self, name: str, text: str) -> None:
        """Add any resource of the Director's, in a file called *name*."""
        path = self.layout.configuration / "jobs.d" / f"{name}.conf"
        path.write_text(text)
        server_user().own(path)
        if "dir" in self._processes:
            answer = self.console("reload")
            assert "error" not in answer.lower(), answer

    # ------------------------------------------------------------------------------------------------------ console

    def open_console(self) -> Console:
        """Return a session of bconsole; the caller closes it."""
        return Console(
            [str(self.installation.program("bconsole")), "-n", "-c", str(self.layout.configuration / "bconsole.conf")],
            env=self._environment(),
            **server_user().popen_arguments(),
        )

    def console(self, *lines: str) -> str:
        """Type *lines* in a session of their own; return the answers."""
        with self.open_console() as console:
            return console.ask_all(lines)

    def estimate(self, job: str, level: str = "Full", *, listing: bool = True, more: str = "") -> str:
        """Return what ``estimate`` prints."""
        return self.console(f"estimate job={job} level={level} {'listing' if listing else ''} {more}")

    def ls(self, plugin: str, path: str = "/") -> str:
        """Return what ``.ls`` prints of *path* in the tree of *plugin*, a whole Plugin line."""
        return self.console(f'.ls client=lab-fd plugin="{_console_quoted(plugin)}" path="{path}"')

    def query(self, plugin: str, parameter: str) -> str:
        """Return what ``.query`` prints."""
        return self.console(f'.query client=lab-fd plugin="{_console_quoted(plugin)}" parameter="{parameter}"')

    # --------------------------------------------------------------------------------------------------------- jobs

    def run(self, job: str, level: str, *, more: str = "") -> JobResult:
        """Run *job* at *level* (Full, Differential, Incremental) and wait for its end."""
        return self.wait(self.queue(job, level, more=more))

    def queue(self, job: str, level: str, *, more: str = "") -> int:
        """Let *job* begin; return its id."""
        return self.command(f"run job={job} level={level} {more} yes")

    def command(self, *lines: str) -> int:
        """Type *lines*, the last of which queues a job; return its id."""
        self.tick()
        answer = self.console(*lines)
        return _job_id(answer)

    def wait(self, job_id: int, *, timeout_seconds: float = JOB_TIMEOUT_SECONDS) -> JobResult:
        """Wait for the end of a job; return what the catalog says of it."""
        with self.open_console() as console:
            console.ask(f"wait jobid={job_id}", timeout_seconds=timeout_seconds)
        return self.result(job_id)

    def result(self, job_id: int) -> JobResult:
        """Return what the catalog says of a job."""
        [(number, unique, name, _type, level, status, errors, files, size, _read)] = self.catalog(
            f"SELECT {_JOB_COLUMNS} FROM Job WHERE JobId = ?", job_id
        )
        rows = self.catalog("SELECT LogText FROM Log WHERE JobId = ? ORDER BY LogId", job_id)
        log = [line for (text,) in rows for line in text.rstrip("\\\n").splitlines()]
        return JobResult(number, unique, name, level, status, errors, files, size, log)

    def cancel(self, job_id: int) -> str:
        """Cancel a job; return what the Director answers."""
        return self.console(f"cancel jobid={job_id} yes")

    def status_of(self, job_id: int) -> str:
        """Return the letter of a job, also of one that runs."""
        rows = self.catalog("SELECT JobStatus FROM Job WHERE JobId = ?", job_id)
        return str(rows[0][0]) if rows else ""

    def last_job_id(self) -> int:
        """Return the id of the newest job."""
        return int(self.catalog("SELECT max(JobId) FROM Job")[0][0] or 0)

    def restore(
        self,
        job: JobDefinition | str,
        where: str | Path,
        *,
        select: str = "current",
        options: Mapping[str, str] | None = None,
        mark: Sequence[str] = (),
        more: str = "",
        line: int = 0,
    ) -> JobResult:
        """
        Restore from the newest Full of *job* and what followed it, and wait for the end.

        Args:
            job: The job whose FileSet is restored.
            where: Empty or ``/`` for the service.
            select: ``current``, ``before="…"`` or ``jobid=5,7``.
            options: Plugin options to set in the menu, by name.
            mark: What to mark in the tree: absolute paths; all when empty.
            more: More words of the restore command, such as ``replace=never``.
            line: Which of several Plugin lines *options* are for, from 1.
        """
        with self.open_console() as console:
            job_id = self.restore_in(
                console, job, where, select=select, options=options, mark=mark, more=more, line=line
            )
        return self.wait(job_id)

    def restore_in(
        self,
        console: Console,
        job: JobDefinition | str,
        where: str | Path,
        *,
        select: str = "current",
        options: Mapping[str, str] | None = None,
        mark: Sequence[str] = (),
        more: str = "",
        line: int = 0,
    ) -> int:
        """Do the dialogue of `restore` in *console*; return the id of the job."""
        self.tick()
        name = job if isinstance(job, str) else job.name
        # "before" counts only in front of "select".
        moment = "select current" if select == "current" else f"{select} select"
        chain = select if select.startswith("jobid=") else f"fileset=FS-{name} {moment}"
        words = f'restore client=lab-fd restorejob=Restore where="{_console_quoted(str(where))}" {more} {chain}'
        if mark:
            answer = console.ask(words)
            for path in mark:
                answer = console.ask(f'mark "{path}"') if "/" not in path.strip("/") else _mark(console, path)
                assert "No files marked" not in answer, answer
            answer = console.ask("done")
        else:
            answer = console.ask(f"{words} all done")
        if "OK to run?" not in answer:
            raise JobNotQueued(answer)
        if options:
            _fill_menu(console, options, line)
        return _job_id(console.ask("yes"))

    def tick(self) -> None:
        """
        Wait until the clock shows a later second than that in which the last job ended.

        ``restore … current`` takes the jobs whose JobTDate, the second of their end, is later than the Full's. Two
        that end in the same second break the chain without a word.
        """
        rows = self.catalog("SELECT max(JobTDate) FROM Job")
        last = int(rows[0][0] or 0)
        while int(time.time()) <= last:
            time.sleep(0.02)

    # ------------------------------------------------------------------------------------------------------ catalog

    @property
    def catalog_file(self) -> Path:
        """The database of the catalog."""
        return self.directory / "work-dir" / "bacula.db"

    def catalog(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of *query*, while the Director runs or when it does not."""
        with closing(sqlite3.connect(f"file:{self.catalog_file}?mode=ro", uri=True, timeout=30)) as catalog:
            return catalog.execute(query, parameters).fetchall()

    def files(self, job_id: int) -> list[tuple[str, str, int]]:
        """Return name, digest (``0`` without) and FileIndex of each file of a job; 0 is a deleted one."""
        rows = self.catalog(
            "SELECT Path.Path, File.Filename, File.MD5, File.FileIndex FROM File JOIN Path USING (PathId) "
            "WHERE JobId = ? ORDER BY FileIndex, Path.Path, File.Filename",
            job_id,
        )
        return [(f"{path}{name}", str(digest), int(index)) for path, name, digest, index in rows]

    def restore_objects(self, job_id: int) -> list[tuple[str, int, bytes, str]]:
        """Return name, type, content and plugin line of each restore object of a job; content as the catalog has it."""
        return self.catalog(
            "SELECT ObjectName, ObjectType, RestoreObject, PluginName FROM RestoreObject WHERE JobId = ? "
            "ORDER BY ObjectIndex, RestoreObjectId",
            job_id,
        )

    def everything_written(self) -> Iterator[tuple[Path, bytes]]:
        """Yield logs, traces and the catalog, each with its content, for a search for what must not be there."""
        for name in ("log", "work-dir", "work-fd", "work-sd"):
            for path in sorted((self.directory / name).rglob("*")):
                if path.is_file():
                    yield path, path.read_bytes()


def _mark(console: Console, path: str) -> str:
    parent, _, name = path.rstrip("/").rpartition("/")
    console.ask(f"cd {parent or '/'}")
    return console.ask(f"mark {name}")


def _fill_menu(console: Console, options: Mapping[str, str], line: int) -> None:
    """Set plugin options in the menu behind ``mod``."""
    answer = console.ask("mod")
    answer = console.ask(_number(answer, "Plugin Options"))
    if "Select plugin to configure" in answer:
        answer = console.ask(str(line or 1))
    for name, value in options.items():
        answer = console.ask("mod")
        console.ask(_number(answer, rf"{re.escape(name)} \("))
        console.ask(value)
    console.ask("yes")


def _number(menu: str, item: str) -> str:
    match = re.search(rf"^\s*(\d+): {item}", menu, re.MULTILINE)
    assert match is not None, f'no "{item}" in the menu\n{menu}'
    return match[1]


def _job_id(answer: str) -> int:
    found = re.findall(r"^Job queued\. JobId=(\d+)", answer, re.MULTILINE)
    if not found:
        raise JobNotQueued(answer)
    return int(found[-1])


def _console_quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _take_ports() -> tuple[tuple[int, int, int], IO[str]]:
    """
    Return three ports that no other lab has, and the lock that keeps them so until it is closed.

    They are below those that the kernel gives to connections, so that nobody gets one by chance.
    """
    for first in range(_FIRST_PORT, _LAST_PORT, 3):
        lock = _lock_file(first)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        ports = (first, first + 1, first + 2)
        if not any(_listens(port) for port in ports):
            return ports, lock
        lock.close()
    raise RuntimeError("no ports left for a Bacula")


def _lock_file(port: int) -> IO[str]:
    directory = cache_directory() / "bacula-ports"
    directory.mkdir(exist_ok=True)
    return (directory / str(port)).open("w")


def _listens(port: int) -> bool:
    """Whether somebody listens on *port* of 127.0.0.1; asking by a connection would put errors into the logs."""
    needle = f"0100007F:{port:04X} 00000000:0000 0A"
    return needle in Path("/proc/net/tcp").read_text()
