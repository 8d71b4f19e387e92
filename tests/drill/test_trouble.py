"""What goes wrong in a drill: it is told, kept as evidence where it is the backup's, and leaves nothing behind."""

from __future__ import annotations

import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.scratch import Scratch
from pgkeep.jobs.restoring.state import RestoreState
from tests.drill.drill import drill, evidence, job, life_of, proved
from tests.drill.test_drill import rows_wanted
from tests.lab.guardian import Guardian
from tests.lab.ledger import Ledger
from tests.lab.smallfs import small_filesystem
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.survive.job import Job
from tests.survive.test_damage import flip
from tests.survive.test_disk_full import leave_free

STATE = r"state\.json"
KILLED = [("KILL", 300, "open", r"^\d+ "), ("KILL", 6, "os.rename", STATE)]
"""While files are laid down, and while the server runs, promoted."""


def runs(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has seen off yet has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_what_ends_before_a_hole_does_not_prove_the_newest_state(make_keeper: MakeKeeper) -> None:
    """WAL behind a hole is lost to a recovery: a drill to the end says so, one to a moment before it proves that."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(2)
    mark = ledger.mark("before")
    keeper.wait_until_archived()
    for _ in range(2):
        ledger.transfer(1)
        keeper.wait_until_archived()
    archived = sorted((keeper.vault / "main" / "wal").rglob("0*.zst"))
    archived[-2].unlink()
    outcome = drill(keeper)
    assert outcome.status == 8, "\n".join(outcome.lines)
    assert ", and later WAL is held: " in outcome.refusal[0]
    assert [found["result"] for found in evidence(keeper)] == ["failed"]
    assert proved(keeper, f"--target-lsn={mark.lsn}")["result"] == "proved"


def test_a_damaged_backup_is_not_proved(make_keeper: MakeKeeper) -> None:
    """Nor are a row too few and WAL that is not there: the drill fails, and the vault keeps what failed, and how."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    backup_id = keeper.backup("full", "local").report["backup_id"]
    ledger.transfer(3)
    keeper.wait_until_archived()
    sql = rows_wanted(keeper.directory / "rows.sql", ledger, entries=3)
    proved(keeper, "--verify-amcheck-after", "--verify-checksum-after", f"--post-restore-sql={sql}")
    [volume] = (keeper.vault / "main" / "backups" / backup_id).glob("volume-00.tar.zst")
    flip(volume, volume.stat().st_size // 2)
    outcome = drill(keeper)
    assert outcome.status == 7, "\n".join(outcome.lines)
    assert list((keeper.directory / "scratch").iterdir()) == []
    [done, failed] = evidence(keeper)
    assert (done["target"], done["result"]) == ("latest", "proved")
    assert (failed["backup_id"], failed["result"], failed["timeline"]) == (backup_id, "failed", 0)
    assert outcome.refusal[1].startswith(f"hint: not proved, see {keeper.vault}/main/proofs/")
    flip(volume, volume.stat().st_size // 2)
    sql = rows_wanted(sql, ledger, entries=4)
    outcome = drill(keeper, f"--post-restore-sql={sql}")
    assert (outcome.status, list((keeper.directory / "scratch").iterdir())) == (12, [])
    outcome = drill(keeper, "--target-lsn=7F/0")
    assert outcome.status == 8, "\n".join(outcome.lines)
    assert [entry["result"] for entry in evidence(keeper)] == ["proved", "failed", "failed", "failed"]
    assert evidence(keeper)[-1]["target"] == "lsn 7F/00000000"


def test_a_killed_drill_is_cleared_by_the_next(make_keeper: MakeKeeper) -> None:
    """Killed without a server and with one: the next one removes it, and the live server goes on."""
    keeper = make_keeper(archive="vault")
    ledger, scratch = Ledger(keeper.cluster), keeper.directory / "scratch"
    keeper.backup("full", "local")
    ledger.transfer(3)
    keeper.wait_until_archived()
    before = life_of(keeper.cluster)
    for point in KILLED:
        with job(keeper, at=point) as killed:
            assert killed.end().status == -signal.SIGKILL, "\n".join(killed.lines)
        assert (scratch / "pgkeep-drill.json").exists()
        assert (scratch / "data").exists()
    state = RestoreState.parse((scratch / "data.pgkeep-restore" / "state.json").read_bytes())
    pid = int((scratch / "data" / "postmaster.pid").read_text().split()[0])
    guardian = Guardian(pid, how=signal.SIGQUIT)
    assert runs(pid)
    assert (Path(state.access) / ".s.PGSQL.5432").exists()
    outcome = drill(keeper)
    guardian.dismiss()
    assert outcome.status == 0, "\n".join(outcome.lines)
    assert f"removed what a drill has left in {scratch}" in outcome.lines
    assert not Path(state.access).exists()
    assert not runs(pid)
    assert list(scratch.iterdir()) == []
    assert [entry["result"] for entry in evidence(keeper)] == ["proved"]
    assert life_of(keeper.cluster) == before
    ledger.transfer(1)


def test_a_full_scratch_disk(make_keeper: MakeKeeper) -> None:
    """Too little room is refused before anything is there; a disk that fills up meanwhile fails the drill, emptied."""
    keeper = make_keeper(archive="vault")
    Ledger(keeper.cluster).transfer(3)
    keeper.backup("full", "local")
    with small_filesystem(80) as place:
        outcome = drill(keeper, scratch=place / "scratch")
        assert outcome.status == 8
        assert outcome.refusal[0].startswith("error: not enough space for the restore on the file system of ")
        assert list((place / "scratch").iterdir()) == []
        assert evidence(keeper) == []
    with small_filesystem(192) as place:
        command = [f"--scratch-dir={place}/scratch", f"--bin-dir={keeper.cluster.installation.bin_dir}"]
        with Job(keeper, "drill", *command, at=("STOP", 1, "open", "/volume-")) as stopped:
            stopped.wait_until_stopped()
            leave_free(place / "somebody", 4 << 20)
            outcome = stopped.go_on()
        assert outcome.status == 1, "\n".join(outcome.lines)
        assert "No space left on device" in outcome.refusal[0]
        assert f"the file system of {place}/scratch has " in outcome.refusal[1]
        assert list((place / "scratch").iterdir()) == []
        assert [entry["result"] for entry in evidence(keeper)] == ["failed"]


def refusal(scratch: Path, *others: Path) -> str:
    """Ask for a scratch directory that must be refused; return what is said."""

    def ask() -> None:
        place = Scratch(scratch)
        place.check_apart(others)
        with place.held(cluster="main", began="", owner=None, say=lambda _: None):
            pass

    with pytest.raises(RestoreRefused) as caught:
        ask()
    return str(caught.value)


def test_a_scratch_directory_is_apart(tmp_path: Path) -> None:
    """It is no other directory, lies in none and holds none, links or not; nor does it lie in a data directory."""
    vault, data, link = tmp_path / "vault", tmp_path / "data", tmp_path / "link"
    (data / "global").mkdir(parents=True)
    (data / "global" / "pg_control").touch()
    vault.mkdir()
    link.symlink_to(vault)
    for place in (vault, vault / "main" / "x", link / "x", tmp_path):
        assert refusal(place, vault) == (
            f"the scratch directory {place.resolve()} and {vault} are not apart, expected a directory of its own"
        )
    assert refusal(data / "base") == f"the scratch directory {data}/base lies in the data directory {data}"
    assert list(vault.iterdir()) == []


def test_only_a_directory_of_its_own(keeper: Keeper) -> None:
    """What is in use, marked for elsewhere, or another drill's is not touched; a drill that is ended tidies up."""
    keeper.backup("full", "local")
    scratch, other = keeper.directory / "scratch", keeper.directory / "other"
    scratch.mkdir()
    (scratch / "precious").write_text("precious")
    foreign = f"the scratch directory {scratch} holds what no drill has left there: "
    assert refusal(scratch) == f"{foreign}precious"
    outcome = drill(keeper)
    assert (outcome.status, outcome.refusal[0]) == (8, f"error: {foreign}precious")
    with job(keeper, f"--scratch-dir={other}", at=("STOP", 1, "open", "/volume-")) as working:
        working.wait_until_stopped()
        assert refusal(other) == f"another drill works in {other}"
        # A mark that was copied names the directory that it was copied from.
        shutil.copy(other / "pgkeep-drill.json", scratch)
        assert refusal(scratch) == f"{foreign}precious"
        working.kill()
    with job(keeper, f"--scratch-dir={keeper.directory}/third", at=("TERM", 1, "open", "/volume-")) as ended:
        assert ended.end().status == 128 + signal.SIGTERM, "\n".join(ended.lines)
        assert list((keeper.directory / "third").iterdir()) == []
    (other / "precious").write_text("precious")
    assert refusal(other) == f"the scratch directory {other} holds what no drill has left there: precious"
    for place in (scratch, other):
        assert (place / "precious").read_text() == "precious"
    assert (other / "data").is_dir()
    assert evidence(keeper) == []
