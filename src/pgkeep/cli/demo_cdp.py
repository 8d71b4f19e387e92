"""
``pgkeep demo cdp``: a server dies under load, told as it happens.

Every commit waits until pgkeep has it on disk (``synchronous_standby_names``). The server is killed in the middle of
the load and its data directory is thrown away; what it had acknowledged is in the vault, row for row.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from pgkeep.cli.demo import LOAD_SECONDS, Demo, tell
from pgkeep.cli.output import print_line
from pgkeep.errors import CheckFailed
from pgkeep.jobs.program import pgkeep_words

_SCHEMA = b"CREATE TABLE payment (worker int, number int, PRIMARY KEY (worker, number))"
_WORKERS = 4
_DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_SLOT = "pgkeep_demo"


class CdpDemo(Demo):
    """The story of continuous WAL."""

    def _tell_story(self) -> None:
        with self._connect(self._port) as session:
            session.execute(_SCHEMA)
            session.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
            session.execute("SELECT pg_reload_conf()")
        self._pgkeep("init", "demo", "--vault", str(self._vault), *self._server_options())
        self._backup("full")
        with self._receiving():
            log = ["-l", str(self._directory / "server.log")]
            synchronous = ["-o", f"-c synchronous_standby_names={_SLOT}"]
            self._program("pg_ctl", "-D", str(self._data), *log, "-w", "-s", *synchronous, "restart")
            tell(f"synchronous_standby_names = {_SLOT}: every commit waits for pgkeep")
            self._wait_until_synchronous()
            acknowledged = self._work_until_killed()
        shutil.rmtree(self._data)
        tell("the data directory is gone as well   -- the accident")
        self._pgkeep("info", "demo", "--vault", str(self._vault))
        place = [f"--pgdata-dir={self._restored}", f"--bin-dir={self._bin_dir}", f"--port={self._restored_port}"]
        self._pgkeep("restore", "demo", f"--vault={self._vault}", *place, "--start")
        with self._connect(self._restored_port) as session:
            rows = session.execute("SELECT worker, number FROM payment").fetchall()
        restored = {(int(str(worker)), int(str(number))) for worker, number in rows}
        missing = acknowledged - restored
        tell(
            f"{len(acknowledged)} transactions were acknowledged, {len(acknowledged) - len(missing)} of them are back; "
            f"{len(restored - acknowledged)} more had come as far as the disk"
        )
        if missing:
            raise CheckFailed(f"{len(missing)} acknowledged transactions are missing from the restored server")

    @contextlib.contextmanager
    def _receiving(self) -> Iterator[None]:
        """Receive while the block runs, then stop as a service manager would."""
        arguments = ["receive", "demo", f"--vault={self._vault}", f"--spool-dir={self._directory / 'spool'}"]
        arguments += self._server_options()
        print_line(f"$ pgkeep {' '.join(arguments)} &")
        environment = {**os.environ, "PGKEEP_CONFIG": str(self._directory / "pgkeep.conf")}
        process = subprocess.Popen(
            [*pgkeep_words(), *arguments], env=environment, cwd="/", stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            tell("pgkeep receive gets SIGTERM")
            process.send_signal(signal.SIGTERM)
            status = process.wait(_DEADLINE_SECONDS)
        if status:
            raise CheckFailed(f"pgkeep receive ended with {status}")

    def _wait_until_synchronous(self) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        with self._connect(self._port) as session:
            while True:
                found = session.execute("SELECT sync_state, application_name FROM pg_stat_replication").fetchall()
                if found == [("sync", _SLOT)]:
                    return
                if time.monotonic() > deadline:
                    raise CheckFailed(f"pgkeep is not the synchronous standby: found {found}")
                time.sleep(_POLL_SECONDS)

    def _work_until_killed(self) -> set[tuple[int, int]]:
        """Commit payments, kill the server in the middle, and return those that it had acknowledged."""
        acknowledged: set[tuple[int, int]] = set()

        def work(worker: int) -> None:
            number = 0
            with contextlib.suppress(psycopg.Error), self._connect(self._port) as session:
                while True:
                    session.execute("INSERT INTO payment VALUES (%s, %s)", [worker, number])
                    acknowledged.add((worker, number))
                    number += 1

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in range(_WORKERS)]
        for thread in threads:
            thread.start()
        time.sleep(2 * LOAD_SECONDS)
        tell(f"kill -9 of the server and all its processes, {len(acknowledged)} transactions after the start")
        _kill_server(self._data)
        for thread in threads:
            thread.join()
        return acknowledged


def _kill_server(data_directory: Path) -> None:
    postmaster = int((data_directory / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    for pid in (postmaster, *map(int, children)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
