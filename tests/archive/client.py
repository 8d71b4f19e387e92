"""The built client, with a stand-in for ``pgkeep`` beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.vault.wal_archive import WalArchive

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "client" / "pgkeep-wal.c"
DEADLINE_SECONDS = 60.0
_LISTENS = "00010000"
"""__SO_ACCEPTCON, as proc(5) shows it."""


def build_client(directory: Path, *, flags: Sequence[str] = ()) -> Path:
    """Compile the client into *directory*, with ``pgkeep`` beside it, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "pgkeep-wal"
    compiler = shutil.which("cc") or "gcc"
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-pedantic"]
    subprocess.run([compiler, *strict, *flags, "-o", str(program), str(SOURCE)], check=True)
    front = directory / "pgkeep"
    stand_in = Path(__file__).with_name("pgkeep_stand_in.py")
    front.write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT / 'src'}' exec '{sys.executable}' '{stand_in}' \"$@\"\n")
    front.chmod(0o755)
    return program


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return when *condition* holds; fail when it does not within the deadline."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {DEADLINE_SECONDS} s")
        time.sleep(0.01)


@dataclass
class Client:
    """
    Calls of the client from one data directory.

    Attributes:
        program: The built client.
        data_directory: Its working directory.
        runtime: Where services listen.
        archive: What it works on.
        options: Further options.
        log: Where the Python command notes that it was run.
    """

    program: Path
    data_directory: Path
    runtime: Path
    archive: WalArchive
    options: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.runtime.parent / "python-runs.log"

    def arguments(self, verb: str, *operands: str) -> list[str]:
        """Return the whole command."""
        archive = self.archive
        return [
            str(self.program),
            verb,
            f"--archive={archive.root}",
            f"--system={int(archive.system_identifier)}",
            f"--size={archive.segment_size}",
            f"--log={self.log}",
            *self.options,
            *operands,
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {"PGKEEP_RUNTIME_DIR": str(self.runtime), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, verb: str, *operands: str) -> subprocess.CompletedProcess[str]:
        """Run the client and wait for it."""
        return subprocess.run(
            self.arguments(verb, *operands),
            cwd=self.data_directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def begin(self, verb: str, *operands: str) -> subprocess.Popen[str]:
        """Start the client."""
        return subprocess.Popen(
            self.arguments(verb, *operands),
            cwd=self.data_directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python_runs(self) -> int:
        """Return how often the client had to run the Python command."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def service_pids(self) -> list[int]:
        """Return the processes that serve this archive."""
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    if (
                        b"pgkeep.jobs.archive.service" in command
                        and f"--archive={self.archive.root}\0".encode() in command
                    ):
                        pids.append(int(entry.name))
        return pids

    def warm(self) -> None:
        """Have a service running that listens."""
        self.run("archive-get", "00000009.history", "pg_wal/warm")
        wait_until(self.is_served, "the start of the service")

    def is_served(self) -> bool:
        """Tell whether a service listens, which is a moment after its socket has a name."""
        sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        return any(fields[3] == _LISTENS and fields[-1].startswith(f"{self.runtime}/") for fields in sockets)

    def kill_services(self, number: int = signal.SIGKILL) -> None:
        """Kill the services of this archive, and wait until they are gone."""
        for pid in self.service_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        wait_until(lambda: not self.service_pids(), "the end of the service")
