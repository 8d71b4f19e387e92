"""What ``wipe_pgdata`` removes is what phase 1 looked at, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring import wipe
from tests.lab.server_user import server_user
from tests.lab.smallfs import mount, unmount
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.restore.test_files import make_directory
from tests.restore.unfinished import InPlace
from tests.survive.job import Job

BEGUN = ("STOP", 1, "os.rename", r"state\.json")
"""The end of phase 1: everything was looked at, and nothing was touched."""


def test_what_is_wiped_is_what_was_looked_at(make_keeper: MakeKeeper) -> None:
    """Another directory, another cluster, a server in it: refused at the last moment, with every file in its place."""
    before = InPlace(make_keeper)
    arguments = [*before.arguments, "--overwrite-existing", "--wipe-pgdata", "--start"]
    data, elsewhere = before.data, before.data.with_name("elsewhere")
    with Job(before.keeper, "restore", *arguments, at=BEGUN) as job:
        job.wait_until_stopped()
        data.rename(elsewhere)
        (make_directory(data) / "precious").write_text("mine")
        outcome = job.go_on()
    assert outcome.status == 8
    assert outcome.refusal[0] == (
        f"error: {data} was about to be emptied, and it is not the directory any more that this restore looked at"
    )
    assert (data / "precious").read_text() == "mine"
    (data / "precious").unlink()
    data.rmdir()
    elsewhere.rename(data)

    # Phase 1 finds no server, and the first look before the wipe does not either.
    with Job(before.keeper, "restore", *arguments, at=("STOP", 1, "os.rename", "pg_control.pgkeep-wiped")) as job:
        job.wait_until_stopped()
        before.cluster.start()
        outcome = job.go_on()
    assert outcome.status == 8
    assert outcome.refusal == [
        f"error: a server was started in {data}, which was about to be emptied",
        "hint: nothing was removed: stop it, and what starts it, and restore again",
    ]
    before.cluster.sql("CHECKPOINT")
    assert before.cluster.value("SELECT answer FROM after_the_accident") == 42
    before.cluster.stop()

    # Nothing was removed yet, so there is a way back, which leads to where everything is.
    assert before.call("rollback").status == 0
    before.assert_runs_as_before()

    # Whoever kills it there leaves something that no server starts in, and the same restore goes on.
    before.kill_at((1, "os.remove", r"^PG_VERSION "), "--wipe-pgdata")
    assert not (data / "global/pg_control").exists()
    before.restore("--start", "--wipe-pgdata")
    before.assert_is_before_the_accident()


def test_a_control_file_that_cannot_be_put_back_is_named(tmp_path: Path) -> None:
    """The refusal stays what it is; where the control file is that was hidden meanwhile, is a warning."""
    control_file = tmp_path / "global" / "pg_control"
    hidden = control_file.with_name("pg_control.pgkeep-wiped")
    control_file.parent.mkdir()
    control_file.write_bytes(b"damaged")
    state: Any = SimpleNamespace(directory=tmp_path, wiped=[os.path.realpath(tmp_path)])
    warnings: list[str] = []

    def refuse() -> None:
        with wipe._without_server(state, warnings.append):
            assert not control_file.exists()
            control_file.mkdir()
            raise RestoreRefused("not now")

    with pytest.raises(RestoreRefused, match="not now"):
        refuse()
    assert warnings == [
        f"cannot rename {hidden} to {control_file}: Is a directory; without it no server starts there",
    ]
    assert hidden.read_bytes() == b"damaged"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system where others see it")
def test_a_file_system_within_what_is_wiped(keeper: Keeper) -> None:
    """What somebody mounted in the data directory is not removed with it: in phase 1, and at the last moment."""
    keeper.backup("full", "local")
    keeper.cluster.stop()
    data = keeper.cluster.data_directory
    arguments = ["--overwrite-existing", "--wipe-pgdata", "--no-start"]
    place = make_directory(data / "mounted here")
    error = f"error: {place} is a mount point within {data}: wipe_pgdata would remove what is in it"

    def mount_here() -> None:
        mount(place, f"size=1m,uid={server_user().uid},gid={server_user().gid}")
        (place / "precious").write_text("mine")

    mount_here()
    try:
        assert keeper.refuse(*arguments)[1][0] == error
        assert (place / "precious").read_text() == "mine"
        unmount(place)
        bin_dir = f"--bin-dir={keeper.cluster.installation.bin_dir}"
        with Job(keeper, "restore", bin_dir, *arguments, at=BEGUN) as job:
            job.wait_until_stopped()
            mount_here()
            outcome = job.go_on()
        assert (outcome.status, outcome.refusal[0]) == (8, error)
        assert (place / "precious").read_text() == "mine"
        assert (data / "global/pg_control").exists()
    finally:
        unmount(place)
    keeper.must("restore", bin_dir, *arguments)
    assert not place.exists()
