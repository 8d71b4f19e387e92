"""A backup without some tablespaces: what comes back, and what is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.restore.conftest import MakeKeeper
from tests.restore.test_files import make_directory, rows


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file beneath *directory* with its content."""
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_a_copy_without_a_tablespace_leaves_the_originals_alone(
    make_keeper: MakeKeeper, lab_directory: Path, transport: str
) -> None:
    """The copy replays changes of a tablespace that was left out, and none of them reaches the original's files."""
    keeper = make_keeper(archive="vault")
    cluster, place = keeper.cluster, make_directory(lab_directory / "scratch")
    cluster.sql(f"CREATE TABLESPACE scratch LOCATION '{place}'")
    cluster.sql("CREATE TABLE left_out TABLESPACE scratch AS SELECT n, 1 AS x FROM generate_series(1, 3000) AS n")
    cluster.sql("CREATE TABLE kept AS SELECT generate_series(1, 3000) AS n")
    report = keeper.backup("full", transport, "--exclude-tablespace=scratch", "--allow-incomplete").report
    cluster.sql("INSERT INTO left_out SELECT n, 2 FROM generate_series(1, 3000) AS n")
    cluster.sql("UPDATE kept SET n = -n")
    target = cluster.value("SELECT pg_current_wal_insert_lsn()::text")
    keeper.wait_until_archived()
    cluster.sql("TRUNCATE left_out")
    cluster.sql("INSERT INTO left_out VALUES (7, 7)")
    expected = rows(cluster)
    cluster.stop()
    before = contents(place)
    restored = keeper.restore(f"--backup-id={report['backup_id']}", f"--target-lsn={target}")
    assert restored.value("SELECT sum(n) FROM kept") == -3000 * 3001 // 2
    assert contents(place) == before
    # Whoever drops what is missing drops nothing of the original's either.
    with restored.connect() as connection:
        connection.execute("DROP TABLE left_out")
        connection.execute("CHECKPOINT")
        connection.execute("DROP TABLESPACE scratch")
    assert contents(place) == before
    cluster.start()
    assert rows(cluster) == expected


def test_expire_says_that_incomplete_backups_do_not_expire(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """Where every backup leaves a tablespace out, none goes and a warning says why; a whole one lets them go."""
    keeper = make_keeper()
    keeper.cluster.sql(f"CREATE TABLESPACE scratch LOCATION '{make_directory(lab_directory / 'scratch')}'")
    ids = [
        keeper.backup("full", "local", "--exclude-tablespace=scratch", "--allow-incomplete").report["backup_id"]
        for _ in range(2)
    ]
    outcome = keeper.must("expire", "--keep=1", "--json")
    note = (
        "no pitr backup expires, since none of them is clean: 2 without all tablespaces (exclude_tablespace); "
        "a clean Full is what the retention counts"
    )
    assert (outcome.warnings, outcome.report["notes"], outcome.report["removed"]) == ([note], [note], [])
    keeper.backup("full", "local")
    outcome = keeper.must("expire", "--keep=1", "--json")
    assert (outcome.warnings, outcome.report["notes"]) == ([], [])
    assert sorted(entry["backup_id"] for entry in outcome.report["removed"]) == ids
