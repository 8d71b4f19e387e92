"""A tablespace is made while a backup begins: it is in the backup whole, or comes from replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.restore.test_files import rows
from tests.survive.job import Job, Point

PLANNED: Point = ("STOP", 1, "os.mkdir", "/backups/")
STARTED: Point = ("STOP", 2, "os.scandir", "/pg_tblspc")


def make_tablespace(cluster: Cluster, place: Path) -> int:
    """Make a tablespace with a table in it, on disk; return its OID."""
    place.mkdir()
    server_user().own(place)
    cluster.sql(f"CREATE TABLESPACE late LOCATION '{place}'")
    cluster.sql("CREATE TABLE in_late TABLESPACE late AS SELECT generate_series(1, 3000) AS n")
    cluster.sql("CHECKPOINT")
    return int(cluster.value("SELECT oid::int FROM pg_tablespace WHERE spcname = 'late'"))


def restore_and_compare(keeper: Keeper, place: Path) -> None:
    """Restore with the tablespace elsewhere, and compare."""
    expected = rows(keeper.cluster)
    restored = keeper.restore(f"--tablespace-map=late:{place}")
    assert restored.digests() == expected
    assert restored.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'late'") == str(place)
    assert any(place.rglob("[0-9]*")), "the tablespace has its files in its new place"


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_a_tablespace_made_after_the_plan_is_recorded(
    make_keeper: MakeKeeper, lab_directory: Path, transport: str
) -> None:
    """Between the first questions and the start of the backup: the record knows it, by name and place."""
    keeper = make_keeper()
    with Job(keeper, "backup", *keeper.backup_options("full", transport), at=PLANNED) as job:
        job.wait_until_stopped()
        oid = make_tablespace(keeper.cluster, lab_directory / "late")
        outcome = job.go_on()
    assert (outcome.status, outcome.warnings) == (0, [])
    assert keeper.plan(f"--pgdata-dir={lab_directory}/copy", f"--tablespace-map=late:{lab_directory}/new").count(
        f"tablespace {oid}: into {lab_directory}/new"
    )
    restore_and_compare(keeper, lab_directory / "new")


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_a_tablespace_dropped_after_the_plan_is_not_missed(
    make_keeper: MakeKeeper, lab_directory: Path, transport: str
) -> None:
    """Between the first questions and the start of the backup: nobody asks where it is."""
    keeper = make_keeper()
    make_tablespace(keeper.cluster, lab_directory / "late")
    with Job(keeper, "backup", *keeper.backup_options("full", transport), at=PLANNED) as job:
        job.wait_until_stopped()
        keeper.cluster.sql("DROP TABLE in_late")
        keeper.cluster.sql("DROP TABLESPACE late")
        outcome = job.go_on()
    assert (outcome.status, outcome.warnings) == (0, [])
    assert keeper.restore().digests() == rows(keeper.cluster)


def test_a_tablespace_made_after_the_start_begins_the_backup_again(
    make_keeper: MakeKeeper, lab_directory: Path
) -> None:
    """Between the start and the walk: begun again, the backup has the tablespace in its files and in its map."""
    keeper = make_keeper()
    with Job(keeper, "backup", *keeper.backup_options("full", "local"), at=STARTED) as job:
        job.wait_until_stopped()
        make_tablespace(keeper.cluster, lab_directory / "late")
        outcome = job.go_on()
    assert (outcome.status, outcome.warnings) == (0, [])
    assert "tablespaces were made or dropped while the backup began: it begins again" in outcome.lines
    restore_and_compare(keeper, lab_directory / "new")


def test_an_incremental_knows_the_tablespaces_that_its_wal_makes(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """Between the first questions and the end of its WAL: a restore into the original's place is refused."""
    keeper = make_keeper()
    keeper.backup("full", "local")
    with Job(keeper, "backup", *keeper.backup_options("incremental", "local"), at=PLANNED) as job:
        job.wait_until_stopped()
        oid = make_tablespace(keeper.cluster, lab_directory / "late")
        assert job.go_on().status == 0
    keeper.cluster.stop()
    (keeper.cluster.data_directory / "pg_tblspc" / str(oid)).unlink()
    _, [error, _] = keeper.refuse(f"--pgdata-dir={lab_directory}/copy", "--start")
    assert error.startswith(f'error: the replay would make tablespace {oid} "late" in {lab_directory}/late, which ')


@pytest.mark.parametrize("target", ["--skip-wal-replay", "--recovery-target-action=promote"])
def test_a_tablespace_made_while_files_are_copied_is_replayed_into_no_original(
    make_keeper: MakeKeeper, lab_directory: Path, target: str
) -> None:
    """The backup's own WAL makes it, whatever the target: a copy beside the original is refused."""
    keeper = make_keeper()
    database = keeper.cluster.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    options = keeper.backup_options("full", "local")
    with Job(keeper, "backup", *options, at=("STOP", 1, "open", f"/base/{database}/")) as job:
        job.wait_until_stopped()
        oid = make_tablespace(keeper.cluster, lab_directory / "late")
        assert job.go_on().status == 0
    before = rows(keeper.cluster)
    # The error is that of the record, not that of the link that a running original has.
    assert keeper.refuse(f"--pgdata-dir={lab_directory}/copy", "--start", target)[1][0] == (
        f'error: the replay would make tablespace {oid} "late" in {lab_directory}/late, which exists on this host and '
        "is not part of this restore"
    )
    assert rows(keeper.cluster) == before
