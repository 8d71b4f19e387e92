"""Laying down items: content, places, what is refused, and what a killed or failed restore leaves behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.datadir.durable import has_reliable_syncfs
from pgkeep.datadir.lay_down import LaidDown, LayDown
from pgkeep.datadir.owner import Owner
from pgkeep.datadir.target import MARKER, Target
from pgkeep.errors import BackupUnusable, FormatError, PgkeepError, RestoreRefused
from pgkeep.pg.data_directory import REQUIRED_DIRECTORIES
from pgkeep.streams.item import EXTENT_BYTES, Buffer, BytesItem, DetachedItem, ItemHeader, ItemKind, StreamedItem
from tests.datadir.trees import ROOT, VERSION_DIRECTORY
from tests.lab.cluster import wait_for
from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem

MTIME = 1_700_000_000_123_456_789


@dataclass(eq=False)
class Detached:
    """A detached item whose content is at hand."""

    header: ItemHeader
    content: bytes
    closed: int = 0

    def read_extent(self, offset: int, length: int) -> Buffer:
        return self.content[offset : offset + length]

    def close(self) -> None:
        self.closed += 1


def file(path: str, content: bytes = b"content", *, file_mode: int = 0o600) -> Detached:
    """Return a detached item."""
    return Detached(ItemHeader(path=f"{ROOT}/{path}", size=len(content), mtime_ns=MTIME, file_mode=file_mode), content)


def streamed(path: str, content: bytes = b"content") -> BytesItem:
    """Return a streamed item."""
    return BytesItem(ItemHeader(path=f"{ROOT}/{path}", size=len(content), mtime_ns=MTIME), content)


def directory(path: str, *, file_mode: int = 0o700) -> BytesItem:
    """Return a directory."""
    return BytesItem(ItemHeader(path=f"{ROOT}/{path}", kind=ItemKind.DIRECTORY, file_mode=file_mode), b"")


def link(path: str, to: str) -> BytesItem:
    """Return a symbolic link."""
    return BytesItem(ItemHeader(path=f"{ROOT}/{path}", kind=ItemKind.SYMLINK, link=to), b"")


CONTROL = file("pgdata/global/pg_control", b"control")


def target_at(path: Path, tablespaces: dict[int, Path | None] | None = None, **arguments: Path) -> Target:
    """Return a target without an owner of its own."""
    return Target(data_directory=path, version_directory=VERSION_DIRECTORY, tablespaces=tablespaces or {}, **arguments)


def lay_down(target: Target, *items: DetachedItem | StreamedItem, workers: int = 2) -> LaidDown:
    """Lay *items* down, from the beginning to the barrier."""
    target.begin()
    with LayDown(target, root=ROOT, workers=workers) as work:
        for item in items:
            work.accept(item)
        return work.finish()


def tree(path: Path) -> dict[str, bytes]:
    """Return the files beneath *path*."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_items_become_files_with_their_bits_and_times(tmp_path: Path, workers: int) -> None:
    """Detached and streamed items, empty ones, ones of many extents, in directories that come later or never."""
    large = os.urandom(3 * EXTENT_BYTES + 1)
    target = target_at(tmp_path / "data")

    laid = lay_down(
        target,
        file("pgdata/base/5/16384", large),
        streamed("pgdata/base/5/16385", large[::-1]),
        file("pgdata/base/5/16386", b"", file_mode=0o640),
        directory("pgdata/base/5", file_mode=0o750),
        streamed("backup_label", b"START"),
        CONTROL,
        workers=workers,
    )
    target.complete()

    assert tree(tmp_path / "data") == {
        "base/5/16384": large,
        "base/5/16385": large[::-1],
        "base/5/16386": b"",
        "backup_label": b"START",
        "global/pg_control": b"control",
    }
    assert laid == LaidDown(files=5, bytes=2 * len(large) + 12)
    status = (tmp_path / "data/base/5/16386").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, MTIME)
    assert stat.S_IMODE((tmp_path / "data/base/5").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_every_directory_that_a_server_needs_is_there(tmp_path: Path) -> None:
    """Even when the backup named none of them."""
    lay_down(target_at(tmp_path / "data"), CONTROL)

    assert all((tmp_path / "data" / name).is_dir() for name in REQUIRED_DIRECTORIES)


def test_group_access_of_the_cluster_is_kept(tmp_path: Path) -> None:
    """The data directory has no item of its own; its bits follow those of ``global``."""
    lay_down(target_at(tmp_path / "data"), directory("pgdata/global", file_mode=0o750), CONTROL)

    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o750


def test_tablespaces_go_where_the_map_says(tmp_path: Path) -> None:
    """Outside: into the directory, with a link; in place: beneath pg_tblspc."""
    target = target_at(tmp_path / "data", {16390: tmp_path / "far/ts", 16391: None})

    lay_down(
        target,
        directory(f"tblspc/16390/{VERSION_DIRECTORY}"),
        file(f"tblspc/16390/{VERSION_DIRECTORY}/5/16400", b"outside"),
        file(f"tblspc/16391/{VERSION_DIRECTORY}/5/16401", b"inside"),
        CONTROL,
    )
    target.complete()

    assert tree(tmp_path / "far/ts") == {f"{VERSION_DIRECTORY}/5/16400": b"outside"}
    assert os.readlink(tmp_path / "data/pg_tblspc/16390") == str(tmp_path / "far/ts")
    assert (tmp_path / f"data/pg_tblspc/16391/{VERSION_DIRECTORY}/5/16401").read_bytes() == b"inside"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_wal_of_the_backup_goes_to_pg_wal_or_where_it_is_wanted(tmp_path: Path, elsewhere: bool) -> None:
    """An item under ``wal`` is one segment."""
    name = "000000010000000000000002"
    wal = {"wal_directory": tmp_path / "wal"} if elsewhere else {}

    lay_down(target_at(tmp_path / "data", **wal), file(f"wal/{name}", b"wal"), CONTROL)

    place = tmp_path / "wal" if elsewhere else tmp_path / "data/pg_wal"
    assert (place / name).read_bytes() == b"wal"


def test_a_file_that_comes_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """From a chain of jobs the newer version comes later."""
    target = target_at(tmp_path / "data")

    lay_down(target, file("pgdata/base/5/1", b"longer and older"), file("pgdata/base/5/1", b"newer"), workers=1)

    assert (tmp_path / "data/base/5/1").read_bytes() == b"newer"


# Name, path, the whole message.
STRAY_PATHS = [
    ("up", "pgdata/../../etc/passwd", 'path in the backup leads out of its place: "pgdata/../../etc/passwd"'),
    ("absolute", "pgdata//etc/passwd", 'path in the backup leads out of its place: "pgdata//etc/passwd"'),
    ("dot", "pgdata/./x", 'path in the backup leads out of its place: "pgdata/./x"'),
    ("zero", "pgdata/a\0b", 'path in the backup leads out of its place: "pgdata/a\0b"'),
    ("ends with a slash", "pgdata/x/", 'path in the backup leads out of its place: "pgdata/x/"'),
    ("nothing", "pgdata", 'item has no place in a data directory: "pgdata"'),
    ("unknown", "dump/globals.sql", 'item has no place in a data directory: "dump/globals.sql"'),
    ("wal in a directory", "wal/a/b", 'item has no place in a data directory: "wal/a/b"'),
    ("no oid", "tblspc/x/y", 'item has no place in a data directory: "tblspc/x/y"'),
]


@pytest.mark.parametrize(("path", "message"), [row[1:] for row in STRAY_PATHS], ids=[row[0] for row in STRAY_PATHS])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str, message: str) -> None:
    """Nothing is written beside the target, whatever the backup says."""
    before = tree(tmp_path)
    with pytest.raises(FormatError) as raised:
        lay_down(target_at(tmp_path / "data"), file(path))

    assert raised.value.message == message
    assert set(tree(tmp_path)) - set(before) == {f"data/{MARKER}"}


