"""Fixtures of the restore tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cluster import Cluster, MakeCluster
from tests.restore.keeper import Keeper

MakeKeeper = Callable[..., Keeper]


@pytest.fixture
def make_keeper(lab_directory: Path, make_cluster: MakeCluster) -> Iterator[MakeKeeper]:
    """
    Return a function that makes a running cluster and a vault for it: ``make_keeper(archive="vault")``.

    It takes ``archive`` (``off``, ``vault`` for archive-push, ``directory`` for plain cp), and what `make_cluster`
    takes. Servers that were restored are stopped when the test ends.
    """
    with ExitStack() as stack:

        def make(
            name: str = "data", *, archive: str = "off", settings: dict[str, str] | None = None, **more: Any
        ) -> Keeper:
            # A restored server must not look for a directory of the distribution's.
            own = {"unix_socket_directories": str(lab_directory)} | (settings or {})
            cluster: Cluster = make_cluster("data", settings=own, start=False, **more)
            keeper = Keeper(lab_directory, cluster)
            stack.callback(keeper.stop_restored)
            if archive == "directory":
                cluster.archive_to(lab_directory / "archive")
            elif archive == "vault":
                cluster.configure({"archive_mode": "on", "archive_command": keeper.archive_command()})
            cluster.start()
            keeper.init()
            return keeper

        yield make


@pytest.fixture
def keeper(make_keeper: MakeKeeper) -> Keeper:
    """A running cluster of `major`, or of the newest one where the test does not ask for it, and a vault for it."""
    return make_keeper()
