"""Root restores for an account that it does not trust: no link which that account makes leads root elsewhere."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pgkeep.datadir.owner import Owner, refuse_foreign_links
from pgkeep.datadir.target import Target
from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.audit_file import AuditFile
from pgkeep.jobs.restoring.clear_away import link_wal
from pgkeep.jobs.restoring.directory import RestoreDirectory
from pgkeep.jobs.restoring.set_aside import directories_in_the_way
from pgkeep.jobs.restoring.state import RestoreState
from tests.lab.server_user import server_user


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory with a file that is nobody's to touch."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    (directory / "precious").write_text("mine")
    return directory


@pytest.mark.parametrize("name", ["data.pgkeep-restore", "data/pgkeep.restore"])
def test_a_link_in_place_of_the_restore_directory(tmp_path: Path, elsewhere: Path, name: str) -> None:
    """Nothing is read or written through it, and what it leads to is not removed."""
    data_directory = tmp_path / "data"
    data_directory.mkdir()
    (tmp_path / name).symlink_to(elsewhere)
    directory = RestoreDirectory(data_directory)
    for call in (directory.read, directory.held().__enter__):
        with pytest.raises(RestoreRefused) as refused:
            call()
        assert refused.value.message == f"{tmp_path / name} is a link, expected the directory of a restore"
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        directory.remove()
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]


def test_a_pipe_in_place_of_the_audit_file(tmp_path: Path) -> None:
    """Nobody reads from it, and the restore does not wait until somebody does."""
    os.mkfifo(tmp_path / "restore-1.log")
    said: list[str] = []
    audit = AuditFile("1", tmp_path, say=said.append, warn=said.append)
    audit.begin(tmp_path)
    assert audit.path is None
    assert said == [f"no audit file: {tmp_path}: No such device or address"]


def test_a_link_where_wal_is_carried_to(tmp_path: Path, elsewhere: Path) -> None:
    """A separate pg_wal is the server's account's: what that puts there in a segment's place is replaced."""
    data_directory, place = tmp_path / "data", tmp_path / "wal"
    (data_directory / "pg_wal/archive_status").mkdir(parents=True)
    place.mkdir()
    segment, done = "000000010000000000000003", "archive_status/000000010000000000000002.done"
    (data_directory / "pg_wal" / segment).write_text("wal")
    (data_directory / "pg_wal" / done).write_text("")
    (place / segment).symlink_to(elsewhere / "precious")
    found = SimpleNamespace(
        wal_link=str(place), wal_directory=str(place), directory=data_directory, owner_of_files=Owner.of(place)
    )
    link_wal(cast("RestoreState", found))
    assert (elsewhere / "precious").read_text() == "mine"
    assert (data_directory / "pg_wal" / segment).read_text() == "wal"
    assert not (place / segment).is_symlink()
    assert (place / done).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led to where the account may not go")
def test_a_link_to_what_is_not_the_accounts_own(tmp_path: Path, elsewhere: Path) -> None:
    """Neither emptied nor renamed: not as a tablespace's version directory, as pg_wal, nor as the data directory."""
    user = server_user()
    tmp_path.chmod(0o755)
    data_directory, place = tmp_path / "data", tmp_path / "place"
    for directory in (data_directory, place):
        directory.mkdir()
        os.chown(directory, user.uid, user.gid)
    target = Target(data_directory=data_directory, version_directory="PG_18", tablespaces={16390: place})
    for link in (place / "PG_18", data_directory / "pg_wal", tmp_path / "link"):
        link.symlink_to(elsewhere)
        os.chown(link, user.uid, user.gid, follow_symlinks=False)
        looked_at = replace(target, data_directory=link) if link.name == "link" else target
        with pytest.raises(RestoreRefused) as refused:
            directories_in_the_way(looked_at)
        assert refused.value.message == (f'{link} is a link of "{user.name}" to {elsewhere}, which belongs to "root"')
        os.chown(link, 0, 0, follow_symlinks=False)
        assert elsewhere in directories_in_the_way(looked_at)
        link.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led to where the account may not go")
def test_a_link_that_leads_to_another_link(tmp_path: Path, elsewhere: Path) -> None:
    """Root's own link is no better than what it leads to; the account's link to its own directory is as good."""
    user = server_user()
    last = tmp_path / "last"
    last.symlink_to(elsewhere)
    os.chown(last, user.uid, user.gid, follow_symlinks=False)
    (tmp_path / "first").symlink_to("last")
    with pytest.raises(RestoreRefused):
        refuse_foreign_links(tmp_path / "first")
    os.chown(elsewhere, user.uid, user.gid)
    refuse_foreign_links(tmp_path / "first")
    last.unlink()
    refuse_foreign_links(tmp_path / "first")
