"""A drill as its users run it, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.lab.cluster import Cluster
from tests.restore.keeper import Keeper, Outcome
from tests.survive.job import Job, Point


def arguments(keeper: Keeper, *more: str | Path, scratch: Path | None = None) -> list[str | Path]:
    """Return the arguments of a drill of *keeper*."""
    place = scratch or keeper.directory / "scratch"
    return [f"--scratch-dir={place}", f"--bin-dir={keeper.cluster.installation.bin_dir}", *more]


def drill(keeper: Keeper, *more: str | Path, scratch: Path | None = None) -> Outcome:
    """Run a drill to its end."""
    return keeper.run("drill", "--json", *arguments(keeper, *more, scratch=scratch))


def proved(keeper: Keeper, *more: str | Path, scratch: Path | None = None) -> dict[str, Any]:
    """Run a drill that must succeed and leave an empty scratch directory; return its report."""
    outcome = drill(keeper, *more, scratch=scratch)
    assert outcome.status == 0, "\n".join(outcome.lines)
    assert list((scratch or keeper.directory / "scratch").iterdir()) == []
    return outcome.report


def job(keeper: Keeper, *more: str | Path, at: Point | None = None) -> Job:
    """Start a drill, to be stopped or killed at a point."""
    return Job(keeper, "drill", *arguments(keeper, *more), at=at)


def evidence(keeper: Keeper) -> list[dict[str, Any]]:
    """Return what the vault keeps of drills, oldest first."""
    places = sorted((keeper.vault / keeper.name / "proofs").glob("*.json"))
    return [json.loads(place.read_text()) for place in places]


def life_of(cluster: Cluster) -> object:
    """Return by what the live server's life is told from any other, and what it is to other servers."""
    [row] = cluster.sql(
        "SELECT pg_postmaster_start_time(), timeline_id, (SELECT count(*) FROM pg_replication_slots), "
        "(SELECT failed_count FROM pg_stat_archiver) FROM pg_control_checkpoint()"
    )
    return row
