"""The disk fills up: the vault's during a backup, the target's during a restore."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem
from tests.restore.conftest import MakeKeeper
from tests.survive.job import Job, assert_server_is_left_alone, backup_ids


@pytest.fixture
def small_vault(lab_directory: Path) -> Iterator[Path]:
    """A file system of 64 MiB, in which the vault of the test's keeper will be."""
    with small_filesystem(64) as place:
        (lab_directory / "vault").symlink_to(place)
        yield place


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_the_vault_is_full(make_keeper: MakeKeeper, small_vault: Path, transport: str) -> None:
    """A backup that finds no room says so and leaves none taken; what is archived meanwhile and later is whole."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    ledger.transfer(20)
    first = keeper.backup("full", transport).report["backup_id"]
    # Nobody can compress it, and it makes no WAL.
    large = keeper.cluster.data_directory / "large"
    large.write_bytes(os.urandom(80 << 20))
    server_user().own(large)
    free = free_bytes(small_vault)
    outcome = keeper.run("backup", *keeper.backup_options("full", transport))
    assert outcome.status == 6
    assert len(outcome.refusal) == 2
    assert re.fullmatch(
        rf"error: cannot write {keeper.vault}/main/\S+: No space left on device, \d+ bytes are free", outcome.refusal[0]
    )
    assert outcome.refusal[1] == (
        "hint: free space in the vault's file system, or expire old backups; nothing of this backup is kept"
    )
    assert_server_is_left_alone(keeper.cluster)
    assert os.listdir(keeper.vault / "main/backups") == backup_ids(keeper) == [first]
    large.unlink()
    mark = ledger.mark("end")
    keeper.wait_until_archived()
    # Only WAL has come in the meantime.
    assert free_bytes(small_vault) > free - (4 << 20)
    assert keeper.must("verify", "--json").report["is_clean"]
    assert keeper.info()["gaps"] == []
    keeper.restore("--target-name=end").assert_is_at(mark)
    keeper.backup("full", transport)


def test_the_target_is_full(make_keeper: MakeKeeper) -> None:
    """A restore that runs out of room says so; what it left cannot be started, nor taken for a cluster."""
    keeper = make_keeper()
    mark = Ledger(keeper.cluster).mark("before")
    keeper.backup("full", "local")
    bin_dir = f"--bin-dir={keeper.cluster.installation.bin_dir}"
    with small_filesystem(24) as place:
        status, refusal = keeper.refuse(f"--pgdata-dir={place}/data")
        assert status == 8
        assert re.fullmatch(
            rf"error: not enough space for the restore on the file system of {place}: "
            r"\d+ bytes are needed, \d+ are free",
            refusal[0],
        )
        assert os.listdir(place) == []
    with small_filesystem(160) as place:
        data_directory, other = place / "data", place / "somebody"
        # Somebody takes the room after it was looked at.
        with Job(
            keeper, "restore", bin_dir, f"--pgdata-dir={data_directory}", at=("STOP", 1, "open", "/volume-")
        ) as job:
            job.wait_until_stopped()
            leave_free(other, 8 << 20)
            outcome = job.go_on()
        assert outcome.status == 1, outcome.lines
        assert re.fullmatch(
            rf"error: cannot write {data_directory}/\S+: No space left on device; \d+ bytes are still to be written",
            outcome.refusal[0],
        )
        assert outcome.refusal[1:] == ["hint: make room and run the restore again"]
        assert (data_directory / "pgkeep.restoring").exists()
        assert not (data_directory / "global/pg_control").exists()
        keeper.restore().assert_is_at(mark)
        other.unlink()
        keeper.must("restore", bin_dir, f"--pgdata-dir={data_directory}", "--no-start")
        assert not (data_directory / "pgkeep.restoring").exists()
        assert (data_directory / "global/pg_control").exists()


def free_bytes(place: Path) -> int:
    """Return how much room there is."""
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def leave_free(file: Path, size: int) -> None:
    """Let *file* take all the room of its file system but *size* bytes."""
    with suppress(OSError), file.open("wb") as taken:
        os.posix_fallocate(taken.fileno(), 0, free_bytes(file.parent) - size)
