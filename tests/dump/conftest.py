"""Fixtures of the dump tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dump.parallel import make_large
from tests.dump.sample import WEIRD, digests, make_sample
from tests.lab.cluster import Cluster
from tests.lab.installation import Installation
from tests.lab.server_user import server_directory
from tests.lab.servers import newest_installation


@pytest.fixture(scope="session")
def bin_dir(installation: Installation) -> Path:
    """PostgreSQL's client programs for `major`: its own, or the newest where the installation is a server only."""
    return (installation if installation.has_client_programs else newest_installation()).bin_dir


@pytest.fixture(scope="session")
def sampled(installation: Installation) -> Iterator[Cluster]:
    """A running cluster with the sample in databases `app` and `we/ird "näme"`; tests leave those as they are."""
    with server_directory() as directory, Cluster.create(installation, directory / "data") as cluster:
        cluster.start()
        for dbname in ("app", WEIRD):
            make_sample(cluster, dbname)
        yield cluster


@pytest.fixture(scope="session")
def sample_digests(sampled: Cluster) -> dict[str, str]:
    """The digests of the sample."""
    found = digests(sampled, "app")
    assert len(found) == 10
    return found


@pytest.fixture(scope="session")
def large(installation: Installation) -> Iterator[Cluster]:
    """A running cluster with the tables of a parallel dump in database `large`; tests leave it as it is."""
    with server_directory() as directory, Cluster.create(installation, directory / "data") as cluster:
        cluster.start()
        make_large(cluster, "large")
        yield cluster


@pytest.fixture(scope="session")
def large_digests(large: Cluster) -> dict[str, str]:
    """The digests of what is in `large`."""
    return digests(large, "large")
