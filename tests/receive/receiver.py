"""A pgkeep that receives, and what tells how far it has come."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import ClassVar

from tests.lab.cluster import Cluster, wait_for
from tests.lab.receiving import SETTINGS, wait_until_received
from tests.restore.keeper import Keeper, Outcome
from tests.survive.job import Job, Point

__all__ = ["SETTINGS", "SLOT", "HastyReceiver", "Receiver"]

SLOT = "pgkeep_main"


class Receiver(Job):
    """``pgkeep receive main`` under way."""

    def __init__(
        self, keeper: Keeper, *arguments: str | Path, at: Point | None = None, cluster: Cluster | None = None
    ) -> None:
        """Start it, from *cluster* or the keeper's own."""
        self.keeper = keeper
        self.spool = keeper.directory / "spool" / keeper.name
        place = [f"--spool-dir={self.spool.parent}", *keeper.server_options(cluster)]
        super().__init__(keeper, "receive", *place, *arguments, at=at)

    def __enter__(self) -> Receiver:
        return self

    @property
    def is_streaming(self) -> bool:
        """Whether it has said that the server streams."""
        return any(line.startswith("main: streaming from ") for line in self.lines)

    def wait_until_streaming(self) -> Receiver:
        """Wait until it has said that the server streams."""
        self.wait_for_line("main: streaming from ")
        return self

    def wait_until_flushed(self, cluster: Cluster | None = None, *, lsn: str = "") -> str:
        """Wait until the server knows that all of its WAL so far is durable here; return how far that is."""
        return wait_until_received(cluster or self.keeper.cluster, slot=SLOT, lsn=lsn, lines=self.lines)

    def wait_until_shipped(self, name: str) -> None:
        """Wait until the vault holds the file *name*."""
        found = self.keeper.vault / self.keeper.name / "wal"
        wait_for(lambda: any(found.rglob(f"{name}.zst")), f"{name} is shipped\n" + "\n".join(self.lines))

    def stop(self) -> Outcome:
        """End it in order; it must succeed."""
        self.send(signal.SIGTERM)
        outcome = self.end()
        assert outcome.status == 0, "\n".join(outcome.lines)
        return outcome

    def spooled(self) -> list[str]:
        """Return the names of the WAL files in the spool, sorted."""
        return sorted(path.name for path in self.spool.iterdir() if path.name[0] == "0")


class HastyReceiver(Receiver):
    """One whose watchdog is ten times as fast."""

    program: ClassVar[list[str | Path]] = [sys.executable, Path(__file__).with_name("hasty.py")]
