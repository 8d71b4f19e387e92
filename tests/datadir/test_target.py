"""What makes a restore be refused before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pgkeep.datadir.owner import Owner, owner_of_restored_files
from pgkeep.datadir.target import MARKER, Target, has_mark_of
from pgkeep.errors import RestoreRefused
from tests.datadir.trees import VERSION_DIRECTORY, make_data_directory
from tests.lab.cluster import MakeCluster
from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem


def target_at(path: Path, tablespaces: dict[int, Path | None] | None = None) -> Target:
    """Return a target without an owner of its own."""
    return Target(data_directory=path, version_directory=VERSION_DIRECTORY, tablespaces=tablespaces or {})


def touch(path: Path) -> None:
    """Make a file and what is above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


# Name, what to do, the whole message with {} for the directory of the test.
REFUSALS: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "not empty",
        lambda path: [touch(path / "data" / name) for name in ("d", "c", "b", "a")] and None,
        "restore target is not empty: {}/data holds a, b, c",
    ),
    ("a file", lambda path: touch(path / "data"), "restore target is not a directory: {}/data"),
    (
        "a dangling link",
        lambda path: (path / "data").symlink_to(path / "nowhere"),
        "restore target is a link to nowhere: {}/data",
    ),
    (
        "tablespace in use",
        lambda path: touch(path / "ts" / VERSION_DIRECTORY / "x"),
        "tablespace directory is in use: {}/ts/" + VERSION_DIRECTORY + " exists",
    ),
    (
        "one directory twice",
        lambda path: (path / "ts").symlink_to(path / "data"),
        "two parts of the restore have the same directory: {}/ts",
    ),
]


