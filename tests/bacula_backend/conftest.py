"""Fixtures of the backend's tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.bacula_backend.bridge import Bridge, Ended, File, Job, PlainBridge
from tests.lab.cluster import SUPERUSER, Cluster, MakeCluster


@dataclass
class Client:
    """
    One FileSet line on a host with a server: jobs run as a Director would run them.

    It remembers what a catalog would: which job came before, and which files are current.
    """

    cluster: Cluster
    directory: Path
    words: str = "mode=pitr start_fast=yes"
    jobs: list[str] = field(default_factory=list)
    fulls: list[str] = field(default_factory=list)
    catalog: dict[str, File] = field(default_factory=dict)
    runs: int = 0

    @property
    def line(self) -> str:
        """The Plugin line's words."""
        return (
            f"{self.words} host={self.cluster.socket_directory} port={self.cluster.port} user={SUPERUSER} "
            f"state_dir={self.directory / 'state'} bin_dir={self.cluster.installation.program('pg_dump').parent}"
        )

    @property
    def state(self) -> Path:
        """Where records are kept."""
        mode = self.words.partition("mode=")[2].split()[0]
        return self.directory / "state" / "bacula" / "default" / mode

    def name(self) -> str:
        """Return the unique name of the next job."""
        return f"Nightly.2026-11-20_21.56.35_{self.runs + 1:02}"

    def run(
        self,
        level: str = "F",
        *,
        bridge: type[PlainBridge] = Bridge,
        words: str = "",
        accurate: bool = False,
        previous: str | None = None,
        counts: bool = True,
        name: str = "",
        run: int = 0,
        job_id: int = 0,
        **more: Any,
    ) -> Job:
        """
        Run one job of *level* to its end.

        Args:
            level: F, D or I.
            bridge: The kind of bridge.
            words: Further words of the Plugin line.
            accurate: Whether the catalog can be asked.
            previous: The job that the Director names; chosen as it would where None.
            counts: Whether the Director takes the job for a success.
            name: Unique name of the job; chosen as a Director would where empty.
            run: What tells the job's run from others of the same name; 0 for a bridge that does not say it.
            job_id: The job's number; the next one when 0.
            more: Of the bridge.
        """
        job = {"Name": name or self.name(), "JobID": str(job_id or self.runs + 1), "Level": level}
        self.runs += 1
        if previous is None and level != "F":
            previous = (self.fulls if level == "D" else self.jobs or [""])[-1]
        if previous:
            job["PrevJobName"] = previous
        if bridge is Bridge:
            job["Accurate"] = str(int(accurate))
            job["Run"] = str(run)
        with bridge(**more) as talk:
            talk.catalog = self.catalog
            try:
                done = talk.backup(job, f"{self.line} {words}")
            except Ended:
                talk.process.wait(30)
                talk._reap()
                return talk.job
        if counts:
            self._take(job["Name"], level, done, accurate=accurate)
        return done

    def _take(self, name: str, level: str, done: Job, *, accurate: bool) -> None:
        self.jobs.append(name)
        if level == "F":
            self.fulls.append(name)
            self.catalog = dict(done.files)
            return
        if accurate:
            kept = tuple(done.keep)
            self.catalog = {
                name: file
                for name, file in self.catalog.items()
                if name in done.seen or (kept and name.startswith(kept))
            }
        self.catalog.update(done.files)


@pytest.fixture
def client(make_cluster: MakeCluster, lab_directory: Path) -> Client:
    """A client with a running server whose WAL stays for a while."""
    cluster = make_cluster(
        settings={"wal_keep_size": "1GB", "unix_socket_directories": str(lab_directory), "log_min_messages": "warning"}
    )
    return Client(cluster, lab_directory)
