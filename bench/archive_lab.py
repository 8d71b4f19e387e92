"""
Real WAL to archive and to get back: a data directory with 64 segments that wait for archiving, and both programs.

The server has made the segments with pgbench, and is stopped. Both sides run as the server's user, two workers, zstd
level 1. Equal durability: pgBackRest writes a temporary file, syncs it, renames it and syncs the directory before it
says that a segment is archived; pgkeep writes a file without a name, syncs it, links it, syncs the directory. Neither
syncs what it delivers to a replaying server.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.lab import BenchCluster, cluster, pgbackrest, pgkeep_command, run, say, server_user

SEGMENTS = 64
CLUSTER = "bench"


@dataclass(slots=True)
class ArchiveBench:
    """
    A stopped server's data directory with segments to archive, pgkeep's vault and pgBackRest's stanza.

    Attributes:
        data_directory: Of the stopped server.
        names: Segments that wait for archiving, in order.
        wal_root: pgkeep's WAL archive.
        client: The small client.
        options: Options of such a call.
        peer: The words of a pgBackRest call up to its verb.
        repository: pgBackRest's.
        spool: pgBackRest's.
        environment: For both.
    """

    data_directory: Path
    names: list[str]
    wal_root: Path
    client: Path
    options: list[str]
    peer: list[str]
    repository: Path
    spool: Path
    environment: dict[str, str]

    def call(self, command: list[str]) -> None:
        """Run *command* as the server would, and exit with what it says when it fails."""
        done = subprocess.run(
            command,
            cwd=self.data_directory,
            env=self.environment,
            user=server_user() if os.geteuid() == 0 else None,
            group=pwd.getpwnam(server_user()).pw_gid if os.geteuid() == 0 else None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}\n{done.stderr.decode()}")

    def ours(self, verb: str, *operands: str) -> None:
        """Call pgkeep's client."""
        self.call([str(self.client), verb, *self.options, *operands])

    def peers(self, verb: str, *operands: str, is_async: bool = False) -> None:
        """Call pgBackRest."""
        self.call([*self.peer, *(["--archive-async"] if is_async else []), verb, *operands])

    def push_all(self) -> None:
        """Push every segment through pgkeep."""
        for name in self.names:
            self.ours("archive-push", f"pg_wal/{name}")
            self._mark_done(name)

    def peer_push_all(self) -> None:
        """Push every segment through pgBackRest's asynchronous archiving."""
        for name in self.names:
            self.peers("archive-push", f"pg_wal/{name}", is_async=True)
            self._mark_done(name)

    def mark_all_ready(self) -> None:
        """Let every segment wait for archiving again."""
        for path in (self.data_directory / "pg_wal" / "archive_status").glob("*.done"):
            path.rename(path.with_suffix(".ready"))

    def _mark_done(self, name: str) -> None:
        # As the server does when the command has said 0.
        path = self.data_directory / "pg_wal" / "archive_status" / f"{name}.ready"
        path.rename(path.with_suffix(".done"))

    def forget_ours(self) -> None:
        """Empty pgkeep's WAL archive, and end its service, so that the next call begins from nothing."""
        end_services(self.wal_root)
        for directory in self.wal_root.iterdir():
            shutil.rmtree(directory)
        self.mark_all_ready()

    def forget_peers(self) -> None:
        """Empty pgBackRest's WAL archive and spool, when its background process has ended."""
        while _processes(b"archive-push:async"):
            pass
        for directory in (*self.repository.glob("archive/*/*-*"), self.spool / "archive"):
            shutil.rmtree(directory, ignore_errors=True)
        self.mark_all_ready()


@contextlib.contextmanager
def archive_bench(workdir: Path) -> Iterator[ArchiveBench]:
    """Make everything that the two benches of the archive need."""
    with cluster(workdir, scale=1, text_rows=1000) as server, pgbackrest(server) as peer:
        server.configure(archive_mode="on", archive_command="/bin/false")
        _make_wal(server)
        vault = server.directory / "vault"
        where = [f"--vault={vault}", f"--host={server.directory}", f"--port={server.port}", "--user=postgres"]
        run([*pgkeep_command(), "init", CLUSTER, *where])
        server.stop()
        try:
            ready = sorted((server.data_directory / "pg_wal" / "archive_status").glob("*.ready"))
            names = [path.stem for path in ready if len(path.stem) == 24]
            for path in ready:
                if path.stem not in names[:SEGMENTS]:
                    path.unlink()
            made = _made(server, names[:SEGMENTS], vault, peer)
            yield made
            end_services(made.wal_root)
        finally:
            server.start()


def end_services(wal_root: Path) -> None:
    """Kill the archive services of this bench."""
    for pid in _processes(f"--archive={wal_root}\0".encode()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    while _processes(f"--archive={wal_root}\0".encode()):
        pass


def _make_wal(server: BenchCluster) -> None:
    """Let pgbench write as many segments as are wanted."""
    say(f"  making {SEGMENTS} WAL segments")
    program = [str(server.bin_directory / "pgbench"), "-h", str(server.directory), "-p", str(server.port)]
    program += ["-U", "postgres"]
    _as_server([*program, "-i", "-q", "-s", "10", "postgres"])
    # The load is what a server writes; only its waiting for the disk at each commit is left out.
    server.psql("ALTER SYSTEM SET synchronous_commit = off")
    server.psql("SELECT pg_reload_conf()")
    status = server.data_directory / "pg_wal" / "archive_status"
    while len(list(status.glob("*.ready"))) <= SEGMENTS:
        server.psql("CHECKPOINT")
        _as_server([*program, "-n", "-c", "4", "-t", "2500", "-M", "prepared", "postgres"])
        server.psql("UPDATE pgbench_accounts SET abalance = abalance + (random() * 1000)::int WHERE aid % 3 = 0")


def _as_server(command: list[str]) -> None:
    subprocess.run(command, user=server_user() if os.geteuid() == 0 else None, check=True, capture_output=True, cwd="/")


def _made(server: BenchCluster, names: list[str], vault: Path, peer: list[str]) -> ArchiveBench:
    home = server.directory
    client = Path(pgkeep_command()[0]).with_name("pgkeep-wal")
    if not client.exists():
        raise SystemExit(f"bench: {client} is missing; ./dev bench builds it")
    options = [f"--vault={vault}", f"--cluster={CLUSTER}", "--zstd-level=1"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PGKEEP_RUNTIME_DIR": str(home / "run")}
    stanza = home / "pgbackrest"
    wal_root = vault / CLUSTER / "wal"
    return ArchiveBench(
        server.data_directory, names, wal_root, client, options, peer, stanza / "repo", stanza / "spool", environment
    )


def _processes(words: bytes) -> list[int]:
    """Return the processes whose command line has *words* in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if words in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
