"""What a restore makes sure of before it touches anything, and what it leaves when it cannot go on."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.old_directories import remove_old
from pgkeep.jobs.restoring.recovery_config import wal_plan
from pgkeep.jobs.restoring.request import RestoreRequest
from pgkeep.jobs.restoring.set_aside import Aside, move_all
from pgkeep.jobs.restoring.state import RestoreState
from tests.restore.holdings import Holdings, fork, head, lsn, plan


def request(where: str, **of_head: Any) -> RestoreRequest:
    """Return the request to restore a backup of /srv/data to *where*."""
    unused: Any = None
    return RestoreRequest(
        recovery=plan([head("full", stop=2, data_directory="/srv/data", **of_head)], Holdings({1: 3})),
        tail=unused,
        expected_bytes=0,
        data_directory=Path(where),
        archive=unused,
        vault_path=unused,
        cluster_name=unused,
        toolbox=unused,
        say=unused,
        warn=unused,
    )


@pytest.mark.parametrize(
    ("where", "transport", "host", "is_elsewhere"),
    [
        ("/srv/data", "local", socket.gethostname(), False),
        ("/srv/data", "local", "another.example", True),
        ("/srv/data", "stream", "another.example", False),
        ("/srv/copy", "stream", "", True),
    ],
)
def test_same_path_on_another_host(where: str, transport: str, host: str, is_elsewhere: bool) -> None:
    """A restore to the same path on another host is a copy too: it must not archive where the original does."""
    assert request(where, transport=transport, host=host).is_elsewhere == is_elsewhere


def test_wal_that_is_known_to_be_missing_is_not_needed() -> None:
    """With a hole before the switch to another timeline, only the WAL before the hole is indispensable."""
    recovery = plan([head("full", stop=2)], Holdings({1: 10, 2: 20}, fork(2, 1, 9)))
    assert wal_plan(recovery).needed[0] == ("000000010000000000000001", "000000010000000000000008")
    short = wal_plan(replace(recovery, archived_end=lsn(5)))
    assert short.needed == (("000000010000000000000001", "000000010000000000000004"),)


def test_second_directory_that_cannot_be_moved(tmp_path: Path) -> None:
    """When one of two directories cannot be renamed, the other one is back where it was."""
    (tmp_path / "data").mkdir()
    asides = [Aside(tmp_path / name, tmp_path / f"{name}.old") for name in ("data", "absent")]
    with pytest.raises(RestoreRefused) as refused:
        move_all(asides)
    assert refused.value.message == f"cannot rename {tmp_path}/absent out of the way: No such file or directory"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@contextmanager
def server_in(directory: Path) -> Iterator[None]:
    """Run a process that looks like the server of *directory*."""
    directory.mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=directory) as process:
        (directory / "postmaster.pid").write_text(f"{process.pid}\n{directory}\n")
        try:
            yield
        finally:
            process.kill()


def test_server_that_starts_while_its_directory_is_renamed(tmp_path: Path) -> None:
    """It would go on in tablespaces that are another cluster's by then: all is put back under its own name."""
    (tmp_path / "first").mkdir()
    asides = [Aside(tmp_path / name, tmp_path / f"{name}.old") for name in ("first", "data")]
    with server_in(tmp_path / "data"), pytest.raises(RestoreRefused) as refused:
        move_all(asides)
    assert refused.value.message == f"a server was started in {tmp_path}/data while it was renamed out of the way"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "first"]


def test_old_directory_in_which_a_server_runs(tmp_path: Path) -> None:
    """Somebody looks at what was there before: it stays, however old it is."""
    found = SimpleNamespace(
        moved=[], directory=tmp_path / "data", places={}, version_directory="PG_18", wal_directory=""
    )
    said: list[str] = []
    old = tmp_path / "data.old.20200101T000000Z"
    with server_in(old):
        remove_old(cast("RestoreState", found), retain_days=7, say=said.append)
    assert said == [f"{old} stays, though a restore moved it away more than 7 days ago: a server runs in it"]
    assert old.is_dir()
    remove_old(cast("RestoreState", found), retain_days=7, say=said.append)
    assert not old.exists()
