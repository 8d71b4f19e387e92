"""Fixtures of the tests with a real Bacula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.bacula.scene import Scene, install_plugin
from tests.lab.bacula import Director
from tests.lab.cluster import Cluster, MakeCluster

MakeDirector = Callable[..., Director]
"""What the fixture `make_director` returns."""

MakeScene = Callable[..., Scene]
"""What the fixture `make_scene` returns."""


@pytest.fixture
def make_director(lab_directory: Path) -> Iterator[MakeDirector]:
    """Return a function that makes and starts a `Director` with its daemons; all end with the test."""
    with ExitStack() as stack:

        def make(
            name: str = "bacula", *, has_plugin: bool = False, config: dict[str, str] | None = None, **arguments: Any
        ) -> Director:
            director = stack.enter_context(Director(lab_directory / name, **arguments))
            if has_plugin:
                install_plugin(director, config)
            return director.start()

        yield make


@pytest.fixture
def director(make_director: MakeDirector) -> Director:
    """A Director of the test's own, with TLS and CommCompression as by default; its daemon has no plugin."""
    return make_director()


@pytest.fixture
def make_scene(lab_directory: Path, make_cluster: MakeCluster, make_director: MakeDirector) -> Iterator[MakeScene]:
    """
    Return a function that makes a cluster and a Director with the plugin: ``make_scene(major=15)``.

    ``cluster`` takes the place of a new one, ``settings`` are the server's, the rest is `Director`'s.
    """
    with ExitStack() as stack:

        def make(
            *,
            major: int = 18,
            cluster: Cluster | None = None,
            settings: dict[str, str] | None = None,
            config: dict[str, str] | None = None,
            **arguments: Any,
        ) -> Scene:
            # Every job makes a checkpoint: without this the server recycles WAL that the next one needs, which fails.
            kept = {"wal_keep_size": "512MB"} if major >= 13 else {"wal_keep_segments": "32"}
            cluster = cluster or make_cluster(major=major, settings=kept | (settings or {}))
            more = {"bin_dir": str(cluster.installation.bin_dir), **(config or {})}
            director = make_director(has_plugin=True, config=more, **arguments)
            scene = Scene(lab_directory, cluster, director)
            stack.callback(scene.close)
            return scene

        yield make


@pytest.fixture
def scene(make_scene: MakeScene, request: pytest.FixtureRequest) -> Scene:
    """A cluster of the test's major, or 18, and a Director."""
    major = request.getfixturevalue("major") if "major" in request.fixturenames else 18
    return make_scene(major=major)
