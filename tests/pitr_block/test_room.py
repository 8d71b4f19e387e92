"""What a chain needs besides its files: memory that does not grow with their number, and hardly any disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem
from tests.pitr_block.conftest import SUMMARIZING
from tests.pitr_block.scene import backup, backup_options
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.survive.test_memory import FILES, LIMIT_MIB, peak_mib

SAMPLE_SECONDS = 0.002
CONSTANT_BYTES = 2 << 20


@pytest.mark.timeout(7200 if FILES > 100_000 else 300)
def test_many_files_of_a_chain_take_no_more_memory(keeper: Keeper) -> None:
    """An incremental backup of very many files, and the restore of its chain, stay within 150 MiB."""
    base = keeper.cluster.data_directory / "base/5"
    for number in range(FILES // 4):
        (base / f"some_extension_file_{number:07}").write_text(f"{number}\n")
    server_user().own(base)
    place = [f"--bin-dir={keeper.cluster.installation.bin_dir}", f"--pgdata-dir={keeper.directory}/many"]
    peaks = {
        "full": peak_mib(keeper, "backup", *backup_options(keeper, "full")),
        "incremental": peak_mib(keeper, "backup", *backup_options(keeper, "incremental")),
        "restore": peak_mib(keeper, "restore", *place, "--no-start"),
    }
    assert [one["level"] for one in keeper.info()["backups"]] == ["Full", "Incremental"]
    assert max(peaks.values()) <= LIMIT_MIB, peaks


@contextmanager
def watched(place: Path) -> Iterator[list[int]]:
    """Yield a list of one number: the most bytes that are used on the file system of *place* meanwhile."""
    peak, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], used_bytes(place))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()


def used_bytes(place: Path) -> int:
    """Return how full a file system is: files that have no name any more count."""
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_a_chain_is_rolled_forward_without_room_of_its_own(make_keeper: MakeKeeper) -> None:
    """At no moment is there more on disk than the cluster and two hundredths of it, whatever the chain holds."""
    keeper = make_keeper(settings=SUMMARIZING)
    keeper.cluster.sql("CREATE TABLE big AS SELECT g, repeat('x', 200) AS t FROM generate_series(1, 150000) AS g")
    keeper.cluster.sql("VACUUM big")
    backup(keeper, "full")
    for number in range(1, 3):
        keeper.cluster.sql("UPDATE big SET t = repeat('y', 200) WHERE g %% 10 = %s AND g < 90000", [number])
        backup(keeper, "incremental")
    chain = keeper.info()["backups"]
    increments = sum(one["bytes"] for one in chain[1:])
    with small_filesystem(512) as place:
        os.chmod(place, 0o700)
        options = [f"--bin-dir={keeper.cluster.installation.bin_dir}", f"--pgdata-dir={place}/data", "--no-start"]
        with watched(place) as peak:
            keeper.must("restore", *options, env={"TMPDIR": str(place), "SQLITE_TMPDIR": str(place)})
        used = used_bytes(place)
    extra = peak[0] - used
    # Whoever staged an increment, or made a second copy, would need more.
    assert increments / 2 > used / 50 + CONSTANT_BYTES
    assert extra <= used / 50 + CONSTANT_BYTES, (peak[0], used)