@given(st.text(alphabet="./a\0", max_size=12))
def test_any_path_is_placed_beneath_the_target_or_refused(path: str) -> None:
    """No text leads out."""
    target = target_at(Path("/target"))
    try:
        place, inside = target.place(f"pgdata/{path}")
    except FormatError:
        return
    assert place == Path("/target")
    assert os.path.normpath(f"/target/{inside}") == f"/target/{inside}"


def test_an_item_of_another_root_is_refused(tmp_path: Path) -> None:
    """Two modes' items don't mix."""
    item = BytesItem(ItemHeader(path="@postgresql/pitr_block/pgdata/x", size=0), b"")

    with pytest.raises(FormatError) as raised:
        lay_down(target_at(tmp_path / "data"), item)

    assert raised.value.message == 'item has no place in a data directory: "@postgresql/pitr_block/pgdata/x"'


def test_a_tablespace_without_a_directory_is_refused(tmp_path: Path) -> None:
    """It must not land somewhere by chance."""
    with pytest.raises(RestoreRefused) as raised:
        lay_down(target_at(tmp_path / "data"), file(f"tblspc/16390/{VERSION_DIRECTORY}/5/1"))

    assert raised.value.message == "the restore has no directory for tablespace 16390"


@pytest.mark.parametrize("to", ["/etc", "../..", "../../data/../..", "x/../../../y"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, to: str) -> None:
    """Neither absolute nor by going up further than the target, not even on the way."""
    with pytest.raises(FormatError) as raised:
        lay_down(target_at(tmp_path / "data"), link("pgdata/base/link", to))

    assert raised.value.message == (f'link in the backup leads out of its place: "{ROOT}/pgdata/base/link" to "{to}"')


def test_a_link_within_the_target_is_made_and_never_written_through(tmp_path: Path) -> None:
    """A later item beneath the link's name is refused."""
    target = target_at(tmp_path / "data")

    with pytest.raises(RestoreRefused) as raised:
        lay_down(target, link("pgdata/base/link", "../global"), file("pgdata/base/link/x"), workers=1)

    assert os.readlink(tmp_path / "data/base/link") == "../global"
    assert raised.value.message == (
        f"cannot restore beneath {tmp_path}/data/base/link: it is a link or a file, expected a directory"
    )


@pytest.mark.parametrize("planted", ["directory", "file"])
def test_a_link_planted_during_the_restore_is_not_followed(tmp_path: Path, planted: str) -> None:
    """The server's user owns the directory; root must not be led by it to other files."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "16384").write_bytes(b"precious")
    target = target_at(tmp_path / "data")
    target.begin()
    if planted == "directory":
        (tmp_path / "data/base").symlink_to(victim)
    else:
        (tmp_path / "data/base").mkdir()
        (tmp_path / "data/base/16384").symlink_to(victim / "16384")

    with LayDown(target, root=ROOT, workers=1) as work:
        try:
            work.accept(file("pgdata/base/16384", b"restored"))
            work.finish()
        except RestoreRefused:
            assert planted == "directory"

    assert tree(victim) == {"16384": b"precious"}
    if planted == "file":
        assert not (tmp_path / "data/base/16384").is_symlink()
        assert (tmp_path / "data/base/16384").read_bytes() == b"restored"


def test_a_disk_that_fills_up_is_reported_with_place_and_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still to be written is told, and the items are closed."""
    # With more threads, which file has no room is a matter of pace.
    monkeypatch.setattr("pgkeep.datadir.lay_down.THREADS_PER_WORKER", 1)
    with small_filesystem(9) as path:
        target = target_at(path / "data")
        target.begin()
        items = [file(f"pgdata/base/5/{number}", os.urandom(EXTENT_BYTES)) for number in range(4)]

        def fill() -> None:
            with LayDown(target, root=ROOT, workers=1, expected_bytes=4 * EXTENT_BYTES) as work:
                for item in items:
                    work.accept(item)
                work.finish()

        with pytest.raises(PgkeepError) as raised:
            fill()

        assert raised.value.message == (
            f"cannot write {path}/data/base/5/2: No space left on device; "
            f"{2 * EXTENT_BYTES} bytes are still to be written"
        )
        assert raised.value.hint == "make room and run the restore again"
        assert all(item.closed <= 1 for item in items)
        assert target.is_marked


def test_an_error_of_the_supply_ends_the_lay_down(tmp_path: Path) -> None:
    """The first error is raised; nothing claims to be complete."""

    @dataclass(eq=False)
    class Broken(Detached):
        def read_extent(self, offset: int, length: int) -> Buffer:
            raise BackupUnusable("volume-01 is damaged")

    target = target_at(tmp_path / "data")
    with pytest.raises(BackupUnusable, match="volume-01 is damaged"):
        lay_down(target, Broken(file("pgdata/x").header, b"content"), CONTROL)

    assert target.is_marked


def test_a_backup_without_pg_control_is_never_a_cluster(tmp_path: Path) -> None:
    """Completing it fails, and the mark stays."""
    target = target_at(tmp_path / "data")
    lay_down(target, file("pgdata/PG_VERSION"))

    with pytest.raises(BackupUnusable) as raised:
        target.complete()

    assert raised.value.message == ("the backup held no global/pg_control: what was laid down is not a cluster")
    assert target.is_marked


def test_completing_twice_is_fine(tmp_path: Path) -> None:
    """A phase may be run again."""
    target = target_at(tmp_path / "data", {16390: tmp_path / "ts"})
    lay_down(target, CONTROL)

    target.complete()
    target.complete()

    assert not target.is_marked
    assert not (tmp_path / "data" / MARKER).exists()
    assert not (tmp_path / "ts" / MARKER).exists()


_ENDLESS = """
import sys, threading
from pathlib import Path
from pgkeep.datadir.lay_down import LayDown
from pgkeep.datadir.target import Target
from pgkeep.streams.item import BytesItem, ItemHeader
target = Target(data_directory=Path(sys.argv[1]), version_directory="PG_18_202506291",
                tablespaces={16390: Path(sys.argv[2])})
target.begin()
with LayDown(target, root="r", workers=2) as work:
    work.accept(BytesItem(ItemHeader(path="r/pgdata/global/pg_control", size=7), b"control"))
    for number in range(10**9):
        place = "pgdata/base/5" if number % 2 else "tblspc/16390/PG_18_202506291/5"
        work.accept(BytesItem(ItemHeader(path=f"r/{place}/{number}", size=8192), bytes(8192)))
"""


def test_a_killed_restore_leaves_no_cluster_and_can_be_run_again(tmp_path: Path) -> None:
    """There is no pg_control to start with, the leftover is recognised, and the next restore clears it away."""
    data, outside = tmp_path / "data", tmp_path / "ts"
    (outside / "PG_17_202406281").mkdir(parents=True)
    target = target_at(data, {16390: outside})
    target.check()
    with subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(data), str(outside)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        wait_for((data / "base/5/999").exists, "files are being laid down")
        os.kill(child.pid, signal.SIGKILL)

    assert not (data / "global/pg_control").exists()
    assert target.is_marked
    target.check()
    lay_down(target, file("pgdata/PG_VERSION", b"18\n"), CONTROL)
    target.complete()

    assert tree(data) == {"PG_VERSION": b"18\n", "global/pg_control": b"control"}
    assert sorted(path.name for path in outside.iterdir()) == ["PG_17_202406281"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away; others' files are theirs by themselves")
def test_what_root_lays_down_belongs_to_the_servers_account(tmp_path: Path) -> None:
    """Files, directories, links, and the directories made on the way."""
    user = server_user()
    target = Target(
        data_directory=tmp_path / "new/data",
        version_directory=VERSION_DIRECTORY,
        tablespaces={16390: tmp_path / "new/ts"},
        owner=Owner(user.uid, user.gid),
    )

    lay_down(target, file("pgdata/base/5/1"), link("pgdata/base/link", "5"), CONTROL)
    target.complete()

    for path in [tmp_path / "new", *(tmp_path / "new").rglob("*")]:
        assert path.lstat().st_uid == user.uid, path


def test_many_directories_need_few_descriptors(tmp_path: Path) -> None:
    """Descriptors of directories are kept for some, not for all."""
    open_before = len(os.listdir("/proc/self/fd"))
    target = target_at(tmp_path / "data")
    target.begin()

    def items() -> Iterator[BytesItem]:
        for number in range(400):
            yield streamed(f"pgdata/base/{number}/a/b/c", b"x")

    with LayDown(target, root=ROOT, workers=2) as work:
        for item in items():
            work.accept(item)
        work.finish()
        assert len(os.listdir("/proc/self/fd")) - open_before < 140
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert len(tree(tmp_path / "data/base")) == 400


def test_without_a_reliable_syncfs_every_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old kernels lose write errors in syncfs; then each file has its fsync, and each directory."""
    synced = []
    monkeypatch.setattr("pgkeep.datadir.durable.has_reliable_syncfs", lambda release: False)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))

    lay_down(target_at(tmp_path / "data"), file("pgdata/base/5/1"), CONTROL)

    data = tmp_path / "data"
    expected = {data / name for name in ("base/5/1", "global/pg_control.pgkeep", "base/5", "base", ".")}
    assert expected <= {Path(path) for path in synced}


@pytest.mark.parametrize(
    ("release", "is_reliable"),
    [("5.7.19", False), ("5.8.0-rc1", True), ("6.1.0-13-amd64", True), ("4.19.0", False), ("odd", False)],
)
def test_syncfs_is_trusted_from_the_kernel_that_reports_errors(release: str, is_reliable: bool) -> None:
    """Linux 5.8."""
    assert has_reliable_syncfs(release) is is_reliable
