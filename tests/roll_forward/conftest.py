"""Fixtures of the tests of rolling forward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.server_user import server_directory


@pytest.fixture
def lab_directory() -> Iterator[Path]:
    """An empty directory, in memory where there is enough of it: chains are many small files, and a lot to remove."""
    with server_directory() as path:
        yield path
