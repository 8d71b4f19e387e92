"""Fixtures for tests of pgkeep.server: targets and servers of the lab's clusters."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgkeep.server.connection import ConnectionTarget, Server
from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user


def target_of(cluster: Cluster, **more: Any) -> ConnectionTarget:
    """Return the target of *cluster*; ``tcp=True`` for the address instead of the socket."""
    tcp = more.pop("tcp", False)
    arguments = cluster.connection_arguments(tcp=tcp) | more
    return ConnectionTarget(**arguments)


def turn_on_tls(cluster: Cluster) -> Path:
    """Give *cluster* a certificate for localhost that it signed itself, and restart it; return the certificate."""
    key, certificate = cluster.data_directory / "server.key", cluster.data_directory / "server.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    server_user().own(key)
    server_user().own(certificate)
    cluster.configure({"ssl": "on"})
    cluster.restart()
    return certificate


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
