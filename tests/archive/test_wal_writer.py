"""The WAL of a backup goes into the archive in several threads, complete, in order, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.errors import ArchiveError
from pgkeep.pg.wal import WalSegment
from pgkeep.streams.item import Buffer
from pgkeep.vault.wal_writer import WalWriter
from tests.archive.made_wal import MIB, all_files, made_archive, segment_at, stored_path, wal_of
from tests.vault.made_items import MadeDetached, MadeStreamed, header_of

SIZE = 16 * MIB
WAL = {number: wal_of(segment_at(number, size=SIZE)) for number in range(3, 6)}


def path_of(number: int) -> str:
    """Return the virtual path of a segment."""
    return f"@postgresql/pitr_block/wal/{segment_at(number, size=SIZE).name}"


def streamed(number: int, *, chunk_bytes: int = 100_000) -> MadeStreamed:
    """Return a segment whose chunks all come in one buffer."""
    return MadeStreamed(header_of(path_of(number), SIZE), WAL[number], chunk_bytes)


class Detached(MadeDetached):
    """A segment that can be read at any time, but waits for *held* first; its first extent may be *broken*."""

    def __init__(self, number: int, held: threading.Event | None = None, broken: OSError | None = None) -> None:
        super().__init__(header_of(path_of(number), SIZE), WAL[number])
        self.held, self.broken = held, broken

    def read_extent(self, offset: int, length: int) -> Buffer:
        """Return a view, once there is nothing to wait for."""
        if self.held is not None:
            self.held.wait(180)
        if self.broken is not None:
            raise self.broken
        return super().read_extent(offset, length)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_segments_come_back(tmp_path: Path, workers: int) -> None:
    """Whatever the chunks are, what is read at once and what is read later comes back, and the tee had all of it."""
    archive, copied = made_archive(tmp_path / "vault", size=SIZE), bytearray()
    writer = WalWriter(archive, workers=workers, compression_level=1)
    writer.accept(streamed(3))
    writer.accept(Detached(4))
    writer.accept(streamed(5, chunk_bytes=7 * MIB), tee=copied.extend)
    writer.drain()
    writer.close()
    assert bytes(copied) == WAL[5]
    for number, content in WAL.items():
        assert b"".join(bytes(piece) for piece in archive.read(segment_at(number, size=SIZE).name)) == content


def test_no_segment_gets_its_name_before_the_one_before_it(tmp_path: Path) -> None:
    """A segment is complete while the one before it is read; when that cannot be read there is neither."""
    archive, held = made_archive(tmp_path / "vault", size=SIZE), threading.Event()
    writer = WalWriter(archive, workers=2, compression_level=1)
    writer.accept(Detached(3, held, OSError(5, "no such disk")))
    writer.accept(streamed(4))
    assert all_files(archive) == []
    held.set()
    with pytest.raises(OSError, match="no such disk"):
        writer.drain()
    with pytest.raises(OSError, match="no such disk"):
        writer.accept(streamed(5))
    writer.close()
    assert all_files(archive) == []


def test_what_the_archive_refuses_is_told_at_the_latest_at_the_end(tmp_path: Path) -> None:
    """The segments before the refused one are there, those after it are not."""
    archive = made_archive(tmp_path / "vault", size=SIZE)
    other = WalSegment.parse(segment_at(4, size=SIZE).name, size=SIZE)
    archive.put(other.name, [wal_of(other, seed=1)])
    writer = WalWriter(archive, workers=2, compression_level=1)

    def write() -> None:
        for number in WAL:
            writer.accept(streamed(number))
        writer.drain()

    with pytest.raises(ArchiveError, match="already holds 000000010000000000000004 with other content"):
        write()
    writer.close()
    held = [segment_at(number, size=SIZE).name for number in (3, 4)]
    assert all_files(archive) == [str(stored_path(archive, name).relative_to(archive.root)) for name in held]


def test_an_error_of_the_source_leaves_what_came_before(tmp_path: Path) -> None:
    """A source that breaks in the middle ends with its own error, and nothing waits for the rest."""

    class Broken(MadeStreamed):
        def chunks(self) -> Iterator[Buffer]:
            yield self.content[: 9 * MIB]
            raise ConnectionError("cut")

    archive = made_archive(tmp_path / "vault", size=SIZE)
    writer = WalWriter(archive, workers=2, compression_level=1)
    writer.accept(streamed(3))
    with pytest.raises(ConnectionError, match="cut"):
        writer.accept(Broken(header_of(path_of(4), SIZE), WAL[4]))
    writer.close()
    assert [path.rpartition("/")[2] for path in all_files(archive)] == [f"{segment_at(3, size=SIZE).name}.zst"]


def test_an_interruption_before_the_first_frame_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is interrupted when a thread waits for the first frame already can still close."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    archive = made_archive(tmp_path / "vault", size=SIZE)
    writer = WalWriter(archive, workers=1, compression_level=1)
    monkeypatch.setattr("pgkeep.vault.wal_writer._Frames.hand_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.accept(streamed(3))
    writer.close()
    assert all_files(archive) == []
