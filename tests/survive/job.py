"""A pgkeep that runs while the test does something to it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.lab.cluster import Cluster, wait_for
from tests.lab.server_user import server_user
from tests.restore.keeper import PGKEEP, TIMEOUT_SECONDS, Keeper, Outcome, environment

SIGNALLED_AT = Path(__file__).with_name("signalled_at.py")

Point = tuple[str, int, str, str]
"""A signal's name, and the event before which it comes; see ``signalled_at``."""


class Job:
    """
    A call of pgkeep under way; use it as a context manager.

    Attributes:
        lines: What it has logged so far, without what stands before each line.
        program: How pgkeep is started where no signal is sent.
        signalled: The script that starts it where one is.
    """

    program: ClassVar[list[str | Path]] = [PGKEEP]
    signalled: ClassVar[Path] = SIGNALLED_AT

    def __init__(self, keeper: Keeper, verb: str, *arguments: str | Path, at: Point | None = None) -> None:
        """Start ``pgkeep VERB NAME --vault=… ARGUMENTS``; *at* says when it gets which signal."""
        program = self.program
        if at is not None:
            program = [sys.executable, self.signalled, *map(str, at)]
        command = [*program, verb, keeper.name, f"--vault={keeper.vault}", *arguments]
        self.lines: list[str] = []
        self._stdout: list[str] = []
        self._process = subprocess.Popen(
            [str(word) for word in command],
            env=environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **server_user().popen_arguments(),
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self._process.stdout, self._stdout), (self._process.stderr, self.lines))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_for_line(self, start: str) -> None:
        """Wait until it logs a line that begins with *start*."""
        wait_for(
            lambda: any(line.startswith(start) for line in self.lines) or not self.is_running,
            f"pgkeep says {start}",
            timeout_seconds=TIMEOUT_SECONDS,
        )
        assert any(line.startswith(start) for line in self.lines), "\n".join(self.lines)

    def wait_until_stopped(self) -> None:
        """Wait until SIGSTOP has stopped it."""
        wait_for(lambda: self._state() in "TZ", "pgkeep is stopped", timeout_seconds=TIMEOUT_SECONDS)
        assert self.is_running, "\n".join(self.lines)

    def go_on(self) -> Outcome:
        """Let it go on after SIGSTOP, and wait for its end."""
        self.send(signal.SIGCONT)
        return self.end()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL if it still runs, and see it off."""
        if self._process.poll() is None:
            self._process.kill()
        self.end()

    def end(self) -> Outcome:
        """Wait for its end and return what it said."""
        status = self._process.wait(TIMEOUT_SECONDS)
        for reader in self._readers:
            reader.join()
        return Outcome(status, "".join(self._stdout), self.lines)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def _read(self, stream: object, lines: list[str]) -> None:
        with stream as text:  # type: ignore[attr-defined]
            for line in text:
                lines.append(line.rstrip("\n").removeprefix("pgkeep: ") if lines is self.lines else line)


def backup_ids(keeper: Keeper) -> list[str]:
    """Return the ids of the backups that info lists."""
    return [backup["backup_id"] for backup in keeper.info()["backups"]]


def leftovers(keeper: Keeper) -> list[str]:
    """Return what info says killed jobs left."""
    return list(keeper.info()["leftovers"])


def assert_server_is_left_alone(cluster: Cluster) -> None:
    """Assert that soon no session of pgkeep's is there, and no slot that one of them made."""
    wait_for(lambda: not _traces(cluster), f"the server is left alone: {_traces(cluster)}")


def _traces(cluster: Cluster) -> Sequence[object]:
    sessions = cluster.sql(
        "SELECT pid, backend_type, state, query FROM pg_stat_activity WHERE application_name LIKE 'pgkeep%'"
    )
    slots = cluster.sql("SELECT slot_name, temporary, active FROM pg_replication_slots WHERE temporary")
    return [*sessions, *slots]
