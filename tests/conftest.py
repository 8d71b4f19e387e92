"""Fixtures of the test lab, for every test folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.cluster import Cluster, MakeCluster
from tests.lab.installation import Installation
from tests.lab.server_user import ServerUser, server_directory
from tests.lab.server_user import server_user as current_server_user
from tests.lab.servers import DEFAULT_MAJORS, MAJORS, fits
from tests.lab.servers import installation as find_installation

# A busy machine is no reason to fail; a failure elsewhere must be possible to repeat here. What judges a change takes
# the same examples each time, so that it judges that change; people's runs look for new ones.
settings.register_profile("pgkeep", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("pgkeep-ci", settings.get_profile("pgkeep"), derandomize=True, database=None)
settings.load_profile("pgkeep-ci" if os.environ.get("CI") else "pgkeep")


# A shell has what it starts with & ignore SIGINT, and every program below would, which tests end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What pytest marks a test with that was to run once for each of no values.
_NO_MAJOR = "got empty parameter set"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --majors."""
    parser.addoption(
        "--majors",
        default=",".join(map(str, DEFAULT_MAJORS)),
        help="PostgreSQL majors for tests that ask for `major`: 15,18 or all; default: %(default)s",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `major`, itself or through a fixture, once per chosen major that its marker allows."""
    if "major" not in metafunc.fixturenames:
        return
    majors = [
        major
        for major in _chosen_majors(metafunc.config)
        if all(fits(major, mark.args[0]) for mark in metafunc.definition.iter_markers("pg"))
    ]
    metafunc.parametrize("major", majors, ids=[f"pg{major}" for major in majors], scope="session", indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that differ by major, so that ``-m majors`` runs them alone; leave out those for other majors."""
    others: list[pytest.Item] = []
    for item in list(items):
        if "major" in getattr(item, "fixturenames", ()):
            item.add_marker("majors")
            if any(mark.kwargs.get("reason", "").startswith(_NO_MAJOR) for mark in item.iter_markers("skip")):
                others.append(item)
                items.remove(item)
    if others:
        config.hook.pytest_deselected(items=others)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail what is skipped where a change is judged: what a test needs must be there."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped where CI is set: {reason}"
    return report


def _chosen_majors(config: pytest.Config) -> list[int]:
    text: str = config.getoption("--majors")
    chosen = set(MAJORS) if text == "all" else {int(word) for word in text.split(",")}
    if not chosen <= set(MAJORS):
        raise pytest.UsageError(f"--majors: expected some of {MAJORS}, found {text}")
    return sorted(chosen)


@pytest.fixture(scope="session")
def major(request: pytest.FixtureRequest) -> int:
    """A PostgreSQL major; the test runs once for each that was chosen."""
    return int(request.param)


@pytest.fixture(scope="session")
def installation(major: int) -> Installation:
    """The programs of `major`."""
    return find_installation(major)


@pytest.fixture(scope="session")
def server_user() -> ServerUser:
    """The account that test servers run under."""
    return current_server_user()


@pytest.fixture
def lab_directory() -> Iterator[Path]:
    """An empty directory that belongs to the server's account; its path is short, and it goes when the test ends."""
    with server_directory() as path:
        yield path


@pytest.fixture
def make_cluster(lab_directory: Path, request: pytest.FixtureRequest) -> Iterator[MakeCluster]:
    """
    Return a function that makes a cluster and starts it: ``make_cluster("main", settings={...})``.

    It takes the name of the data directory beneath `lab_directory`, ``major`` (default: the test's own, or 18),
    ``start``, and what `Cluster.create` takes. All of them are gone when the test ends.
    """
    with ExitStack() as stack:

        def make(name: str = "data", *, major: int | None = None, start: bool = True, **arguments: Any) -> Cluster:
            if major is None:
                major = request.getfixturevalue("major") if "major" in request.fixturenames else MAJORS[-1]
            cluster = Cluster.create(find_installation(major), lab_directory / name, **arguments)
            stack.enter_context(cluster)
            return cluster.start() if start else cluster

        yield make


@pytest.fixture
def run_cluster(lab_directory: Path) -> Iterator[Callable[[Cluster], Cluster]]:
    """Return a function that takes charge of a `Cluster` made by the test itself, so that it ends with the test."""
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def cluster(major: int, make_cluster: MakeCluster) -> Cluster:
    """A new running cluster of `major`, the test's own."""
    return make_cluster()


@pytest.fixture(scope="session")
def shared_cluster(installation: Installation) -> Iterator[Cluster]:
    """A running cluster of `major` that many tests use: leave it as it was, apart from databases of your own."""
    with server_directory() as directory, Cluster.create(installation, directory / "data") as cluster:
        yield cluster.start()
