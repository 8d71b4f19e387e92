"""Chains restored from the vault: in place, gone on with after a kill, refused when a member is missing."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgkeep.jobs.restoring import plan
from tests.lab.ledger import Ledger, Mark
from tests.lab.server_user import server_directory, server_user, short_temporary_directory
from tests.pitr_block.scene import backup
from tests.restore.keeper import Keeper
from tests.survive.job import Job

pytestmark = pytest.mark.pg(">= 17")


@pytest.fixture
def lab_directory() -> Iterator[Path]:
    """An empty directory on disk, where large files are written past the page cache."""
    with server_directory(short_temporary_directory()) as path:
        yield path


def make_tablespace(keeper: Keeper, name: str) -> int:
    """Make a tablespace with a table in it; return its OID."""
    place = keeper.directory / name
    place.mkdir()
    server_user().own(place)
    keeper.cluster.sql(f"CREATE TABLESPACE {name} LOCATION '{place}'")
    keeper.cluster.sql(f"CREATE TABLE in_{name} TABLESPACE {name} AS SELECT g FROM generate_series(1, 9000) AS g")
    return int(keeper.cluster.value("SELECT oid::int FROM pg_tablespace WHERE spcname = %s", [name]))


def live(keeper: Keeper, ledger: Ledger, number: int) -> None:
    """Let rows change, a table come and one go."""
    keeper.cluster.sql("UPDATE big SET t = repeat('y', 200) WHERE g %% 4000 = %s", [number])
    keeper.cluster.sql(f"DROP TABLE IF EXISTS t{number - 1}")
    keeper.cluster.sql(f"CREATE TABLE t{number} AS SELECT g FROM generate_series(1, 3000) AS g")
    ledger.transfer(10)


def begin(keeper: Keeper) -> Ledger:
    """Make a cluster worth a chain."""
    keeper.cluster.sql("CREATE TABLE big AS SELECT g, repeat('x', 200) AS t FROM generate_series(1, 30000) AS g")
    return Ledger(keeper.cluster)


def backup_id(keeper: Keeper, level: str) -> str:
    """Make a backup; return its id."""
    return str(backup(keeper, level).report["backup_id"])


def whole_chain(
    keeper: Keeper, levels: tuple[str, ...] = ("full", "incremental", "incremental")
) -> tuple[list[str], Mark]:
    """Make a chain of a cluster that lives; return the ids, and the moment of the last backup."""
    ledger, ids = begin(keeper), []
    for number, level in enumerate(levels, start=1):
        live(keeper, ledger, number)
        mark = ledger.mark(f"at {number}")
        ids.append(backup_id(keeper, level))
    return ids, mark


def test_chain_comes_back_at_each_of_its_ends(major: int, keeper: Keeper) -> None:
    """Full, Incremental, Differential and Incremental: every row, a new tablespace elsewhere, no dropped one."""
    ledger = begin(keeper)
    doomed = make_tablespace(keeper, "doomed")
    full = backup_id(keeper, "full")
    live(keeper, ledger, 1)
    keeper.cluster.sql("DROP TABLE in_doomed")
    keeper.cluster.sql("DROP TABLESPACE doomed")
    space = make_tablespace(keeper, "later")
    first_mark = ledger.mark("first")
    first = backup_id(keeper, "incremental")
    live(keeper, ledger, 2)
    differential = backup_id(keeper, "differential")
    live(keeper, ledger, 3)
    keeper.cluster.sql("DELETE FROM in_later WHERE g % 100 = 0")
    last_mark = ledger.mark("last")
    last = backup_id(keeper, "incremental")

    map_first = f"--tablespace-map={space}:{keeper.directory}/mapped-first"
    at_first = keeper.restore(f"--backup-id={first}", "--target-immediate", map_first)
    assert f"  rolled forward in place: {full}, {first}" in at_first.outcome.lines
    at_first.assert_is_at(first_mark)
    at_first.stop()

    map_last = f"--tablespace-map={space}:{keeper.directory}/mapped-last"
    restored = keeper.restore(map_last)
    assert f"  rolled forward in place: {full}, {differential}, {last}" in restored.outcome.lines
    restored.assert_is_at(last_mark)
    assert (restored.data_directory / f"pg_tblspc/{space}").readlink() == keeper.directory / "mapped-last"
    assert not (restored.data_directory / f"pg_tblspc/{doomed}").exists()
    assert not [path for path in restored.data_directory.rglob("*") if path.name.startswith("INCREMENTAL.")]
    restored.stop()
    checksums = keeper.cluster.installation.program("pg_checksums")
    server_user().run([checksums, "--check", "-D", restored.data_directory])


class OftenSyncedJob(Job):
    """Makes each backup of a chain durable before the next one."""

    signalled = Path(__file__).with_name("syncing_often.py")


@pytest.mark.parametrize(
    ("kind", "durable", "last_point"),
    [(OftenSyncedJob, (0, 1, 1), (5, "os.rename", r"state\.json")), (Job, (0, 0, 0), (12, "os.truncate", ""))],
    ids=["each is synced", "synced at the end"],
)
def test_restore_goes_on_behind_what_is_durable(
    major: int, keeper: Keeper, kind: type[Job], durable: tuple[int, ...], last_point: tuple[int, str, str]
) -> None:
    """Killed at an increment's first block, at a later one, and later still: all rows come back."""
    ids, mark = whole_chain(keeper)
    place = keeper.directory / "again"
    arguments = [f"--pgdata-dir={place}", f"--bin-dir={keeper.cluster.installation.bin_dir}"]
    points = [(1, "os.truncate", ""), (3, "os.truncate", ""), last_point]
    for count, point in zip(durable, points, strict=True):
        with kind(keeper, "restore", *arguments, "--no-start", at=("KILL", *point)) as job:
            outcome = job.end()
        assert outcome.status == -signal.SIGKILL, f"{point} was not reached\n" + "\n".join(outcome.lines)
        said = [line for line in outcome.lines if line.startswith("  applied already: ")]
        assert said == [f"  applied already: {', '.join(ids[:count])}"][: bool(count)]
    restored = keeper.restore(to="again", start=False)
    assert restored.outcome.lines.count(f"applied backup {ids[2]}, 3 of 3") == 1
    restored.start()
    restored.wait_until_promoted()
    restored.assert_is_at(mark)


