"""Small stories about backups, told again and again by the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence

from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.streams.extents import ExtentPool, HasHeader
from pgkeep.streams.item import Buffer, UnchangedItem
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault
from tests.archive.made_wal import segment_at, wal_of
from tests.vault.made_items import FULL, MadeDetached, MadeStreamed, head_of

SYSTEM_IDENTIFIER = SystemIdentifier(7_300_000_000_000_000_001)

Made = MadeDetached | MadeStreamed


def store(
    cluster: ClusterVault,
    items: Sequence[Made | UnchangedItem],
    backup_id: str = FULL,
    *,
    workers: int = 2,
    head: RecordHead | None = None,
) -> RecordHead:
    """Write a backup of *items*; return its head as recorded."""
    with cluster.begin_backup(backup_id, workers=workers) as sink:
        for item in items:
            sink.accept(item)
        return sink.commit(head_of(backup_id) if head is None else head)[0]


class _Gathering:
    """Extent work that gathers contents."""

    def __init__(self) -> None:
        self.contents: dict[str, bytearray] = {}

    def begin(self, item: HasHeader, /) -> bytearray:
        """Make room."""
        return self.contents.setdefault(item.header.path, bytearray())

    def extent(self, state: bytearray, offset: int, buffer: Buffer, /) -> Buffer:
        """Pass it on."""
        return buffer

    def ordered(self, state: bytearray, result: Buffer, /) -> None:
        """Append."""
        state += result

    def end(self, state: bytearray, /) -> None:
        """Nothing is left to do."""


def fetch(cluster: ClusterVault, backup_id: str = FULL) -> dict[str, bytes]:
    """Return the contents of a backup by path, read by two threads."""
    work = _Gathering()
    with cluster.open_backup(backup_id) as backup, ExtentPool(2, work) as pool:
        for item in backup.items():
            pool.submit_detached(item)
        pool.drain()
    return {path: bytes(content) for path, content in work.contents.items()}


def archive_wal(cluster: ClusterVault, *numbers: int, timeline: int = 1) -> list[str]:
    """Put made segments into the cluster's WAL archive; return their names."""
    names = []
    for number in numbers:
        segment = segment_at(number, timeline=timeline)
        cluster.archive.put(segment.name, [wal_of(segment, system=SYSTEM_IDENTIFIER)])
        names.append(segment.name)
    return names
