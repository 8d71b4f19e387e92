"""Fixtures of the tests with a real Bacula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.bacula import Director

MakeDirector = Callable[..., Director]
"""What the fixture `make_director` returns."""


@pytest.fixture
def make_director(lab_directory: Path) -> Iterator[MakeDirector]:
    """Return a function that makes and starts a `Director` with its daemons; all end with the test."""
    with ExitStack() as stack:

        def make(name: str = "bacula", **arguments: Any) -> Director:
            return stack.enter_context(Director(lab_directory / name, **arguments)).start()

        yield make


@pytest.fixture
def director(make_director: MakeDirector) -> Director:
    """A Director of the test's own, with TLS and CommCompression as by default."""
    return make_director()
