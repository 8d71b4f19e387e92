"""Data directories that a rename alone does not move: links, mount points, a pg_wal apart; and what goes for ever."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.lab.cluster import MakeCluster
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.restore.test_files import make_directory
from tests.restore.unfinished import InPlace, call


def test_linked_data_directory_and_separate_wal(make_keeper: MakeKeeper) -> None:
    """What links lead to is renamed and the links stay; pg_wal comes back on its own disk, and all of it goes back."""
    before = InPlace(make_keeper)
    data, lab = before.data, before.keeper.directory
    (lab / "big").mkdir()
    (lab / "wal").mkdir()
    data.rename(lab / "big/main")
    data.symlink_to(lab / "big/main")
    (data / "pg_wal").rename(lab / "wal/main")
    (data / "pg_wal").symlink_to(lab / "wal/main")
    for path in (lab / "big", lab / "wal"):
        server_user().own(path)
    before.restore("--start")
    before.assert_is_before_the_accident()
    assert os.readlink(data) == str(lab / "big/main")
    assert os.readlink(data / "pg_wal") == str(lab / "wal/main")
    [old] = (lab / "big").glob("main.old.*")
    [old_wal] = (lab / "wal").glob("main.old.*")
    assert os.readlink(old / "pg_wal") == str(old_wal)
    before.restored.stop()
    assert before.call("rollback", "--discard").status == 0
    # The audit file stays where the state was: beside the directory itself.
    assert sorted(path.name for path in (lab / "big").iterdir()) == ["main", "main.pgkeep-restore"]
    assert [path.name for path in (lab / "wal").iterdir()] == ["main"]
    assert os.readlink(data / "pg_wal") == str(lab / "wal/main")
    before.assert_runs_as_before()


def test_data_directory_that_is_a_mount_point(keeper: Keeper) -> None:
    """What is in a mount point moves into a directory within it, where the next server leaves it alone, and back."""
    ledger = Ledger(keeper.cluster)
    first = ledger.mark("first")
    keeper.backup("full", "local")
    with small_filesystem(400) as place:
        place.chmod(0o700)
        restored = keeper.restore(to=str(place))
        restored.value("SELECT pg_switch_wal()")
        with restored.connect() as connection:
            connection.execute("CREATE TABLE only_here AS SELECT 7 AS answer")
        restored.stop()
        again = keeper.restore("--overwrite-existing", "--target-immediate", to=str(place))
        try:
            again.assert_is_at(first)
            [old] = place.glob("pgkeep.old.*")
            assert (old / "global/pg_control").exists()
            again.stop()
            outcome = call("rollback", place, "--discard")
            assert outcome.status == 0, "\n".join(outcome.lines)
            assert list(place.glob("pgkeep.old.*")) == []
            again.start()
            assert again.value("SELECT answer FROM only_here") == 7
        finally:
            again.stop()
            for path in place.parent.glob(f"{place.name}.*"):
                server_user().run(["rm", "-rf", path])


def test_what_is_wiped_does_not_come_back(make_keeper: MakeKeeper) -> None:
    """With wipe_pgdata nothing is renamed and nothing can be put back; the plan and the rollback say so."""
    before = InPlace(make_keeper)
    plan = before.keeper.plan(f"--pgdata-dir={before.data}", "--overwrite-existing", "--wipe-pgdata")
    assert f"removed first, for ever: what is in {before.data}" in plan
    before.kill_at((1, "open", "/volume-"), "--wipe-pgdata")
    before.restore("--start", "--wipe-pgdata")
    before.assert_is_before_the_accident()
    assert before.moved_away() == []
    before.restored.stop()
    outcome = before.call("rollback")
    assert outcome.status == 8
    assert outcome.refusal[0].startswith("error: there is nothing to put back: wipe_pgdata had what stood in ")
    assert before.call("rollback", "--discard").status == 0
    assert list(before.data.iterdir()) == []


def test_old_directories_go_in_time(keeper: Keeper) -> None:
    """After pgdata_backup_retain_days a later restore removes what an earlier one moved away; never its own."""
    Ledger(keeper.cluster)
    keeper.backup("full", "local")
    lab = keeper.directory
    others = ["target.old.20200101T000000Z", "target.old.2020", "target.older.20200101T000000Z"]
    for name in ("target", *others):
        (make_directory(lab / name) / "precious").write_text("mine")
    server_user().own(lab / "target")
    restored = keeper.restore(
        "--overwrite-existing", "--target-immediate", "--pgdata-backup-retain-days=7", to="target"
    )
    left = sorted(path.name for path in lab.glob("target.old*"))
    assert [name for name in left if not re.fullmatch(r"target\.old\.2026\d{4}T\d{6}Z", name)] == sorted(others[1:])
    assert len(left) == 3
    assert restored.value("SELECT 1") == 1


def test_a_directory_of_another_cluster_is_never_replaced(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """overwrite_existing is for the cluster that was backed up: another one's directory is refused, and untouched."""
    keeper = make_keeper()
    keeper.backup("full", "local")
    data = lab_directory / "other"
    command = [keeper.cluster.installation.program("initdb"), "-D", data, "-A", "trust", "-N"]
    server_user().run(command)
    status, refusal = keeper.refuse(f"--pgdata-dir={data}", "--overwrite-existing")
    assert status == 8
    assert refusal[0].startswith(f"error: {data} holds another cluster: its system identifier is ")
    assert [path.name for path in lab_directory.glob("other*")] == ["other"]


def test_a_tablespace_of_another_cluster_is_never_replaced(make_keeper: MakeKeeper, make_cluster: MakeCluster) -> None:
    """overwrite_existing takes no tablespace from a server that runs, and wipe_pgdata none that may be another's."""
    keeper = make_keeper()
    lab = keeper.directory
    other = make_cluster("other", major=keeper.cluster.major)
    for cluster, name in ((keeper.cluster, "ours"), (other, "theirs")):
        server_user().own(make_directory(lab / name))
        cluster.sql(f"CREATE TABLESPACE fast LOCATION '{lab / name}'")
    other.sql("CREATE TABLE precious TABLESPACE fast AS SELECT 7 AS answer")
    keeper.backup("full", "local")
    [inside] = (lab / "theirs").iterdir()
    asked = [f"--pgdata-dir={lab / 'copy'}", f"--tablespace-map=fast:{lab / 'theirs'}", "--overwrite-existing"]
    assert keeper.refuse(*asked) == (
        8,
        [
            f"error: {inside} is in use: it is a tablespace of the server in {other.data_directory}",
            "hint: name another directory in the tablespace map",
        ],
    )
    other.stop()
    status, [error, hint] = keeper.refuse(*asked, "--wipe-pgdata")
    assert status == 8
    assert error == f"error: {inside} is no tablespace of the cluster in {lab / 'copy'}: it may be another one's"
    assert hint.startswith("hint: leave wipe_pgdata out, so that it is renamed")
    assert other.start().value("SELECT answer FROM precious") == 7
