"""What a restore looks at before it touches anything, and what it must not stumble over at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.restore.test_files import make_directory, rows

MIB = 1 << 20
RESERVE_MIB = 64


def test_space_is_asked_of_each_file_system(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """A tablespace takes its bytes where it goes: the data directory's disk need not hold them, its own must."""
    keeper = make_keeper()
    keeper.cluster.sql(f"CREATE TABLESPACE fast LOCATION '{make_directory(lab_directory / 'fast')}'")
    keeper.cluster.sql(
        "CREATE TABLE big TABLESPACE fast AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 60000) AS n"
    )
    total = keeper.backup("full", "local").report["bytes"] // MIB
    inside = keeper.cluster.value("SELECT pg_tablespace_size('fast')") // MIB
    assert inside > 50
    with small_filesystem(total - inside + RESERVE_MIB + 16) as place:
        new = f"--tablespace-map=fast:{lab_directory}/new"
        assert any(line.startswith("tablespace ") for line in keeper.plan(f"--pgdata-dir={place}/data", new))
    with small_filesystem(inside // 2 + RESERVE_MIB) as place:
        status, [error] = keeper.refuse(f"--pgdata-dir={lab_directory}/copy", f"--tablespace-map=fast:{place}/fast")
    assert status == 8
    assert error.startswith(f"error: not enough space for the restore on the file system of {place}: ")
    assert not (lab_directory / "copy").exists()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_volumes_are_looked_at_before_anything_is_moved_away(keeper: Keeper, damage: str) -> None:
    """What stands in the target stays where it is when a volume of the backup, or of its base, is not whole."""
    keeper.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS n")
    full = keeper.backup("full", "local").report["backup_id"]
    backup = keeper.backup("differential", "local").report["backup_id"]
    old = make_directory(keeper.directory / "old")
    (old / "precious").write_text("mine")
    backups = keeper.vault / keeper.name / "backups"
    volume = max((backups / full).glob("volume-*"), key=lambda path: path.stat().st_size)
    size = volume.stat().st_size
    if damage == "missing":
        volume.rename(volume.with_suffix(".elsewhere"))
    else:
        with volume.open("r+b") as file:
            file.truncate(size // 2)
    status, [error, *_] = keeper.refuse(f"--pgdata-dir={old}", "--overwrite-existing")
    begin = f"error: backup {backup} cannot be used: {volume.name} of backup {full}"
    if damage == "missing":
        assert (status, error) == (7, f"{begin}: No such file or directory")
    else:
        assert status == 7
        assert error.startswith(f"{begin} has {size // 2} bytes, expected at least ")
    assert [path.name for path in keeper.directory.glob("old*")] == ["old"]
    assert [path.name for path in old.iterdir()] == ["precious"]


def test_the_server_that_stays_is_the_one_that_is_configured(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """After the restore the access file is the one that the configuration names, and the log goes where it says."""
    hba_file = lab_directory / "real_hba.conf"
    hba_file.write_text("local all all trust\n")
    server_user().own(hba_file)
    keeper = make_keeper(settings={"hba_file": str(hba_file), "logging_collector": "on", "log_directory": "log"})
    keeper.backup("full", "local")
    restored = keeper.restore()
    asked = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN ('hba_file', '{}')"
    assert restored.value(asked.format("logging_collector")) == f"{hba_file} on"
    assert restored.value(asked.format("data_directory")) == f"{restored.data_directory} {hba_file}"
    assert list((restored.data_directory / "log").iterdir()) != []


def test_what_an_interrupted_drop_left_costs_nothing(keeper: Keeper) -> None:
    """A database that nobody can connect to is passed over when every database is asked."""
    keeper.cluster.sql("CREATE DATABASE half")
    keeper.cluster.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'")
    keeper.backup("full", "local")
    restored = keeper.restore()
    assert restored.report["databases"] == ["postgres", "template1"]
    assert restored.digests() == rows(keeper.cluster)


def test_the_database_that_is_watched_through_may_go(make_keeper: MakeKeeper) -> None:
    """Replay drops the database that pgkeep is connected to, which ends its session: another one takes its place."""
    keeper = make_keeper(archive="vault")
    keeper.backup("full", "local")
    cluster = keeper.cluster
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS n", dbname="template1")
    # Replay has something to do before the drop, so that it is being watched when it comes there.
    for _ in range(8):
        cluster.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 16000000))", dbname="template1")
    cluster.sql("DROP DATABASE postgres", dbname="template1")
    cluster.sql("SELECT pg_switch_wal()", dbname="template1")
    # The archiver pushes what is ready before it ends.
    cluster.stop()
    restored = keeper.restore()
    assert restored.report["databases"] == ["template1"]
    assert restored.value("SELECT sum(n) FROM t", dbname="template1") == 3000 * 3001 // 2


def test_a_zone_that_does_not_exist_is_refused(keeper: Keeper) -> None:
    """A wrong local_timezone is the caller's error: no other zone is taken in its place."""
    keeper.backup("full", "local")
    outcome = keeper.run("restore", "--target-time=2026-11-20 00:00:00", "--local-timezone=No/Where", "--plan")
    asked = "local_timezone must be the name of a time zone such as America/Sao_Paulo"
    assert (outcome.status, outcome.refusal) == (2, [f'error: {asked}, found "No/Where" on the command line'])


def test_the_plan_of_a_dump_is_json_when_asked(keeper: Keeper) -> None:
    """Into files and into databases alike: the same lines as for people, in one document, and nothing is done."""
    keeper.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS n")
    bin_dir = f"--bin-dir={keeper.cluster.installation.bin_dir}"
    keeper.must("backup", "--mode=dump", bin_dir, *keeper.server_options())
    into_files = f"--output-dir={keeper.directory}/files"
    into_databases = ("--target-database=postgres", "--new-database=new", *keeper.server_options())
    for arguments in ([into_files], [bin_dir, *into_databases]):
        plan = keeper.must("restore", *arguments, "--plan").stdout.splitlines()
        outcome = keeper.must("restore", *arguments, "--plan", "--json")
        assert outcome.report == {"plan": plan}
        assert plan != []
    assert not (keeper.directory / "files").exists()
    assert keeper.cluster.value("SELECT count(*) FROM pg_database WHERE datname = 'new'") == 0
