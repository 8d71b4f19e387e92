"""The WAL archive: what goes in, what comes out, and every way to hurt it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgkeep.errors import ArchiveError, VaultError
from pgkeep.pg.lsn import SystemIdentifier, Timeline
from pgkeep.vault.unnamed_file import UnnamedFile
from pgkeep.vault.wal_archive import Put, WalArchive
from tests.archive.made_wal import MIB, SYSTEM, all_files, made_archive, segment_at, stored_path, wal_of

HISTORY = b"1\t0/3000000\tno recovery target specified\n"


@pytest.fixture
def archive(tmp_path: Path) -> WalArchive:
    """An empty archive for segments of 1 MiB."""
    return made_archive(tmp_path / "vault")


@pytest.mark.parametrize("size", [MIB, 16 * MIB, 64 * MIB])
def test_segment_comes_back_byte_for_byte(tmp_path: Path, size: int) -> None:
    """A segment of any size is delivered as it was put."""
    archive = made_archive(tmp_path / "vault", size=size)
    segment = segment_at(3, size=size)
    content = wal_of(segment)
    assert archive.put(segment.name, [content]) is Put.STORED
    assert archive.get(segment.name, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize(
    "name", ["00000002.history", "000000010000000000000003.00000028.backup", "00000001000000000000000A.partial"]
)
def test_every_kind_of_file_comes_back(archive: WalArchive, tmp_path: Path, name: str) -> None:
    """History files, backup history files and partial segments are delivered as they were put."""
    content = wal_of(segment_at(10)) if name.endswith(".partial") else HISTORY
    archive.put(name, [content])
    assert archive.get(name, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_stock_zstd_reads_a_stored_segment(archive: WalArchive) -> None:
    """The zstd program alone gives back the segment."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    run = subprocess.run(["zstd", "-dc", stored_path(archive, segment.name)], capture_output=True, check=True)
    assert run.stdout == wal_of(segment)


