"""pgkeep as its users run it: the program itself, as the server's account, and the servers that it brings back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.lab.cluster import SUPERUSER, Cluster, free_port, wait_for
from tests.lab.guardian import Guardian
from tests.lab.installation import Installation
from tests.lab.ledger import Digests, Mark, check_ledger, digest
from tests.lab.server_user import server_user

PGKEEP = Path(sys.executable).with_name("pgkeep")
PGKEEP_WAL = Path(sys.executable).with_name("pgkeep-wal")
TIMEOUT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call of pgkeep said; *lines* are those of its log, without what stands before each of them."""

    status: int
    stdout: str
    lines: list[str]

    @property
    def report(self) -> dict[str, Any]:
        """The report of ``--json``."""
        report: dict[str, Any] = json.loads(self.stdout)
        return report

    @property
    def warnings(self) -> list[str]:
        """The warnings."""
        return [line.removeprefix("warning: ") for line in self.lines if line.startswith("warning: ")]

    @property
    def refusal(self) -> list[str]:
        """The error and its hint, if any."""
        return [line for line in self.lines if line.startswith(("error: ", "hint: "))]


@dataclass
class Restored:
    """A cluster that pgkeep laid down."""

    installation: Installation
    data_directory: Path
    port: int
    outcome: Outcome
    report: dict[str, Any] = field(default_factory=dict)
    _guardian: Guardian | None = None

    def postmaster(self) -> list[str]:
        """Return the lines of postmaster.pid; none when no server runs."""
        with suppress(FileNotFoundError):
            return (self.data_directory / "postmaster.pid").read_text().splitlines()
        return []

    def guard(self) -> None:
        """Let the server end when this process ends, whatever ends it."""
        lines = self.postmaster()
        if lines and self._guardian is None:
            self._guardian = Guardian(int(lines[0]), how=signal.SIGQUIT)

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[Any]:
        """Connect as superuser through the socket that the server says it has."""
        lines = self.postmaster()
        return psycopg.connect(host=lines[4], port=int(lines[3]), user=SUPERUSER, dbname=dbname, autocommit=True)

    def value(self, statement: str, *, dbname: str = "postgres") -> Any:
        """Return the single value of a one-row *statement*."""
        with self.connect(dbname) as connection:
            row = connection.execute(statement).fetchone()
        assert row is not None
        return row[0]

    def digests(self, dbname: str = "postgres") -> Digests:
        """Return the digests of all tables."""
        with self.connect(dbname) as connection:
            return digest(connection)

    def assert_is_at(self, mark: Mark) -> None:
        """Assert that every row is the one that was there at *mark*, and that the ledger adds up."""
        with self.connect() as connection:
            assert digest(connection) == mark.digests
            check_ledger(connection)

    def assert_is_before(self, mark: Mark) -> None:
        """Assert that all is as it was at *mark*, but for the transaction that made the mark."""
        with self.connect() as connection:
            differing = {name for name, value in digest(connection).items() if value != mark.digests[name]}
            assert differing == {"public.ledger_mark"}
            assert connection.execute("SELECT 1 FROM ledger_mark WHERE name = %s", [mark.name]).fetchall() == []
            check_ledger(connection)

    def log_text(self) -> str:
        """Return what the server said while pgkeep watched it."""
        return self.data_directory.with_name(f"{self.data_directory.name}.pgkeep-restore.log").read_text()

    def start(self, *, wait: bool = True) -> None:
        """Start the server by pg_ctl, as somebody would who has never heard of pgkeep."""
        log = self.data_directory.with_name(f"{self.data_directory.name}.log")
        program = self.installation.program("pg_ctl")
        command: list[str | Path] = [program, "-D", self.data_directory, "-l", log, "-t", "60", "-s"]
        done = server_user().run([*command, "-w" if wait else "-W", "start"], env=environment(), check=False)
        assert done.returncode == 0, f"{done.stdout}\n{log.read_text()[-4000:]}"
        self.guard()

    def wait_until_promoted(self) -> None:
        """Wait until the server has left recovery."""
        wait_for(lambda: not self.value("SELECT pg_is_in_recovery()"), "the restored server is promoted")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server, if it runs, and wait until it has."""
        lines = self.postmaster()
        # A server that was killed leaves the file, and its number may be somebody else's by now.
        if lines and self._runs(int(lines[0])):
            with suppress(ProcessLookupError):
                os.kill(int(lines[0]), how)
            wait_for(lambda: not self._runs(int(lines[0])), "the restored server has stopped")
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None

    def _runs(self, pid: int) -> bool:
        # Nobody may be there to reap it: a zombie has stopped.
        with suppress(OSError):
            head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            return head.endswith("(postgres") and rest.split()[0] != "Z"
        return False


class Keeper:
    """pgkeep with one vault and one cluster in it."""

    def __init__(self, directory: Path, cluster: Cluster, *, name: str = "main") -> None:
        """Touch nothing yet; the vault will be *directory*/vault."""
        self.directory = directory
        self.cluster = cluster
        self.name = name
        self.vault = directory / "vault"
        self.program: list[str | Path] = [PGKEEP]
        self.restored: list[Restored] = []

    # -------------------------------------------------------------------------------------------------------- calls

    def run(
        self, verb: str, *arguments: str | Path, name: str | None = None, env: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run ``pgkeep VERB NAME --vault=… ARGUMENTS`` and return what it said, whatever its exit status."""
        command = [*self.program, verb, self.name if name is None else name, f"--vault={self.vault}", *arguments]
        done = subprocess.run(
            [str(word) for word in command],
            env=environment() | dict(env or {}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            **server_user().popen_arguments(),
        )
        lines = [line.removeprefix("pgkeep: ") for line in done.stderr.splitlines()]
        return Outcome(done.returncode, done.stdout, lines)

    def must(self, verb: str, *arguments: str | Path, **keywords: Any) -> Outcome:
        """Run pgkeep, which must succeed."""
        outcome = self.run(verb, *arguments, **keywords)
        assert outcome.status == 0, "\n".join([f"{verb} ended with {outcome.status}", *outcome.lines, outcome.stdout])
        return outcome

    def server_options(self, cluster: Cluster | None = None, *, user: str = SUPERUSER) -> list[str]:
        """Return the options that lead to the server."""
        cluster = cluster or self.cluster
        return [f"--host={cluster.socket_directory}", f"--port={cluster.port}", f"--user={user}"]

    def init(self, *arguments: str, cluster: Cluster | None = None) -> Outcome:
        """Make the vault, or add the cluster to it."""
        return self.must("init", *self.server_options(cluster), *arguments)

    def backup(
        self, level: str, transport: str, *arguments: str, cluster: Cluster | None = None, user: str = SUPERUSER
    ) -> Outcome:
        """Make a backup of mode pitr; it must succeed."""
        return self.must("backup", *self.backup_options(level, transport, cluster=cluster, user=user), *arguments)

    def backup_options(
        self, level: str, transport: str, *, cluster: Cluster | None = None, user: str = SUPERUSER
    ) -> list[str]:
        """Return the options of a backup of mode pitr."""
        return [
            *("--json", "--mode=pitr", "--start-fast", f"--level={level}", f"--transport={transport}"),
            *self.server_options(cluster, user=user),
        ]

    def refuse(self, *arguments: str | Path) -> tuple[int, list[str]]:
        """Ask for a restore that must be refused; return the exit status, and the error with its hint."""
        outcome = self.run("restore", f"--bin-dir={self.cluster.installation.bin_dir}", *arguments)
        assert outcome.status != 0, "\n".join(outcome.lines)
        return outcome.status, outcome.refusal

    def plan(self, *arguments: str | Path) -> list[str]:
        """Return the plan of a restore with *arguments*, line by line."""
        bin_dir = self.cluster.installation.bin_dir
        return self.must("restore", f"--bin-dir={bin_dir}", *arguments, "--plan").stdout.splitlines()

    def info(self) -> dict[str, Any]:
        """Return what ``pgkeep info`` reports of the cluster."""
        [report] = json.loads(self.must("info", "--json").stdout)
        return dict(report)

    # ----------------------------------------------------------------------------------------------------- restores

    def restore(self, *arguments: str | Path, to: str = "", start: bool = True, status: int = 0) -> Restored:
        """
        Restore into a directory beside the others.

        Args:
            arguments: The target, and whatever else.
            to: Name of the directory; empty for one of its own.
            start: Whether pgkeep starts the server.
            status: The exit status that is expected.
        """
        port = free_port()
        data_directory = self.directory / (to or f"restored{len(self.restored)}")
        outcome = self.run(
            "restore",
            *("--json", f"--bin-dir={self.cluster.installation.bin_dir}", f"--port={port}"),
            *(f"--pgdata-dir={data_directory}", "--start" if start else "--no-start"),
            *arguments,
        )
        restored = Restored(self.cluster.installation, data_directory, port, outcome)
        self.restored.append(restored)
        restored.guard()
        assert outcome.status == status, "\n".join([f"restore ended with {outcome.status}", *outcome.lines])
        if status == 0 and outcome.stdout:
            restored.report = outcome.report
        return restored

    def stop_restored(self) -> None:
        """Stop every server that was restored."""
        for restored in self.restored:
            restored.stop(signal.SIGQUIT)

    # ------------------------------------------------------------------------------------------------------ archive

    def archive_command(self) -> str:
        """Return the archive_command that pushes into the vault."""
        return f"{PGKEEP_WAL} archive-push --vault={self.vault} --cluster={self.name} %p"

    def wait_until_archived(self, cluster: Cluster | None = None) -> None:
        """End the current segment and wait until the server has archived it."""
        cluster = cluster or self.cluster
        segment = cluster.switch_wal()
        wait_for(
            lambda: bool(
                cluster.value("SELECT coalesce(last_archived_wal, '') >= %s FROM pg_stat_archiver", [segment])
            ),
            f"{segment} is archived\n{cluster.log_text()[-2000:]}",
        )

    def listing(self) -> list[tuple[str, int, int, int]]:
        """Return path, mode, size and modification time of everything beneath the directory, for a comparison."""
        found = []
        for directory, directories, files in os.walk(self.directory):
            for name in directories + files:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                found.append((path, status.st_mode, status.st_size, status.st_mtime_ns))
        return sorted(found)


def environment() -> dict[str, str]:
    """No settings of the person who runs the tests: no PG* variable, no configuration file, no language but C."""
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return {"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/", "PGKEEP_CONFIG": str(empty_configuration())}


def empty_configuration() -> Path:
    """Return a configuration file that sets nothing."""
    return Path(__file__).with_name("empty.conf")
