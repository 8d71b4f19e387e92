"""A vault with one cluster, in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.vault.cluster_vault import ClusterIdentity, ClusterVault
from pgkeep.vault.vault import Vault
from tests.vault.stories import SYSTEM_IDENTIFIER


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """Return an empty vault."""
    return Vault.create(tmp_path / "vault")


@pytest.fixture
def cluster(vault: Vault) -> Iterator[ClusterVault]:
    """Yield the empty cluster ``main``, with WAL segments of 1 MiB."""
    identity = ClusterIdentity(system_identifier=str(SYSTEM_IDENTIFIER), major=18, wal_segment_size=1 << 20)
    with vault.create_cluster("main", identity) as made:
        yield made