@pytest.mark.parametrize(("hurt", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_what_stands_in_the_way_is_refused(tmp_path: Path, hurt: Callable[[Path], None], message: str) -> None:
    """Each row is accepted before it is hurt, and refused after, with nothing changed."""
    target = target_at(tmp_path / "data", {16390: tmp_path / "ts", 16391: None})
    target.check()
    hurt(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    with pytest.raises(RestoreRefused) as raised:
        target.check()

    assert raised.value.message == message.replace("{}", str(tmp_path))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_place_within_another_cluster_is_refused(tmp_path: Path) -> None:
    """Neither data directory nor tablespace goes into somebody else's data directory; a tablespace in its own may."""
    other = tmp_path / "other"
    (other / "global").mkdir(parents=True)
    (other / "global/pg_control").touch()
    (tmp_path / "link").symlink_to(other)
    for place in (other / "base", other / "a/b", tmp_path / "link/a"):
        with pytest.raises(RestoreRefused, match="within the data directory of a cluster"):
            target_at(place).check(is_overwritten=True)
    with pytest.raises(RestoreRefused, match="within the data directory of a cluster"):
        target_at(tmp_path / "new", {5: other / "ts"}).check()
    target_at(other, {5: other / "ts"}).check(is_overwritten=True)


def test_a_relative_target_is_refused() -> None:
    """It would depend on where pgkeep was started."""
    with pytest.raises(RestoreRefused) as raised:
        target_at(Path("data")).check()

    assert raised.value.message == "restore target must be an absolute path, found data"


def test_an_empty_directory_and_one_that_only_a_file_system_marks_are_accepted(tmp_path: Path) -> None:
    """The root of a file system has its lost+found; a shared tablespace directory has other majors' files."""
    (tmp_path / "data/lost+found").mkdir(parents=True)
    touch(tmp_path / "ts/PG_17_202406281/x")

    target_at(tmp_path / "data", {16390: tmp_path / "ts"}).check()


def test_what_will_be_moved_away_is_not_in_the_way(tmp_path: Path) -> None:
    """Whoever overwrites has answered for the content, not for a server that runs there."""
    touch(tmp_path / "data/x")

    target_at(tmp_path / "data").check(is_overwritten=True)


@pytest.mark.parametrize("is_overwritten", [False, True])
def test_a_directory_in_which_a_server_runs_is_refused(make_cluster: MakeCluster, is_overwritten: bool) -> None:
    """Whatever else is allowed."""
    cluster = make_cluster(major=18)

    with pytest.raises(RestoreRefused) as raised:
        target_at(cluster.data_directory).check(is_overwritten=is_overwritten)

    assert raised.value.message == f"a server runs in {cluster.data_directory}: process {cluster.pid}"
    expected = "restore into another directory, or let overwrite_existing stop it and move its files away"
    assert raised.value.hint == expected


def test_a_pid_file_left_by_a_dead_server_is_no_server(tmp_path: Path) -> None:
    """Neither one whose process is gone, nor one whose number another program has by now."""
    data_directory = make_data_directory(tmp_path / "data")
    for pid in (os.getppid(), 2**22 + 1):
        (data_directory / "postmaster.pid").write_text(f"{pid}\n{data_directory}\n")
        target_at(data_directory).check(is_overwritten=True)


def test_a_leftover_of_a_killed_restore_is_accepted_but_a_marked_cluster_is_not(tmp_path: Path) -> None:
    """With pg_control in its place it is somebody's cluster, whatever else stands there."""
    target = target_at(tmp_path / "data")
    target.begin()
    touch(tmp_path / "data/base/5/1")
    target.check()

    touch(tmp_path / "data/global/pg_control")
    with pytest.raises(RestoreRefused, match="restore target is not empty: "):
        target.check()


def test_beginning_again_clears_the_leftover_only(tmp_path: Path) -> None:
    """A directory without the mark is never cleared; of a tablespace's only the version's own."""
    target = target_at(tmp_path / "data", {16390: tmp_path / "ts"})
    target.begin()
    for name in ("data/base/5/1", f"ts/{VERSION_DIRECTORY}/5/1", "ts/PG_17_202406281/5/1"):
        touch(tmp_path / name)

    target.begin()

    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f"data/{MARKER}", f"ts/{MARKER}", "ts/PG_17_202406281/5/1"}


def test_a_leftover_does_not_give_away_a_directory_that_was_not_its_own(tmp_path: Path) -> None:
    """A second try that sends the tablespace elsewhere, to its original place say, must not clear what is there."""
    target_at(tmp_path / "data", {16390: tmp_path / "mapped"}).begin()
    touch(tmp_path / f"original/{VERSION_DIRECTORY}/5/1")
    second = target_at(tmp_path / "data", {16390: tmp_path / "original"})

    with pytest.raises(RestoreRefused) as raised:
        second.check()

    assert raised.value.message == f"tablespace directory is in use: {tmp_path}/original/{VERSION_DIRECTORY} exists"
    assert raised.value.hint == "name another directory in the tablespace map, or allow the restore to overwrite"
    second.check(is_overwritten=True)
    # Whoever overwrites has moved it away by now.
    with pytest.raises(RestoreRefused) as raised:
        second.begin()
    assert raised.value.message == f"tablespace directory is in use: {tmp_path}/original/{VERSION_DIRECTORY} exists"
    assert (tmp_path / f"original/{VERSION_DIRECTORY}/5/1").exists()


def test_two_restores_that_were_both_checked_do_not_share_a_tablespace(tmp_path: Path) -> None:
    """The one that begins first has the directory, and its mark stays there; the other one has none of it."""
    first = target_at(tmp_path / "one", {16390: tmp_path / "ts"})
    second = target_at(tmp_path / "two", {16390: tmp_path / "ts"})
    first.check()
    second.check()
    first.begin()
    with pytest.raises(RestoreRefused) as raised:
        second.begin()
    assert raised.value.message == f"tablespace directory is in use: {tmp_path}/ts/{VERSION_DIRECTORY} exists"
    assert has_mark_of(tmp_path / "ts", tmp_path / "one")
    assert not has_mark_of(tmp_path / "ts", tmp_path / "two")
    first.check()
    first.begin()


def test_a_leftover_of_another_restore_is_not_cleared(tmp_path: Path) -> None:
    """Two restores did not end, or one of them is still at work: each has only its own tablespace directories."""
    target_at(tmp_path / "one", {16390: tmp_path / "ts"}).begin()
    touch(tmp_path / f"ts/{VERSION_DIRECTORY}/5/1")
    target_at(tmp_path / "two").begin()

    with pytest.raises(RestoreRefused) as raised:
        target_at(tmp_path / "two", {16390: tmp_path / "ts"}).check()

    assert raised.value.message == f"tablespace directory is in use: {tmp_path}/ts/{VERSION_DIRECTORY} exists"
    target_at(tmp_path / "one", {16390: tmp_path / "ts"}).check()


def test_too_little_space_is_refused_per_file_system() -> None:
    """Directories of one file system are added up, and the message has both numbers."""
    with small_filesystem(100) as path:
        target = target_at(path / "new/data", {16390: path / "ts"})
        target.check(sizes={path / "new/data": 16 << 20, path / "ts": 16 << 20})
        space = os.statvfs(path)

        with pytest.raises(RestoreRefused) as raised:
            target.check(sizes={path / "new/data": 30 << 20, path / "ts": 30 << 20})

        needed, free = (60 + 64) << 20, space.f_bavail * space.f_frsize
        assert raised.value.message == (
            f"not enough space for the restore on the file system of {path}: {needed} bytes are needed, {free} are free"
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may choose an owner")
def test_root_restores_for_an_account_that_can_run_a_server(tmp_path: Path) -> None:
    """The one asked for, else the target's, else the recorded one; never root."""
    user = server_user()
    owner = Owner(user.uid, user.gid)
    assert owner_of_restored_files(tmp_path / "data", user=user.name) == owner
    assert owner_of_restored_files(tmp_path / "data", recorded=user.name) == owner
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 12345, 12345)
    assert owner_of_restored_files(tmp_path / "data", recorded=user.name) == Owner(12345, 12345)

    with pytest.raises(RestoreRefused) as raised:
        owner_of_restored_files(tmp_path / "data", user="no-such-user")

    assert raised.value.message == 'there is no user "no-such-user" on this host to own the restored files'
