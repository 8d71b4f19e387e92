"""Fixtures of the archive's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive.client import Client, build_client
from tests.archive.made_wal import SYSTEM, made_archive


@pytest.fixture(scope="session")
def client_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, built with warnings as errors."""
    return build_client(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def client(tmp_path: Path, client_program: Path) -> Iterator[Client]:
    """A client in a data directory of its own, over an empty archive; its services are killed at the end."""
    data = tmp_path / "pgdata"
    (data / "pg_wal" / "archive_status").mkdir(parents=True)
    (data / "global").mkdir()
    (data / "global" / "pg_control").write_bytes(int(SYSTEM).to_bytes(8, "little"))
    made = Client(client_program, data, tmp_path / "run", made_archive(tmp_path / "vault"))
    yield made
    made.kill_services()
