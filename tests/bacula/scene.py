"""What the tests with a real Bacula play with: a cluster with a ledger, and a Director whose daemon has the plugin."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path

from tests.lab.bacula import Director, JobResult
from tests.lab.bacula_config import JobDefinition
from tests.lab.cluster import SUPERUSER, Cluster, free_port, wait_for
from tests.lab.ledger import Ledger, Mark
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation
from tests.restore.keeper import Outcome, Restored, environment

PLUGIN = Path(sys.prefix) / "lib/pgkeep/pgkeep-fd.so"
BACKEND = Path(sys.executable).with_name("pgkeep-backend")
PGKEEP = Path(sys.executable).with_name("pgkeep")

_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgkeep%'"


@cache
def plugin() -> Path:
    """Return the built plugin; ``./dev`` builds it before it runs tests."""
    assert PLUGIN.is_file(), f"no {PLUGIN}: run ./dev setup"
    return PLUGIN


def install_plugin(director: Director, settings: Mapping[str, str] | None = None) -> None:
    """Give the plugin to the File Daemon of *director*, which does not run yet, with a pgkeep.conf of its own."""
    config = director.directory / "pgkeep.conf"
    values = {"state_dir": str(director.directory / "state"), **(settings or {})}
    config.write_text("[options]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()))
    config.chmod(0o600)
    server_user().own(config)
    pgkeep_bacula(
        "install", director, f"--plugin={plugin()}", f"--backend={BACKEND}", f"--config={config}",
        f"--state-dir={director.directory / 'state'}",
    )  # fmt: skip


def pgkeep_bacula(verb: str, director: Director, *arguments: str, must: bool = True) -> Outcome:
    """Run ``pgkeep bacula VERB`` for the File Daemon of *director*, as its user."""
    outcome = run_pgkeep("bacula", verb, f"--fd-config={director.layout.configuration / 'bacula-fd.conf'}", *arguments)
    assert outcome.status == 0 or not must, "\n".join([outcome.stdout, *outcome.lines])
    return outcome


def run_pgkeep(*arguments: str) -> Outcome:
    """Run pgkeep as the user of the daemons and servers."""
    done = subprocess.run(
        [PGKEEP, *arguments],
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        **server_user().popen_arguments(),
    )
    return Outcome(done.returncode, done.stdout, [line.removeprefix("pgkeep: ") for line in done.stderr.splitlines()])


class Scene:
    """
    One cluster, one Director.

    Attributes:
        directory: Of the test; everything is beneath it.
        cluster: Runs.
        director: Runs; its daemon has the plugin.
        ledger: In the database ``postgres``.
    """

    def __init__(self, directory: Path, cluster: Cluster, director: Director) -> None:
        """Put a ledger into *cluster*."""
        self.directory = directory
        self.cluster = cluster
        self.director = director
        self.ledger = Ledger(cluster, accounts=50)
        self.restored: list[Restored] = []

    # ---------------------------------------------------------------------------------------------------------- jobs

    def line(self, mode: str, more: str = "", *, user: str = SUPERUSER, cluster: Cluster | None = None) -> str:
        """Return a Plugin line for the cluster."""
        cluster = cluster or self.cluster
        fixed = " start_fast=yes" if mode == "pitr" else ""
        if mode.endswith("dump") and not cluster.installation.has_client_programs:
            fixed = f" bin_dir={newest_installation().bin_dir}"
        text = f"pgkeep: mode={mode} host={cluster.socket_directory} port={cluster.port} user={user}{fixed} {more}"
        return text.strip()

    def job(self, name: str, *lines: str, **arguments: object) -> JobDefinition:
        """Add a job with these Plugin lines."""
        return self.director.add_job(name, *lines, **arguments)  # type: ignore[arg-type]

    def backup(self, job: JobDefinition, level: str) -> JobResult:
        """Run a backup, which must end without an error, at the level that was asked for."""
        result = self.director.run(job.name, level).must()
        assert result.level == level[0], result.text
        return result

    def transfer(self, count: int = 20) -> None:
        """Let some transactions happen."""
        self.ledger.transfer(count, seed=count)

    # ------------------------------------------------------------------------------------------------------ restores

    def pgdata(self, where: Path) -> Path:
        """Return the data directory that a restore has put beneath *where*."""
        found = [path.parent for path in where.rglob("PG_VERSION") if (path.parent / "global").is_dir()]
        assert len(found) == 1, f"expected one data directory beneath {where}, found {found}"
        return found[0]

    def start(self, pgdata: Path) -> Restored:
        """Start the server of a restored data directory, as somebody would who has never heard of pgkeep."""
        port = free_port()
        restored = Restored(self.cluster.installation, pgdata, port, Outcome(0, "", []))
        self.restored.append(restored)
        socket_directory = self.directory / f"s{port}"
        socket_directory.mkdir()
        server_user().own(socket_directory)
        log = self.directory / f"{port}.log"
        options = f"-p {port} -c unix_socket_directories={socket_directory} -c listen_addresses="
        command = [self.cluster.installation.program("pg_ctl"), "-D", pgdata, "-l", log, "-t", "60", "-s", "-w"]
        done = server_user().run([*command, "-o", options, "start"], env=environment(), check=False)
        assert done.returncode == 0, f"{done.stdout}\n{log.read_text()[-4000:]}"
        restored.guard()
        return restored

    def running(self, where: Path) -> Restored:
        """Return the server that a restore has started beneath *where*."""
        restored = Restored(self.cluster.installation, self.pgdata(where), 0, Outcome(0, "", []))
        self.restored.append(restored)
        restored.guard()
        return restored

    def assert_restored(self, where: Path, mark: Mark) -> Restored:
        """Start what was restored beneath *where*, and assert that every row is the one that was there at *mark*."""
        restored = self.start(self.pgdata(where))
        restored.wait_until_promoted()
        restored.assert_is_at(mark)
        return restored

    def close(self) -> None:
        """Stop every server that was restored."""
        for restored in self.restored:
            restored.stop()

    # ---------------------------------------------------------------------------------------------------- afterwards

    def assert_nothing_is_left(self) -> None:
        """Assert that no session of pgkeep's is on the server, none in backup mode either, and no backend process."""
        wait_for(lambda: not self.director.children(), "the daemon has no child left")
        wait_for(lambda: self.cluster.value(_SESSIONS) == 0, "no session of pgkeep is left")


def forget_files(scene: Scene) -> None:
    """Let the catalog have no names of files any more, as when File Retention is over."""
    with closing(sqlite3.connect(scene.director.catalog_file, timeout=30)) as catalog:
        catalog.execute("DELETE FROM File")
        catalog.commit()


def files_beneath(directory: Path) -> list[str]:
    """Return the paths of all files beneath *directory*, relative to it, sorted."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), directory)
        for parent, _, names in os.walk(directory)
        for name in names
    )
