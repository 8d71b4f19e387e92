"""Fixtures for tests of pgkeep.server: targets and servers of the lab's clusters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pgkeep.server.connection import ConnectionTarget, Server
from tests.lab.cluster import Cluster


def target_of(cluster: Cluster, **more: Any) -> ConnectionTarget:
    """Return the target of *cluster*; ``tcp=True`` for the address instead of the socket."""
    tcp = more.pop("tcp", False)
    arguments = cluster.connection_arguments(tcp=tcp) | more
    return ConnectionTarget(**arguments)


@pytest.fixture
def server(cluster: Cluster) -> Iterator[Server]:
    """A session with the test's own cluster."""
    with Server.open(target_of(cluster)) as server:
        yield server


@pytest.fixture
def shared_server(shared_cluster: Cluster) -> Iterator[Server]:
    """A session with the cluster that many tests share."""
    with Server.open(target_of(shared_cluster)) as server:
        yield server
