"""The disk fills up at each place that a restore writes to: it says so, goes on when there is room, or is given up."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pgkeep.datadir.owner import Owner
from pgkeep.errors import PgkeepError
from pgkeep.jobs.restoring.clear_away import link_wal
from pgkeep.jobs.restoring.state import RestoreState
from tests.lab.cluster import free_port
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Outcome, Restored
from tests.restore.test_files import make_directory
from tests.restore.unfinished import call
from tests.survive.job import Job, Point
from tests.survive.test_disk_full import leave_free

AGAIN = "hint: make room and run the restore again"


def fill_up_at(keeper: Keeper, place: Path, at: Point, *arguments: str, left: int = 0) -> Outcome:
    """Run a restore to its end, which takes the room of the file system *place* but *left* bytes *at* a point."""
    filler = place / "somebody"
    with Job(keeper, "restore", f"--bin-dir={keeper.cluster.installation.bin_dir}", *arguments, at=at) as job:
        job.wait_until_stopped()
        fill(filler, left)
        outcome = job.go_on()
    filler.unlink()
    return outcome


def fill(filler: Path, left: int) -> None:
    """Let *filler* take all the room of its file system but *left* bytes."""
    leave_free(filler, left)
    assert os.statvfs(filler.parent).f_bavail * os.statvfs(filler.parent).f_frsize <= left + 4096


def use_up_inodes(directory: Path) -> None:
    """Make empty files in *directory* until there is no room for another one."""
    for number in itertools.count():
        (directory / str(number)).touch()


def test_the_state_and_then_the_replay_find_no_room(make_keeper: MakeKeeper) -> None:
    """The files are there and cannot be recorded, or cannot be replayed on: the same restore goes on both times."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("target")
    keeper.wait_until_archived()
    with small_filesystem(192) as place:
        data = place / "data"
        port = free_port()
        restored = Restored(keeper.cluster.installation, data, port, Outcome(0, "", []))
        keeper.restored.append(restored)
        arguments = [f"--pgdata-dir={data}", "--target-name=target", f"--port={port}", "--start"]
        recorded = ("STOP", 4, "open", r"\.state\.json\.")
        outcome = fill_up_at(keeper, place, recorded, *arguments)
        assert (outcome.status, outcome.refusal) == (
            1,
            [
                f"error: cannot write {data}.pgkeep-restore/state.json: No space left on device",
                "hint: make room and run the same command again",
            ],
        )
        assert not (data / "global/pg_control").exists()
        started = ("STOP", 1, "subprocess.Popen", "/postgres', '-D'")
        outcome = fill_up_at(keeper, place, started, *arguments, left=4 << 20)
        restored.guard()
        assert any(line.startswith("going on with the restore ") for line in outcome.lines)
        assert outcome.status == 9, outcome.lines
        assert re.match(
            rf"hint: the file system of {data} has \d+ bytes left: make room, and pgkeep finish goes on; see ",
            outcome.refusal[1],
        )
        assert restored.postmaster() == []
        finished = call("finish", data)
        restored.guard()
        assert finished.status == 0, "\n".join(finished.lines)
        restored.assert_is_at(mark)
        restored.stop()
        assert call("rollback", data, "--discard").status == 0
        assert list(data.iterdir()) == []


def test_a_tablespace_finds_no_room(make_keeper: MakeKeeper) -> None:
    """The file that did not fit is named; the restore goes on when there is room, and can be given up."""
    keeper = make_keeper()
    location = make_directory(keeper.directory / "fast")
    server_user().own(location)
    keeper.cluster.sql(f"CREATE TABLESPACE fast LOCATION '{location}'")
    keeper.cluster.sql("CREATE TABLE large (n int, t text) TABLESPACE fast")
    keeper.cluster.sql("INSERT INTO large SELECT n, repeat('x', 900) FROM generate_series(1, 9000) n")
    keeper.backup("full", "local")
    with small_filesystem(96) as place:
        fast, data = place / "fast", keeper.directory / "copy"
        arguments = [f"--pgdata-dir={data}", f"--tablespace-map=fast:{fast}"]
        laid_down = ("STOP", 1, "open", "/volume-")
        outcome = fill_up_at(keeper, place, laid_down, *arguments, left=1 << 20)
        assert outcome.status == 1, outcome.lines
        assert re.fullmatch(
            rf"error: cannot write {fast}/PG_\S+: No space left on device; \d+ bytes are still to be written",
            outcome.refusal[0],
        )
        assert outcome.refusal[1:] == [AGAIN]
        keeper.must("restore", f"--bin-dir={keeper.cluster.installation.bin_dir}", *arguments, "--no-start")
        [version] = fast.iterdir()
        assert sum(path.stat().st_size for path in version.rglob("*")) > 8 << 20
        assert call("rollback", data).status == 0
        assert list(data.iterdir()) == list(fast.iterdir()) == []


def test_what_is_in_the_way_finds_no_room_for_its_new_name(keeper: Keeper) -> None:
    """On a mount point without a free inode nothing is moved; with one the same restore goes on, and can be undone."""
    Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with small_filesystem(256, inodes=3000) as place:
        bin_dir = f"--bin-dir={keeper.cluster.installation.bin_dir}"
        arguments = [bin_dir, f"--pgdata-dir={place}", "--target-immediate"]
        keeper.must("restore", *arguments, "--no-start")
        # Another restore, and not the rest of that one.
        server_user().run(["rm", "-rf", f"{place}.pgkeep-restore"])
        before = sorted(path.name for path in place.iterdir())
        fillers = make_directory(place / "pg_replslot" / "fillers")
        server_user().own(fillers)
        try:
            with pytest.raises(OSError, match="No space left"):
                use_up_inodes(fillers)
            status, refusal = keeper.refuse(*arguments[1:], "--overwrite-existing")
            assert (status, refusal[0]) == (
                8,
                f"error: cannot rename {place} out of the way: No space left on device",
            )
            assert sorted(path.name for path in place.iterdir()) == before
            for path in fillers.iterdir():
                path.unlink()
            fillers.rmdir()
            keeper.must("restore", *arguments, "--overwrite-existing", "--no-start")
            [old] = place.glob("pgkeep.old.*")
            assert (old / "global/pg_control").exists()
            assert call("rollback", place).status == 0
            assert sorted(path.name for path in place.iterdir()) == before
        finally:
            for path in place.parent.glob(f"{place.name}.*"):
                server_user().run(["rm", "-rf", path])


def test_a_separate_pg_wal_finds_no_room(tmp_path: Path) -> None:
    """What was carried over is carried over again when there is room, and nothing is linked before that."""
    data, segment = tmp_path / "data", "000000010000000000000003"
    (data / "pg_wal").mkdir(parents=True)
    (data / "pg_wal" / segment).write_bytes(b"w" * (2 << 20))
    with small_filesystem(4) as place:
        wal = place / "wal"
        state = SimpleNamespace(
            wal_link=str(wal), wal_directory=str(wal), directory=data, owner_of_files=Owner(os.geteuid(), os.getegid())
        )
        fill(place / "somebody", 1 << 20)
        with pytest.raises(PgkeepError) as failed:
            link_wal(cast("RestoreState", state))
        assert failed.value.message == f"cannot move pg_wal to {wal}: No space left on device"
        assert f"hint: {failed.value.hint}" == AGAIN
        assert not (data / "pg_wal").is_symlink()
        (place / "somebody").unlink()
        link_wal(cast("RestoreState", state))
        assert (data / "pg_wal").is_symlink()
        assert (wal / segment).read_bytes() == b"w" * (2 << 20)
