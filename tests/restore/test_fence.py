"""What a restored server may do, and must not, before the proof is given that it is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pgkeep.jobs.restoring.restored_checks import FAILED_HINT
from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.lab.servers import debian_library
from tests.restore.conftest import MakeKeeper
from tests.restore.unfinished import call


def script(directory: Path, text: str) -> Path:
    """Write a file of SQL for post_restore_sql."""
    path = directory / "proof.sql"
    path.write_text(text)
    path.chmod(0o644)
    server_user().own(path)
    return path


def answers(lines: list[str]) -> list[str]:
    """Return what the operator's SQL brought."""
    return [line.removeprefix("post_restore_sql: ") for line in lines if line.startswith("post_restore_sql: ")]


def test_a_server_that_was_given_more_since_the_backup(make_keeper: MakeKeeper, major: int) -> None:
    """Even where nobody read the WAL before: the replay stops where it asks for more, and begins again with that."""
    keeper = make_keeper(archive="vault")
    keeper.backup("full", "local")
    cluster = keeper.cluster
    cluster.configure({"max_connections": "61", "max_prepared_transactions": "7"})
    cluster.restart()
    ledger = Ledger(cluster)
    ledger.transfer(50)
    cluster.configure({"max_connections": "83"})
    cluster.restart()
    mark = ledger.mark("with more")
    keeper.wait_until_archived()
    restored = keeper.restore(f"--target-lsn={mark.lsn}", start=False)
    state_file = restored.data_directory.with_name(f"{restored.data_directory.name}.pgkeep-restore") / "state.json"
    state = json.loads(state_file.read_text())
    assert state["minimums"]["max_connections"] == 83
    state_file.write_text(json.dumps(state | {"minimums": {}}))
    finished = call("finish", restored.data_directory)
    assert finished.status == 0, finished.lines
    restored.guard()
    restored.assert_is_at(mark)
    raised = [line for line in finished.lines if " is raised to " in line]
    why = "for the replay: the source was given more since the backup"
    assert raised[-1] == f"max_connections is raised to 83 {why}"
    assert f"max_prepared_transactions is raised to 7 {why}" in raised
    # The configuration is the one that was backed up.
    assert restored.value("SHOW max_connections") == "40"


def test_workers_with_schedules_of_their_own_wait_for_the_end(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """pg_cron is not loaded behind the fence and loaded after it; a library that is not known stays, for its WAL."""
    library = debian_library("postgresql-17-cron", "pg_cron", major=17)
    preloaded = {
        "shared_preload_libraries": "pg_stat_statements, pg_cron",
        "dynamic_library_path": f"{library.parent}:$libdir",
    }
    keeper = make_keeper(major=17, settings=preloaded)
    workers = "SELECT count(*) AS workers FROM pg_stat_activity WHERE backend_type = 'pg_cron launcher'"
    wait_for(lambda: keeper.cluster.value(workers) == 1, "pg_cron works")
    keeper.backup("full", "local")
    path = script(lab_directory, f"SELECT pg_sleep(0.5); {workers}; SHOW shared_preload_libraries;")
    restored = keeper.restore(f"--post-restore-sql={path}")
    said = "not loaded behind the fence, since they act by themselves: pg_cron"
    assert restored.outcome.lines.count(said) == 1
    assert answers(restored.outcome.lines)[2:] == ["workers", "0", "shared_preload_libraries", '"pg_stat_statements"']
    wait_for(lambda: restored.value(workers) == 1, "pg_cron works again")
    assert restored.value("SHOW shared_preload_libraries") == "pg_stat_statements, pg_cron"


def test_what_the_cluster_wants_of_sessions_keeps_nobody_out(make_keeper: MakeKeeper) -> None:
    """A login trigger that is not for this host, and a configuration that lets nobody write."""
    keeper = make_keeper(settings={"default_transaction_read_only": "on"})
    here = keeper.cluster.data_directory
    with keeper.cluster.connect() as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(
            f"""
            CREATE FUNCTION only_here() RETURNS event_trigger LANGUAGE plpgsql AS $$
            BEGIN IF current_setting('data_directory') <> '{here}' THEN RAISE 'not here'; END IF; END $$
            """
        )
        connection.execute("CREATE EVENT TRIGGER only_here ON login EXECUTE FUNCTION only_here()")
        connection.execute("CREATE SUBSCRIPTION s CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)")
        connection.execute("ALTER SUBSCRIPTION s SET (slot_name = 's')")
        connection.execute("ALTER SUBSCRIPTION s ENABLE")
    keeper.backup("full", "local")
    restored = keeper.restore()
    assert restored.outcome.lines[-1].startswith("RESTORE PHASE 6/6 verify-and-cleanup: every database answers")
    # It is the cluster's own business again.
    with pytest.raises(Exception, match="not here"):
        restored.connect()


def test_a_proof_that_fails_leaves_the_server_shut(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """Stopped, and shut off for whoever starts it all the same; when the reason is gone, finish opens it."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    ledger.transfer(20)
    mark = ledger.mark("whole")
    keeper.backup("full", "local")
    path = script(lab_directory, "SELECT 1 / count(*) FROM ledger_mark WHERE name = 'other';")
    wanted = (f"--post-restore-sql={path}", "--verify-checksum-after", "--verify-amcheck-after")
    restored = keeper.restore("--target-immediate", *wanted, status=12)
    assert restored.outcome.refusal == [
        f"error: the restored cluster did not pass: post_restore_sql {path}: division by zero",
        f"hint: {FAILED_HINT}",
    ]
    assert f"check failed: post_restore_sql {path}: division by zero" in restored.outcome.lines
    assert restored.postmaster() == []
    restored.start()
    shut = {name: restored.value(f"SHOW {name}") for name in ("listen_addresses", "max_logical_replication_workers")}
    assert shut == {"listen_addresses": "", "max_logical_replication_workers": "0"}
    written = (restored.data_directory / "postgresql.auto.conf").read_text()
    assert "archive_command = 'false'\n" in written
    restored.stop()

    path.write_text("SELECT count(*) AS marks FROM ledger_mark;")
    finished = call("finish", restored.data_directory)
    assert finished.status == 0, finished.lines
    restored.guard()
    assert answers(finished.lines) == ["marks", "1"]
    checked = [line for line in finished.lines if "pg_checksums" in line]
    assert len(checked) == 1
    assert re.fullmatch(r"pg_checksums read \d{4,} pages in \d{3,} files: none is damaged", checked[0])
    restored.assert_is_at(mark)
    assert restored.value("SHOW listen_addresses") == "localhost"
    assert restored.value("SHOW max_logical_replication_workers") == "4"
    left = (restored.data_directory / "postgresql.auto.conf").read_text()
    assert re.findall(r"^(\w+) = '(?:off|\d+)'$", left, re.MULTILINE) == ["archive_mode", "port"]
    assert "archive_command" not in left


def test_a_damaged_page_fails_the_restore(make_keeper: MakeKeeper) -> None:
    """Damage that the source had, and that no replay mends, is found before anybody gets in."""
    keeper = make_keeper()
    cluster = keeper.cluster
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS n")
    path = cluster.data_directory / cluster.value("SELECT pg_relation_filepath('t')")
    cluster.stop()
    with path.open("r+b") as file:
        file.seek(8192 + 4000)
        file.write(b"damage")
    cluster.start()
    keeper.backup("full", "local", "--no-verify-checksum")
    restored = keeper.restore("--verify-checksum-after", status=12)
    [error, _] = restored.outcome.refusal
    assert error.startswith("error: the restored cluster did not pass: pg_checksums: 1 bad pages, the first: ")
    assert restored.postmaster() == []
