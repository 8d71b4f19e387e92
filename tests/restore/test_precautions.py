"""What a restore makes sure of before it touches anything, and what it leaves when it cannot go on."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.recovery_config import wal_plan
from pgkeep.jobs.restore_request import RestoreRequest
from pgkeep.jobs.set_aside import Aside, move_all
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
