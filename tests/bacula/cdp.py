"""What the tests of mode cdp play with: a base backup's job, a cdp job, and a receiver for the spool between them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType

from pgkeep.spool.proof import read_proof
from pgkeep.spool.state import read_state
from tests.bacula.conftest import MakeScene
from tests.bacula.scene import pgkeep_bacula
from tests.lab.bacula import JobResult
from tests.lab.cluster import MakeCluster
from tests.lab.receiving import SETTINGS, receiving, wait_until_received
from tests.lab.server_user import server_user

_SUCCEEDED = "SELECT JobId FROM Job WHERE Type = 'B' AND JobStatus = 'T' ORDER BY JobId"


class CdpScene:
    """
    A scene with two jobs.

    Attributes:
        scene: The cluster and the Director.
        base: A job for base backups.
        job: A job of mode cdp.
        line: Its Plugin line.
        spool: The cluster's spool.
    """

    def __init__(
        self,
        make_scene: MakeScene,
        make_cluster: MakeCluster,
        *,
        mode: str = "pitr",
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Make it, with base backups of *mode*; segments are small."""
        cluster = make_cluster(major=18, settings=SETTINGS | dict(settings), wal_segment_size_mb=1)
        self.scene = scene = make_scene(cluster=cluster)
        self.spool = scene.directory / "spool" / "default"
        self.spool.parent.mkdir()
        server_user().own(self.spool.parent)
        self.base = scene.job(mode, scene.line(mode, "" if mode == "pitr" else "start_fast=yes"))
        # More than two segments crowd it.
        self.line = scene.line("cdp", f"spool_dir={self.spool.parent} spool_max=4M")
        self.job = scene.job("cdp", self.line)

    def receiver(self) -> AbstractContextManager[list[str]]:
        """Run ``pgkeep receive`` for Bacula's jobs, and end it in order."""
        return receiving(self.scene.cluster, self.spool.parent)

    def wait_until_received(self) -> None:
        """Wait until the server knows that all of its WAL so far is durable in the spool."""
        wait_until_received(self.scene.cluster)

    def run(self, level: str) -> JobResult:
        """Run the cdp job."""
        return self.scene.director.run(self.job.name, level)

    def restore(self, *job_ids: int, options: Mapping[str, str] | None = None) -> Path:
        """Restore the jobs with these numbers, or all that succeeded, beneath a directory; return that."""
        director = self.scene.director
        found = job_ids or [row[0] for row in director.catalog(_SUCCEEDED)]
        where = self.scene.directory / f"out{director.last_job_id()}"
        director.restore(self.base, where, select=f"jobid={','.join(map(str, found))}", options=options).must()
        return where

    def shipped(self) -> tuple[str, str]:
        """Return up to where WAL was shipped, and where to, as the receiver says it."""
        state = read_state(self.spool)
        return (state.shipped_lsn, state.ships_to) if state is not None else ("", "")

    def proved_at(self) -> float:
        """Return until when all commits have been received, in seconds of the epoch; 0 when that is not known."""
        proof = read_proof(self.spool)
        return proof.time_ns / 1e9 if proof is not None else 0.0

    def checked(self) -> dict[str, str]:
        """Return what ``pgkeep bacula check`` says of each test."""
        director = self.scene.director
        outcome = pgkeep_bacula(
            "check", director, f"--line={self.line}", f"--state-dir={director.directory / 'state'}", must=False
        )
        return {line.split()[1]: line.split()[0] for line in outcome.stdout.splitlines() if len(line.split()) > 2}

    def spooled(self) -> list[str]:
        """Return the names of the WAL files in the spool, sorted."""
        return sorted(path.name for path in self.spool.iterdir() if path.name[0] == "0")


def warnings(result: JobResult) -> list[str]:
    """Return what pgkeep warned of."""
    return [line.removeprefix("Warning: ") for line in result.told if line.startswith("Warning: ")]
