"""
What every measurement needs: a server with 2 GB of pgbench data, a pgBackRest stanza over it, and fair timing.

The server is the newest Debian one on this machine that pgBackRest here understands; it and every program run as an
unprivileged user when the bench runs as root. Timing alternates between the two sides, and medians are compared, so
that a machine whose speed drifts does not favour one of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SCALE = 115
TEXT_ROWS = 4_500_000
ROUNDS = int(os.environ.get("PGKEEP_BENCH_ROUNDS", "5"))
STANZA = "bench"


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement; *ratio* is our time by the peer's, less is better; *more* is what else was measured."""

    name: str
    ours_seconds: float
    peer: str
    peer_seconds: float
    goal: float
    more: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """Return it as one JSON object."""
        return json.dumps(
            {
                "name": self.name,
                "ours_seconds": round(self.ours_seconds, 3),
                "peer": self.peer,
                "peer_seconds": round(self.peer_seconds, 3),
                "ratio": round(self.ours_seconds / self.peer_seconds, 3),
                "goal": self.goal,
                **self.more,
            }
        )


def say(text: str) -> None:
    """Tell the reader on stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def newest_bin_directory() -> Path:
    """Return the directory of the newest Debian server's programs; exit with what to install when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    if not found:
        raise SystemExit("bench: no server found in /usr/lib/postgresql: apt-get install postgresql")
    return found[-1].parent


