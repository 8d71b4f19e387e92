"""WAL on its way from the process of one Plugin line to that of another: late, waiting for days, or not wanted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.errors import BackupUnusable
from pgkeep.jobs.restoring.private_wal import PrivateWal
from pgkeep.jobs.streamed import beside as beside_module
from pgkeep.jobs.streamed.beside import DIRECTORY, WalBeside
from pgkeep.streams.item import Buffer, ItemHeader, StreamedItem

ROOT = "@postgresql/cdp"
NAME = "000000010000000000000005"
THREE_DAYS_AGO = time.time() - 3 * 86_400


class Arriving:
    """A file of the stream."""

    owner = (0, 0)

    def __init__(self, name: str = NAME) -> None:
        self.header = ItemHeader(path=f"{ROOT}/wal/{name}", size=3)
        self.is_wanted = True

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content."""
        yield b"abc"

    def skip(self) -> None:
        """Take note that nobody wants it."""
        self.is_wanted = False


class Taken(PrivateWal):
    """Where the WAL of a restore goes, without a look at what it is."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []

    def take(self, item: StreamedItem) -> tuple[int, str]:
        content = b"".join(map(bytes, item.chunks()))
        self.taken.append((item.header.path, content))
        return len(content), ""


def beside(directory: Path, restore: str = "7") -> WalBeside:
    """Return one end of the way."""
    return WalBeside(directory, restore=restore, cluster="@postgresql")


def test_a_file_that_comes_last_is_waited_for(tmp_path: Path) -> None:
    """The daemon says that all has come while the last file is still on its way from one process to its place."""
    there, here = beside(tmp_path), beside(tmp_path)
    there.begin()
    here.begin()
    late = threading.Thread(target=there.keep, args=([Arriving()],), kwargs={"root": ROOT})
    wal = Taken()

    def expected() -> Iterator[str]:
        yield NAME
        late.start()

    assert here.hand_over(expected(), wal) == 1
    late.join()
    assert wal.taken == [(f"wal/{NAME}", b"abc")]
    # The room is free again, file by file.
    assert list(here.directory.iterdir()) == []


def test_what_will_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the WAL's line has given up, its files are missed at once, and those that came before are no use."""
    monkeypatch.setattr(beside_module, "_LATE_SECONDS", 1e9)
    there, here = beside(tmp_path), beside(tmp_path)
    there.begin()
    here.begin()
    there.keep([Arriving()], root=ROOT)
    there.give_up()
    with pytest.raises(BackupUnusable, match=r"did not arrive: x; the Plugin line that takes them has given up"):
        here.hand_over([NAME, "x"], Taken())
    here.end()
    assert [path.suffix for path in (tmp_path / DIRECTORY).iterdir()] == [".over"]
    # It would be a mark for nobody.
    there.give_up()
    assert [path.suffix for path in (tmp_path / DIRECTORY).iterdir()] == [".over"]


def test_what_a_restore_waits_with_for_days_stays(tmp_path: Path) -> None:
    """A restore that waits for a volume keeps its WAL, however long; what nobody holds any more goes after two days."""
    waiting, dead = beside(tmp_path, "7"), beside(tmp_path, "6")
    for one in (waiting, dead):
        one.begin()
        one.keep([Arriving()], root=ROOT)
        os.utime(one.directory, (THREE_DAYS_AGO, THREE_DAYS_AGO))
    dead.let_go()
    new = beside(tmp_path, "8")
    new.begin()
    assert sorted((tmp_path / DIRECTORY).iterdir()) == sorted([waiting.directory, new.directory])
    assert (waiting.directory / NAME).read_bytes() == b"abc"


def test_nothing_is_kept_for_a_restore_that_was_refused_before(tmp_path: Path) -> None:
    """The base backup's line may be refused before the WAL's line has begun: its WAL would lie there for nobody."""
    beside(tmp_path).end()
    there, item = beside(tmp_path), Arriving()
    there.begin()
    assert there.keep([item], root=ROOT) == 0
    assert not item.is_wanted
    assert not there.directory.exists()