@pytest.mark.parametrize(
    ("begun", "applied", "expected"),
    [
        (["F", "I", "J"], ["F", "I"], ("F", "I")),
        (["F", "I"], ["F"], ("F",)),
        (["F", "K"], ["F"], ()),
        (["F", "I", "J", "K"], ["F"], ()),
        # A state from before chains were written down.
        ([], ["F", "I"], ("F", "I")),
        ([], ["G"], ()),
    ],
)
def test_only_what_the_same_chain_left_is_gone_on_with(
    begun: list[str], applied: list[str], expected: tuple[str, ...]
) -> None:
    """Whatever another chain may have written, the Full takes its place."""
    request: Any = SimpleNamespace(unfinished=SimpleNamespace(chain=begun, applied=applied), chain=("F", "I", "J"))
    target: Any = SimpleNamespace(is_marked=True)
    assert plan._applied(request, target) == expected


def test_chain_with_a_missing_member_is_refused(keeper: Keeper) -> None:
    """The refusal names what is missing, and nothing is touched; the backups below the gap can be restored."""
    ids, _ = whole_chain(keeper)
    shutil.rmtree(keeper.vault / keeper.name / "backups" / ids[1])
    status, lines = keeper.refuse(f"--pgdata-dir={keeper.directory / 'nowhere'}")
    assert (status, lines) == (
        8,
        [
            f"error: backup {ids[2]} cannot be restored: backup {ids[2]} builds on backup {ids[1]}, which is not there",
            "hint: restore an older backup, whose chain is whole; and make a Full",
        ],
    )
    assert not list(keeper.directory.glob("nowhere*"))
    restored = keeper.restore(f"--backup-id={ids[0]}")
    assert restored.value("SELECT count(*) FROM big") == 30000


def test_info_says_what_a_chain_lacks(keeper: Keeper) -> None:
    """What cannot be restored without the member that is gone opens no window, and the cluster is not called sound."""
    ids, _ = whole_chain(keeper)
    backups = keeper.vault / keeper.name / "backups"
    sound = keeper.info()
    assert (sound["status"], sound["windows"][0]["base"]) == ("ok", ids[0])
    assert [held["missing"] for held in sound["backups"]] == ["", "", ""]
    shutil.move(backups / ids[1], keeper.directory / ids[1])
    info = keeper.info()
    [window] = info["windows"]
    assert (info["status"], window["base"], window["newest_base"]) == ("damaged", ids[0], ids[0])
    assert [held["missing"] for held in info["backups"]] == ["", ids[1]]
    shutil.move(keeper.directory / ids[1], backups / ids[1])
    assert keeper.info() == sound

    shutil.rmtree(backups / ids[0])
    info = keeper.info()
    assert (info["status"], info["windows"]) == ("damaged", [])
    assert [held["missing"] for held in info["backups"]] == [ids[0], ids[0]]
    text = keeper.must("info").stdout
    assert f"based on {ids[1]}, MISSING: backup {ids[0]}, which it needs\n" in text
