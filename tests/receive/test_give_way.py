"""Shipping lets receiving go first, but not for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.jobs.receiving import ship
from pgkeep.jobs.receiving.ship import Shipper
from pgkeep.spool.directory import Spool
from pgkeep.vault.wal_archive import WalArchive
from tests.receive.small_spool import QUIET, SEGMENT, small_archive, small_spool


class Noting(Shipper):
    """Notes how often it was asked whether receiving is behind before it shipped; then it is to end."""

    def __init__(self, spool: Spool, archive: WalArchive, answers: Iterator[bool]) -> None:
        self.asked = 0
        self.shipped_after: list[int] = []
        self.stop = threading.Event()
        self._answers = answers
        super().__init__(spool, archive, lambda: None, is_behind=self._ask, **QUIET)

    def _ask(self) -> bool:
        self.asked += 1
        return next(self._answers, True)

    def ship(self, *, with_partial: bool) -> None:
        """Note it."""
        self.shipped_after.append(self.asked)
        self.stop.set()
        self.wake()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool."""
    with small_spool(tmp_path) as made:
        yield made


def run(spool: Spool, tmp_path: Path, *answers: bool) -> list[int]:
    """Run a shipper to its end; return after how many questions it has shipped."""
    shipper = Noting(spool, small_archive(tmp_path), iter(answers))
    thread = threading.Thread(target=shipper.run, args=(shipper.stop,), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return shipper.shipped_after


def test_it_waits_until_receiving_has_caught_up(spool: Spool, tmp_path: Path) -> None:
    """Nothing is shipped while receiving is behind, and at once when it is not."""
    assert run(spool, tmp_path, True, True, False) == [3]
    assert run(spool, tmp_path, False) == [1]


def test_it_does_not_wait_for_ever(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a server that is always ahead it ships all the same, and with a spool that is half full at once."""
    monkeypatch.setattr(ship, "_LONGEST_WAY_SECONDS", 0.3)
    assert run(spool, tmp_path) != []
    monkeypatch.setattr(ship, "_LONGEST_WAY_SECONDS", 3600.0)
    (spool.path / "room").write_bytes(bytes(4 * SEGMENT))
    assert run(spool, tmp_path) == [1]
