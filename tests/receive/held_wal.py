"""What a receiver holds, byte by byte beside what the server wrote."""

from __future__ import annotations

from pathlib import Path

from pgkeep.pg.lsn import Lsn, SystemIdentifier
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment, is_partial_name, is_segment_name
from pgkeep.vault.wal_archive import WalArchive
from tests.lab.cluster import Cluster
from tests.receive.receiver import SLOT
from tests.restore.keeper import Keeper

SEGMENT = 1 << 20


def acknowledged(cluster: Cluster) -> Lsn:
    """Return up to where the server knows that its WAL is durable at the receiver; 0/0 when it has none now."""
    rows = cluster.sql("SELECT flush_lsn FROM pg_stat_replication WHERE application_name = %s", [SLOT])
    return Lsn.parse(str(rows[0][0])) if rows and rows[0][0] is not None else Lsn(0)


class HeldWal:
    """
    The WAL of one cluster with segments of 1 MiB and one timeline, in spool and vault.

    Args:
        keeper: Whose.
        archive: A directory to which the server itself copies each segment.
    """

    def __init__(self, keeper: Keeper, archive: Path) -> None:
        self._spool = keeper.directory / "spool" / keeper.name
        self._pg_wal = keeper.cluster.data_directory / "pg_wal"
        self._archive = archive
        system = int(keeper.cluster.value("SELECT system_identifier FROM pg_control_system()"))
        self._vault = WalArchive(
            keeper.vault / keeper.name / "wal", system_identifier=SystemIdentifier(system), segment_size=SEGMENT
        )

    def check_spool(self, upto: Lsn) -> None:
        """Assert that all before *upto* is held, and that what the spool has of it is what the server wrote."""
        names = sorted(path.name for path in self._spool.iterdir() if path.name[0] == "0")
        segments = [WalSegment.parse(name.removesuffix(PARTIAL_SUFFIX), size=SEGMENT) for name in names]
        numbers = [segment.number for segment in segments]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), names
        assert segments[0].start_lsn <= upto <= segments[-1].end_lsn, (names, upto)
        for name, segment in zip(names, segments, strict=True):
            mine = (self._spool / name).read_bytes()[: max(0, upto - segment.start_lsn)]
            assert mine == self._written(segment.name)[: len(mine)], f"{name} differs before {upto}"
            if segment.end_lsn <= upto or name == names[-1]:
                assert len(mine) == min(SEGMENT, max(0, upto - segment.start_lsn)), f"{name} is short of {upto}"

    def check_vault(self, *, last: str) -> int:
        """Assert that the vault has each segment once, up to *last*, as the server wrote it; return how many."""
        stored = sorted(path.name.removesuffix(".zst") for path in self._vault.root.rglob("*.zst"))
        whole = [name for name in stored if is_segment_name(name)]
        assert len(stored) == len(set(stored))
        # A partial segment is superseded by its whole one.
        assert [name for name in stored if is_partial_name(name) and name.removesuffix(PARTIAL_SUFFIX) in whole] == []
        assert last in whole
        numbers = [WalSegment.parse(name, size=SEGMENT).number for name in whole]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), whole
        for name in whole:
            assert b"".join(self._vault.read(name)) == self._written(name), f"{name} differs"
        return len(whole)

    def _written(self, name: str) -> bytes:
        """Return what the server wrote into a segment; it recycles none that it has not copied."""
        try:
            return (self._pg_wal / name).read_bytes()
        except FileNotFoundError:
            return (self._archive / name).read_bytes()
