"""The plugin in a daemon that is not Bacula's: under sanitizers, and under valgrind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bridge.fake_daemon import FakeDaemon, build

VALGRIND = (
    "valgrind",
    "--quiet",
    "--error-exitcode=99",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite,possible",
    "--child-silent-after-fork=yes",
    "--trace-children=no",
)
MakeDaemon = Callable[..., FakeDaemon]


@pytest.fixture(scope="session", params=["sanitizers", "valgrind"])
def care(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The plugin and the daemon, built for the sanitizers or for valgrind."""
    if request.param == "valgrind" and not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    directory = tmp_path_factory.mktemp(request.param)
    return (*build(directory, sanitized=request.param == "sanitizers"), request.param)


@pytest.fixture
def make_daemon(care: tuple[Path, Path, str], tmp_path: Path) -> Iterator[MakeDaemon]:
    """Start daemons, and look that each leaves nothing behind."""
    plugin, program, kind = care
    daemons: list[FakeDaemon] = []

    def make(interface: int | None = None) -> FakeDaemon:
        directory = tmp_path / f"daemon-{len(daemons)}"
        directory.mkdir()
        prefix = VALGRIND if kind == "valgrind" else ()
        daemons.append(FakeDaemon(directory, plugin, program, prefix=prefix, interface=interface))
        return daemons[-1]

    try:
        yield make
        for daemon in daemons:
            daemon.close()
    finally:
        for daemon in daemons:
            daemon.kill()


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> FakeDaemon:
    """A daemon with a new job."""
    return make_daemon()