def test_buffers_of_any_size_make_the_same_segment(archive: WalArchive, tmp_path: Path) -> None:
    """How the content is cut on its way in does not matter."""
    segment = segment_at(3)
    content = wal_of(segment)
    archive.put(segment.name, (content[start : start + 12_345] for start in range(0, len(content), 12_345)))
    archive.get(segment.name, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_absent_file_is_not_delivered(archive: WalArchive, tmp_path: Path) -> None:
    """A name that is proved absent gives False and no file."""
    assert not archive.get(segment_at(3).name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_same_content_again_is_success(archive: WalArchive) -> None:
    """The same name with the same content is held already."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    assert archive.put(segment.name, [wal_of(segment)], compression_level=9) is Put.ALREADY_HELD
    assert archive.holds(segment.name, [wal_of(segment)])


def test_other_content_is_refused_and_changes_nothing(archive: WalArchive) -> None:
    """The same name with other content is an error, and the archive keeps what it had."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    before = stored_path(archive, segment.name).read_bytes()
    with pytest.raises(ArchiveError) as caught:
        archive.put(segment.name, [wal_of(segment, seed=1)])
    assert caught.value.message == f"the archive already holds {segment.name} with other content"
    assert stored_path(archive, segment.name).read_bytes() == before
    assert not archive.holds(segment.name, [wal_of(segment, seed=1)])


def test_other_history_of_the_same_timeline_is_refused(archive: WalArchive) -> None:
    """Two promotions that chose the same timeline do not overwrite each other's history."""
    archive.put("00000002.history", [HISTORY])
    with pytest.raises(ArchiveError, match=r"^the archive already holds 00000002\.history with other content$"):
        archive.put("00000002.history", [b"1\t0/4000000\tno recovery target specified\n"])
    assert archive.history(Timeline(2)) == HISTORY
    assert archive.history(Timeline(3)) is None


def test_damaged_copy_is_replaced_by_the_true_one(archive: WalArchive, tmp_path: Path) -> None:
    """When the held copy is broken, the segment that the server still has takes its place."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    _flip(stored_path(archive, segment.name), 5000)
    assert not archive.holds(segment.name, [wal_of(segment)])
    assert archive.put(segment.name, [wal_of(segment)]) is Put.REPLACED_DAMAGED
    archive.verify(segment.name)


REFUSED = [
    (
        "foreign system identifier",
        lambda s: (s.name, wal_of(s, system=42)),
        "WAL segment 000000010000000000000003 belongs to system identifier 42, not to 7312345678901234567",
    ),
    (
        "wrong segment in the wrong name",
        lambda s: (s.name, wal_of(s.next())),
        "WAL segment 000000010000000000000003 starts at 0/00400000, not at 0/00300000",
    ),
    (
        "later timeline under an older name",
        lambda s: (s.name, wal_of(s, page_timeline=2)),
        "WAL segment 000000010000000000000003 carries pages of the later timeline 2",
    ),
    (
        "other segment size",
        lambda s: (s.name, wal_of(segment_at(3, size=2 * MIB))),
        "WAL segment 000000010000000000000003 has segments of 2097152 bytes, not 1048576",
    ),
    (
        "truncated",
        lambda s: (s.name, wal_of(s)[:-1]),
        "000000010000000000000003 has 1048575 bytes, not 1048576",
    ),
    (
        "too long",
        lambda s: (s.name, wal_of(s) + b"x"),
        "000000010000000000000003 has more than the expected 1048576 bytes",
    ),
    ("header cut short", lambda s: (s.name, wal_of(s)[:20]), "WAL header needs 40 bytes, found 20"),
    ("empty", lambda s: (s.name, b""), "000000010000000000000003 has 0 bytes, not 1048576"),
    ("empty history", lambda s: ("00000002.history", b""), "00000002.history is empty"),
    (
        "not WAL at all",
        lambda s: (s.name, b"x" * MIB),
        "not a WAL segment of PostgreSQL 12 to 18: page magic is 7878",
    ),
    ("no name of the archive", lambda s: ("../../etc/passwd", b"x"), 'not a file of a WAL archive: "../../etc/passwd"'),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_not_this_clusters_wal_is_refused(
    archive: WalArchive, make: Callable[..., tuple[str, bytes]], message: str
) -> None:
    """Content that is not what its name says is refused, and leaves nothing behind."""
    name, content = make(segment_at(3))
    with pytest.raises(ArchiveError) as caught:
        archive.put(name, [content] if content else [])
    assert caught.value.message == message
    assert all_files(archive) == []


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "flipped bit in the seal",
        lambda p: _flip(p, p.stat().st_size - 1),
        "is damaged: its bytes do not give the BLAKE3",
    ),
    ("flipped bit in the seal's tag", lambda p: _flip(p, p.stat().st_size - 35), "does not end in a seal"),
    ("flipped bit in a frame", lambda p: _flip(p, p.stat().st_size // 2), "is damaged: "),
    ("flipped bit in the first byte", lambda p: _flip(p, 0), "is damaged: "),
    ("truncated", _truncate, "does not end in a seal"),
    ("empty", lambda p: os.truncate(p, 0), "does not end in a seal"),
]


@pytest.mark.parametrize(("hurt", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_damaged_segment_is_never_delivered(
    archive: WalArchive, tmp_path: Path, hurt: Callable[[Path], None], message: str
) -> None:
    """A stored segment with any damage is an error that names it, and the target stays as it was."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    archive.verify(segment.name)
    hurt(stored_path(archive, segment.name))
    target = tmp_path / "out"
    target.write_bytes(b"what was there")
    with pytest.raises(ArchiveError) as caught:
        archive.get(segment.name, target)
    assert caught.value.message.startswith(
        f"the archive's copy of {segment.name} cannot be used: {segment.name} {message}"
    )
    assert target.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "vault"]


def test_any_flipped_bit_of_a_small_file_is_found(archive: WalArchive, tmp_path: Path) -> None:
    """Whichever byte of a stored file is hurt, it is not delivered."""
    archive.put("00000002.history", [HISTORY])
    path = stored_path(archive, "00000002.history")
    whole = path.read_bytes()
    for offset in range(len(whole)):
        _flip(path, offset)
        with pytest.raises(ArchiveError):
            archive.get("00000002.history", tmp_path / "out")
        path.write_bytes(whole)
    assert archive.get("00000002.history", tmp_path / "out")


def test_segment_planted_under_another_name_is_not_delivered(archive: WalArchive, tmp_path: Path) -> None:
    """A sealed file that was renamed by hand is refused by its content."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    shutil.copy(stored_path(archive, segment.name), stored_path(archive, segment.next().name))
    with pytest.raises(ArchiveError) as caught:
        archive.get(segment.next().name, tmp_path / "out")
    assert caught.value.message == "WAL segment 000000010000000000000004 starts at 0/00300000, not at 0/00400000"


def test_archive_of_another_cluster_delivers_nothing(archive: WalArchive, tmp_path: Path) -> None:
    """An archive opened for the wrong cluster refuses on the way out too."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    other = WalArchive(archive.root, system_identifier=SystemIdentifier(42), segment_size=MIB)
    with pytest.raises(ArchiveError, match=f"belongs to system identifier {SYSTEM}, not to 42"):
        other.get(segment.name, tmp_path / "out")


GONE: list[tuple[str, Callable[[WalArchive], None], str]] = [
    ("vault not mounted", lambda a: a.root.parent.rename(a.root.parent.parent / "away"), "No such file or directory"),
    ("cluster.json missing", lambda a: (a.root.parent / "cluster.json").unlink(), "No such file or directory"),
    ("wal directory missing", lambda a: a.root.rename(a.root.parent / "away"), "No such file or directory"),
    ("wal is a file", lambda a: (a.root.rename(a.root.parent / "away"), a.root.touch()), "Not a directory"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("hurt", "reason"), [row[1:] for row in GONE], ids=[row[0] for row in GONE])
def test_vault_that_is_not_there_is_never_absence(
    archive: WalArchive, tmp_path: Path, hurt: Callable[[WalArchive], None], reason: str
) -> None:
    """Where the vault is gone, get, has and put raise, and put makes no directories in its place."""
    hurt(archive)
    segment = segment_at(3)
    for attempt in (
        lambda: archive.get(segment.name, tmp_path / "out"),
        lambda: archive.has(segment.name),
        lambda: archive.put(segment.name, [wal_of(segment)]),
    ):
        with pytest.raises(VaultError) as caught:
            attempt()
        assert caught.value.message == f"no WAL archive at {archive.root}: {reason}"
    assert not list(archive.root.parent.glob("wal/*"))


def test_directory_in_place_of_a_timeline_is_an_error(archive: WalArchive, tmp_path: Path) -> None:
    """A name that cannot be looked up is not proved absent."""
    (archive.root / "00000001").touch()
    with pytest.raises(VaultError) as caught:
        archive.get(segment_at(3).name, tmp_path / "out")
    assert caught.value.message == f"cannot read {segment_at(3).name} in {archive.root}: Not a directory"


def test_target_that_cannot_be_written_is_an_error(archive: WalArchive, tmp_path: Path) -> None:
    """A target directory that is not there is an error, not absence."""
    segment = segment_at(3)
    archive.put(segment.name, [wal_of(segment)])
    target = tmp_path / "nowhere" / "out"
    with pytest.raises(ArchiveError) as caught:
        archive.get(segment.name, target)
    assert caught.value.message == f"cannot deliver {segment.name} at {target}: No such file or directory"


def test_error_of_the_source_passes_through_and_leaves_nothing(archive: WalArchive) -> None:
    """A source that breaks in the middle leaves no file and its own error."""

    def broken() -> Iterator[bytes]:
        yield wal_of(segment_at(3))[:700_000]
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError, match="cut"):
        archive.put(segment_at(3).name, broken())
    assert all_files(archive) == []


class TestPartial:
    def test_longer_partial_replaces_a_shorter_one(self, archive: WalArchive, tmp_path: Path) -> None:
        """A partial segment grows."""
        segment = segment_at(3)
        name = f"{segment.name}.partial"
        assert archive.put(name, [wal_of(segment, used=10_000)]) is Put.STORED
        assert archive.put(name, [wal_of(segment, used=20_000)]) is Put.STORED
        archive.get(name, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == wal_of(segment, used=20_000)

    def test_shorter_partial_changes_nothing(self, archive: WalArchive, tmp_path: Path) -> None:
        """A partial that the archive holds more of is held already."""
        segment = segment_at(3)
        name = f"{segment.name}.partial"
        archive.put(name, [wal_of(segment, used=20_000)])
        assert archive.put(name, [wal_of(segment, used=10_000)]) is Put.ALREADY_HELD
        archive.get(name, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == wal_of(segment, used=20_000)

    def test_partial_that_does_not_continue_is_refused(self, archive: WalArchive) -> None:
        """WAL of another past does not replace the partial segment."""
        segment = segment_at(3)
        name = f"{segment.name}.partial"
        archive.put(name, [wal_of(segment, used=10_000)])
        with pytest.raises(ArchiveError) as caught:
            archive.put(name, [wal_of(segment, seed=1, used=20_000)])
        assert caught.value.message == f"the archive already holds {name} with WAL that the new one does not continue"

    def test_complete_segment_supersedes_its_partial(self, archive: WalArchive) -> None:
        """The partial goes when the complete segment has its WAL."""
        segment = segment_at(3)
        archive.put(f"{segment.name}.partial", [wal_of(segment, used=10_000)])
        archive.put(segment.name, [wal_of(segment)])
        assert all_files(archive) == ["00000001/0000000100000000/000000010000000000000003.zst"]
        assert archive.put(f"{segment.name}.partial", [wal_of(segment, used=20_000)]) is Put.ALREADY_HELD
        assert len(all_files(archive)) == 1

    def test_partial_of_another_past_is_kept(self, archive: WalArchive) -> None:
        """A partial with WAL that the complete segment lacks is the only copy of it, and stays."""
        segment = segment_at(3)
        archive.put(f"{segment.name}.partial", [wal_of(segment, seed=1, used=10_000)])
        archive.put(segment.name, [wal_of(segment)])
        assert len(all_files(archive)) == 2

    def test_damaged_partial_is_replaced(self, archive: WalArchive) -> None:
        """A broken partial gives way to a new one."""
        segment = segment_at(3)
        name = f"{segment.name}.partial"
        archive.put(name, [wal_of(segment, used=10_000)])
        _flip(stored_path(archive, name), 100)
        assert archive.put(name, [wal_of(segment, used=10_000)]) is Put.STORED
        archive.verify(name)


def test_removed_segment_is_gone_with_its_empty_directories(archive: WalArchive) -> None:
    """Removing the last file of a timeline removes its directories; removing what is absent is no error."""
    for number in (3, 4):
        archive.put(segment_at(number).name, [wal_of(segment_at(number))])
    archive.remove(segment_at(3).name)
    assert all_files(archive) == ["00000001/0000000100000000/000000010000000000000004.zst"]
    archive.remove(segment_at(4).name)
    archive.remove(segment_at(4).name)
    assert list(archive.root.iterdir()) == []
    archive.put(segment_at(4).name, [wal_of(segment_at(4))])
    archive.verify(segment_at(4).name)


@pytest.mark.parametrize("published", [False, True])
def test_file_system_without_unnamed_files_serves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """Where O_TMPFILE is not known, a temporary name does the same and is cleaned up."""
    # A number that no flag has: the kernel then opens the directory for writing, and says EISDIR as old ones do.
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    (tmp_path / ".pgkeep-1-1-1.tmp").touch()
    os.utime(tmp_path / ".pgkeep-1-1-1.tmp", (0, 0))
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with UnnamedFile(directory) as file:
            assert not file.is_unnamed
            os.write(file.fd, b"content")
            if published:
                file.publish("name")
                with UnnamedFile(directory) as second, pytest.raises(FileExistsError):
                    second.publish("name")
    finally:
        os.close(directory)
    assert [path.name for path in tmp_path.iterdir()] == (["name"] if published else [])
