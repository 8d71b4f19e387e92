"""What a plan asks of the vault's earlier backups, and that it reads no more of them than it needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgkeep.streams.record import Level
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.history import VaultHistory
from pgkeep.vault.layout import MANIFEST_FILE
from tests.vault.made_items import ROOT, detached
from tests.vault.stories import store

IDS = [f"2026112{day}T100000Z-F" for day in range(9)]

_opened: list[list[str]] = []


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened and str(arguments[0]).endswith(MANIFEST_FILE):
        _opened[-1].append(Path(str(arguments[0])).parent.name)


sys.addaudithook(_watch)


@contextmanager
def records_read() -> Iterator[list[str]]:
    """Yield the ids of the backups whose records are read meanwhile."""
    _opened.append([])
    try:
        yield _opened[-1]
    finally:
        _opened.pop()


def test_a_plan_reads_the_records_that_it_asks_for(cluster: ClusterVault) -> None:
    """Among nine backups the newest is found by its own record, and a member of a chain by that member's."""
    for backup_id in IDS:
        store(cluster, [detached(f"{ROOT}/base/1", 100)], backup_id=backup_id)
    history = VaultHistory(cluster)
    with records_read() as read:
        newest = history.newest(mode="pitr", levels=frozenset({Level.FULL}))
    assert newest is not None
    assert (newest.head.backup_id, read) == (IDS[-1], [IDS[-1]])
    with records_read() as read:
        assert history.has(IDS[3])
    assert read == [IDS[3]]


def test_a_backup_that_cannot_be_read_is_none(cluster: ClusterVault) -> None:
    """The one before a damaged record is the newest; what is damaged, absent or no id at all is not there."""
    for backup_id in IDS[:3]:
        store(cluster, [detached(f"{ROOT}/base/1", 100)], backup_id=backup_id)
    record = cluster.backup_directory(IDS[2]) / MANIFEST_FILE
    record.write_bytes(b"\0" * 100)
    history = VaultHistory(cluster)
    newest = history.newest(mode="pitr", levels=frozenset({Level.FULL}))
    assert newest is not None
    assert newest.head.backup_id == IDS[1]
    found = [history.has(backup_id) for backup_id in (*IDS[:4], "../" + IDS[0], "")]
    assert found == [True, True, False, False, False, False]
