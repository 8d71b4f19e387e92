"""A copy beside its original: what the plan of a restore refuses to touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.datadir.target import Target
from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.original_cluster import OriginalCluster
from pgkeep.jobs.restoring.plan import check_clear_of
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper


@pytest.mark.pg("!=13, !=14, !=15, !=16, !=17")
def test_tablespace_that_no_backup_has_seen(major: int, make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """A tablespace made after the newest backup is not replayed into, because the original lives in it."""
    keeper = make_keeper(archive="vault", major=major)
    keeper.backup("full", "local")
    place = lab_directory / "late"
    place.mkdir()
    server_user().own(place)
    keeper.cluster.sql(f"CREATE TABLESPACE late LOCATION '{place}'")
    keeper.cluster.sql("CREATE TABLE t TABLESPACE late AS SELECT 1 AS n")
    keeper.wait_until_archived()
    oid = keeper.cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'late'")
    assert keeper.refuse(f"--pgdata-dir={lab_directory}/copy", "--start") == (
        8,
        [
            (
                f"error: the replay would make tablespace {oid} in {place}, which exists on this host and is not part "
                "of this restore"
            ),
            (
                "hint: restore from a newer Full or Differential, or to a moment before the tablespace was made, or on "
                "another host"
            ),
        ],
    )
    assert keeper.restore("--skip-wal-replay").value("SELECT count(*) FROM pg_tablespace") == 2
    keeper.cluster.restart()
    assert keeper.cluster.value("SELECT n FROM t") == 1


def test_directory_of_the_running_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that the running original has as a tablespace is refused, whatever may be overwritten."""
    (tmp_path / "data" / "pg_tblspc").mkdir(parents=True)
    (tmp_path / "data" / "pg_tblspc" / "16500").symlink_to(tmp_path / "fast")
    original = OriginalCluster(tmp_path / "data")
    target = Target(
        data_directory=tmp_path / "copy", version_directory="PG_18_1", tablespaces={16400: tmp_path / "fast"}
    )
    check_clear_of(original, target)
    monkeypatch.setattr(OriginalCluster, "postmaster", property(lambda _: object()))
    with pytest.raises(RestoreRefused) as refused:
        check_clear_of(original, target)
    assert refused.value.message == (
        f"{tmp_path}/fast is in use: it is tablespace 16500 of the server in {tmp_path}/data"
    )


def test_port_of_the_running_original(keeper: Keeper) -> None:
    """A copy that would be started on its running original's port is refused before anything is touched."""
    keeper.backup("full", "local")
    where, port = keeper.cluster.data_directory, keeper.cluster.port
    assert keeper.refuse(f"--pgdata-dir={keeper.directory}/copy", "--start") == (
        8,
        [f"error: port {port} is in use by the server in {where}", "hint: give the copy its own: --port=NUMBER"],
    )
    assert not (keeper.directory / "copy").exists()


def test_wal_that_comes_while_a_copy_replays(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """A tablespace that the living original makes after the plan is not replayed: its files stay as they are."""
    keeper = make_keeper(archive="vault")
    keeper.backup("full", "local")
    ledger = Ledger(keeper.cluster)
    mark = ledger.mark("planned")
    keeper.wait_until_archived()
    restored = keeper.restore(start=False)
    place = lab_directory / "late"
    place.mkdir()
    server_user().own(place)
    keeper.cluster.sql(f"CREATE TABLESPACE late LOCATION '{place}'")
    keeper.cluster.sql("CREATE TABLE t TABLESPACE late AS SELECT generate_series(1, 1000) AS n")
    keeper.wait_until_archived()
    restored.start()
    restored.wait_until_promoted()
    restored.assert_is_at(mark)
    assert restored.value("SELECT count(*) FROM pg_tablespace") == 2
    assert keeper.cluster.value("SELECT sum(n) FROM t") == 500500
