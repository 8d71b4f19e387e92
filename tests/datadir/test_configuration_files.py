"""Where configuration files may be put back, and what stays where it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pgkeep.datadir import configuration_files
from pgkeep.datadir.configuration_files import put_back, take_back
from pgkeep.datadir.owner import Owner
from tests.lab.server_user import server_user

SUFFIX = ".old.7"
OLD, NEW = 1_000_000_000_000_000_000, 2_000_000_000_000_000_000


class Laid:
    """A data directory in which one configuration file waits for its place."""

    def __init__(self, directory: Path, *, owner: Owner | None = None) -> None:
        self.data_directory = directory / "data"
        self.place = directory / "etc" / "main" / "postgresql.conf"
        self.owner = owner
        self.waiting = self.data_directory / "pgkeep.configuration" / self.place.relative_to("/")
        self.waiting.parent.mkdir(parents=True)
        self.waiting.write_text("port = 5432\n")
        self.waiting.chmod(0o640)
        os.utime(self.waiting, ns=(NEW, NEW))
        if owner is not None:
            for path in (self.data_directory, *self.data_directory.rglob("*")):
                os.chown(path, owner.uid, owner.gid)

    def put_back(self, *, may_replace: bool = False) -> dict[str, str]:
        """Put it back; return why files stay."""
        done = put_back(self.data_directory, owner=self.owner, may_replace=may_replace, suffix=SUFFIX)
        return {str(path): why for path, why in done.kept.items()}

    @property
    def is_waiting(self) -> bool:
        """Whether the file still lies in the data directory."""
        return self.waiting.exists()


def test_nothing_in_the_way(tmp_path: Path) -> None:
    """A file goes where nothing is, with its time and its bits, directories included; nothing is left behind."""
    laid = Laid(tmp_path)
    assert laid.put_back() == {}
    status = laid.place.stat()
    assert (laid.place.read_text(), status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == ("port = 5432\n", NEW, 0o640)
    assert list(laid.data_directory.iterdir()) == []
    assert laid.put_back() == {}


@pytest.mark.parametrize(
    ("text", "mtime_ns", "may_replace", "why"),
    [
        ("port = 5432\n", NEW + 1, False, None),
        ("port = 1\n", NEW, True, "the file there is newer"),
        ("port = 1\n", OLD, False, "another file is there"),
        ("port = 1\n", OLD, True, ""),
    ],
)
def test_something_in_the_way(tmp_path: Path, text: str, mtime_ns: int, may_replace: bool, why: str | None) -> None:
    """The same content is left alone; another one stays unless it is older and may give way."""
    laid = Laid(tmp_path)
    laid.place.parent.mkdir(parents=True)
    laid.place.write_text(text)
    os.utime(laid.place, ns=(mtime_ns, mtime_ns))
    kept = laid.put_back(may_replace=may_replace)
    assert kept == ({str(laid.place): why} if why else {})
    assert laid.is_waiting is bool(why)
    aside = laid.place.with_name(laid.place.name + SUFFIX)
    assert aside.exists() is (why == "")
    assert laid.place.read_text() == (text if why else "port = 5432\n")
    if why == "":
        take_back([str(laid.place)], [], suffix=SUFFIX)
        assert laid.place.read_text() == text
        assert laid.place.with_name(f"{aside.name}.rolled-back").read_text() == "port = 5432\n"


def test_a_directory_has_its_name(tmp_path: Path) -> None:
    """What is no file is not replaced, and a link is not followed."""
    laid = Laid(tmp_path)
    laid.place.mkdir(parents=True)
    assert laid.put_back(may_replace=True) == {str(laid.place): "something that is not a file has its name"}
    laid.place.rmdir()
    (tmp_path / "elsewhere").write_text("port = 1\n")
    laid.place.symlink_to(tmp_path / "elsewhere")
    assert laid.put_back(may_replace=True) == {str(laid.place): "something that is not a file has its name"}
    assert (tmp_path / "elsewhere").read_text() == "port = 1\n"


def test_cut_short(tmp_path: Path) -> None:
    """What was killed after the older file was renamed goes on, and can be undone."""
    laid = Laid(tmp_path)
    laid.place.parent.mkdir(parents=True)
    laid.place.with_name(laid.place.name + SUFFIX).write_text("port = 1\n")
    laid.place.with_name(f"{laid.place.name}.pgkeep-new").write_text("por")
    assert laid.put_back(may_replace=True) == {}
    assert laid.place.read_text() == "port = 5432\n"
    take_back([str(laid.place)], [], suffix=SUFFIX)
    assert laid.place.read_text() == "port = 1\n"


def test_taking_back_what_was_not_there(tmp_path: Path) -> None:
    """A file that was put where nothing was gets another name; one that was there already stays."""
    laid = Laid(tmp_path)
    laid.put_back()
    assert take_back([str(laid.place)], [], suffix=SUFFIX) == []
    assert laid.place.exists()
    restored = laid.place.with_name(f"{laid.place.name}{SUFFIX}.rolled-back")
    assert take_back([str(laid.place)], [str(laid.place)], suffix=SUFFIX) == [(laid.place, restored)]
    assert not laid.place.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could write elsewhere than the server's account")
class TestAsRoot:
    """A backup is no way to become root."""

    @pytest.fixture
    def laid(self, tmp_path: Path) -> Laid:
        """A file whose place belongs to root."""
        user = server_user()
        return Laid(tmp_path, owner=Owner(user.uid, user.gid))

    def test_directory_of_root(self, laid: Laid) -> None:
        """Nothing is put into a directory that is not the server's, and none is made there."""
        assert laid.put_back() == {str(laid.place): f"there is no directory {laid.place.parent}"}
        laid.place.parent.mkdir(parents=True)
        why = f'{laid.place.parent} does not belong to "{server_user().name}"'
        assert laid.put_back() == {str(laid.place): why}
        assert not laid.place.exists()

    def test_directory_of_the_server(self, laid: Laid) -> None:
        """In a directory of the server's account the file is that account's."""
        laid.place.parent.mkdir(parents=True)
        server_user().own(laid.place.parent)
        assert laid.put_back() == {}
        assert laid.place.stat().st_uid == server_user().uid

    def test_link_to_a_directory_of_root(self, laid: Laid, tmp_path: Path) -> None:
        """A link that the server's account makes leads root nowhere."""
        (tmp_path / "cron.d").mkdir()
        laid.place.parent.parent.mkdir()
        laid.place.parent.symlink_to(tmp_path / "cron.d")
        os.lchown(laid.place.parent, server_user().uid, server_user().gid)
        assert list(laid.put_back().values()) == [f'{laid.place.parent} does not belong to "{server_user().name}"']
        assert list((tmp_path / "cron.d").iterdir()) == []

    def test_link_in_place_of_what_was_laid_down(self, laid: Laid, tmp_path: Path) -> None:
        """Root reads nothing but what the restore laid down."""
        laid.place.parent.mkdir(parents=True)
        server_user().own(laid.place.parent)
        (tmp_path / "shadow").write_text("root:x\n")
        laid.waiting.unlink()
        os.link(tmp_path / "shadow", laid.waiting)
        assert list(laid.put_back().values()) == [f"{laid.waiting} is not what the restore laid down"]
        assert not laid.place.exists()

    def test_debian(self, laid: Laid, monkeypatch: pytest.MonkeyPatch) -> None:
        """Below /etc/postgresql directories are made, as Debian does, and belong to the server's account."""
        monkeypatch.setattr(configuration_files, "_DEBIAN_DIRECTORY", laid.place.parent.parent)
        assert laid.put_back() == {}
        assert laid.place.parent.stat().st_uid == server_user().uid
        assert laid.place.stat().st_uid == server_user().uid