def server_user() -> str:
    """Return the user that servers run as: ourselves, or an unprivileged one when we are root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    return "postgres"


def run(arguments: list[str], *, user: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program as the server's user; return its output, or exit with it when it fails."""
    done = subprocess.run(
        arguments,
        check=False,
        user=user or (server_user() if os.geteuid() == 0 else None),
        extra_groups=[] if os.geteuid() == 0 else None,
        env={**os.environ, "HOME": "/tmp", **(env or {})},
        cwd="/",
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alternate(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    rounds: int = ROUNDS,
    before: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """
    Run both sides in turn, after a warm-up each; return the median wall time of each in seconds.

    *before* is called before each run and is not timed.
    """
    times: tuple[list[float], list[float]] = ([], [])
    processor: tuple[list[float], list[float]] = ([], [])
    for action in (ours, peer):
        before()
        action()
    for _ in range(rounds):
        for side, action in enumerate((ours, peer)):
            before()
            # What an earlier run left for the kernel to write must not be counted against this one.
            os.sync()
            used, begin = _processor_seconds(), time.perf_counter()
            action()
            times[side].append(time.perf_counter() - begin)
            processor[side].append(_processor_seconds() - used)
    say(f"  ours {[round(t, 2) for t in times[0]]}, peer {[round(t, 2) for t in times[1]]}")
    say(f"  user and system: ours {statistics.median(processor[0]):.2f}, peer {statistics.median(processor[1]):.2f}")
    return statistics.median(times[0]), statistics.median(times[1])


def _processor_seconds() -> float:
    """Return what the programs that have ended by now have used; servers go on and are not in it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(slots=True)
class BenchCluster:
    """A running server and its files, all inside *directory*."""

    directory: Path
    bin_directory: Path
    port: int

    @property
    def data_directory(self) -> Path:
        """The server's data directory."""
        return self.directory / "data"

    def psql(self, sql: str) -> str:
        """Run *sql* and return its unaligned output."""
        program = str(self.bin_directory / "psql")
        return run([program, "-XAtq", "-h", str(self.directory), "-p", str(self.port), "-d", "postgres", "-c", sql])

    def configure(self, **settings: str) -> None:
        """Write settings and make the server take them."""
        with open(self.data_directory / "postgresql.auto.conf", "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self.stop()
        self.start()

    def start(self) -> None:
        """Start the server."""
        log = str(self.directory / "server.log")
        run([str(self.bin_directory / "pg_ctl"), "-D", str(self.data_directory), "-l", log, "-w", "-s", "start"])

    def stop(self) -> None:
        """Stop the server."""
        run([str(self.bin_directory / "pg_ctl"), "-D", str(self.data_directory), "-m", "fast", "-w", "-s", "stop"])


@contextlib.contextmanager
def cluster(
    workdir: Path,
    *,
    scale: int = SCALE,
    text_rows: int = TEXT_ROWS,
    bin_directory: Path | None = None,
    fill_factor: int = 100,
    settings: str = "",
) -> Iterator[BenchCluster]:
    """
    Make a server with checksums and about 2 GB of pgbench data and text, and stop it in the end.

    *bin_directory* has its programs, the machine's newest where none is given; *fill_factor* leaves room in the pages;
    *settings* are lines for its configuration.
    """
    directory = workdir / "cluster"
    directory.mkdir()
    if os.geteuid() == 0:
        shutil.chown(directory, server_user(), pwd.getpwnam(server_user()).pw_gid)
    made = BenchCluster(directory, bin_directory or newest_bin_directory(), free_port())
    run([str(made.bin_directory / "initdb"), "-D", str(made.data_directory), "-k", "-A", "trust", "-U", "postgres"])
    with open(made.data_directory / "postgresql.auto.conf", "a") as file:
        file.write(
            f"port = {made.port}\nunix_socket_directories = '{directory}'\nshared_buffers = 256MB\n"
            "max_wal_size = 8GB\ncheckpoint_timeout = 1h\nwal_level = replica\nautovacuum = off\n"
            f"{settings}"
        )
    made.start()
    try:
        say(f"  filling a server with pgbench scale {scale} and {text_rows} rows of text")
        pgbench = str(made.bin_directory / "pgbench")
        run(
            [
                pgbench,
                "-i",
                "-q",
                "-s",
                str(scale),
                "-F",
                str(fill_factor),
                "-U",
                "postgres",
                "-h",
                str(directory),
                "-p",
                str(made.port),
                "postgres",
            ]
        )
        made.psql(
            f"CREATE TABLE notes WITH (fillfactor = {fill_factor}) AS "
            "SELECT g AS id, md5(g::text) || md5((g * 7)::text) AS body "
            f"FROM generate_series(1, {text_rows}) g"
        )
        made.psql("VACUUM")
        made.psql("CHECKPOINT")
        yield made
    finally:
        made.stop()


@contextlib.contextmanager
def pgbackrest(
    server: BenchCluster, *, archiving: bool = True, program: str | None = None, options: str = ""
) -> Iterator[list[str]]:
    """
    Make a pgBackRest stanza over *server*, two processes and zstd level 1; yield the command up to its verb.

    *program* is another than the machine's; *options* are lines for its configuration.
    """
    program = program or shutil.which("pgbackrest")
    if program is None:
        raise SystemExit("bench: pgbackrest is not installed: apt-get install pgbackrest")
    home = server.directory / "pgbackrest"
    for name in ("repo", "lock", "spool", "log"):
        run(["mkdir", "-p", str(home / name)])
    config = home / "pgbackrest.conf"
    run(["touch", str(config)])
    config.write_text(
        f"[global]\nrepo1-path={home}/repo\nlock-path={home}/lock\nspool-path={home}/spool\nlog-path={home}/log\n"
        "log-level-console=warn\nlog-level-file=off\nprocess-max=2\ncompress-type=zst\ncompress-level=1\n"
        f"start-fast=y\nrepo1-retention-full=2\n{options}[{STANZA}]\npg1-path={server.data_directory}\n"
        f"pg1-port={server.port}\npg1-socket-path={server.directory}\npg1-user=postgres\n"
    )
    command = [program, f"--config={config}", f"--stanza={STANZA}"]
    if archiving:
        server.configure(archive_mode="on", archive_command=f"{' '.join(command)} archive-push %p")
    run([*command, "stanza-create"])
    yield command


def pgkeep_command() -> list[str]:
    """Return how to run pgkeep: the program beside this interpreter."""
    return [str(Path(sys.executable).with_name("pgkeep"))]
