"""The files move while they are read: grow, shrink, vanish, are written anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.cluster import Cluster
from tests.lab.ledger import Ledger, digest, digest_all
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.survive.job import Job


def prepare(cluster: Cluster, place: Path) -> None:
    """Make what will be changed."""
    place.mkdir()
    server_user().own(place)
    cluster.sql("CREATE DATABASE doomed")
    cluster.sql("CREATE TABLE gone AS SELECT generate_series(1, 1000) AS n", dbname="doomed")
    cluster.sql(f"CREATE TABLESPACE here LOCATION '{place}'")
    for name in ("grows", "shrinks", "vanishes", "rewritten", "truncated", "moves"):
        cluster.sql(
            f"CREATE TABLE {name} AS SELECT n, repeat(md5(n::text), 30) AS text FROM generate_series(1, 6000) AS n"
        )
        cluster.sql(f"CREATE INDEX ON {name} (n)")
    cluster.sql("CHECKPOINT")


def change_everything(cluster: Cluster, strategy: str) -> None:
    """Do to the files what a server can do to them, and make it reach the disk."""
    for statement in (
        "INSERT INTO grows SELECT n, repeat('g', 900) FROM generate_series(1, 4000) AS n",
        "DELETE FROM shrinks WHERE n > 500",
        "VACUUM (TRUNCATE) shrinks",
        "DROP TABLE vanishes",
        "VACUUM FULL rewritten",
        "TRUNCATE truncated",
        "INSERT INTO truncated VALUES (1, 'one')",
        "ALTER TABLE moves SET TABLESPACE here",
        "CREATE TABLE fresh AS SELECT generate_series(1, 5000) AS n",
        f"CREATE DATABASE newborn STRATEGY {strategy}",
        "DROP DATABASE doomed",
        "CHECKPOINT",
        "UPDATE grows SET text = 'x' WHERE n % 3 = 0",
        "VACUUM FULL pg_class",
        "REINDEX TABLE rewritten",
    ):
        cluster.sql(statement)
    cluster.sql("CREATE TABLE inside AS SELECT generate_series(1, 700) AS n", dbname="newborn")
    cluster.sql("CHECKPOINT")


@pytest.mark.parametrize(
    ("server", "transport", "strategy"),
    [(18, "local", "wal_log"), (15, "local", "file_copy"), (18, "stream", "file_copy")],
)
def test_everything_changes_in_the_middle(
    make_keeper: MakeKeeper, lab_directory: Path, server: int, transport: str, strategy: str
) -> None:
    """Whatever happened to the files between the first that was read and the last, what comes back is consistent."""
    # Checkpoints come often enough for the server to recycle what the Incremental needs.
    keeper = make_keeper(major=server, settings={"wal_keep_size": "1GB"})
    cluster, place = keeper.cluster, lab_directory / "here"
    prepare(cluster, place)
    ledger = Ledger(cluster)
    oid = cluster.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    middle = ("STOP", 1, "open", f"/base/{oid}/") if transport == "local" else None
    options = keeper.backup_options("full", transport)
    with ledger.load() as load:
        load.wait_for(5)
        with Job(keeper, "backup", *options, at=middle) as job:
            if middle is not None:
                job.wait_until_stopped()
            else:
                # Stopped, it would keep the server from dropping a database: that waits for every process.
                job.wait_for_line("backup start")
            change_everything(cluster, strategy)
            load.wait_for(5)
            outcome = job.go_on() if middle is not None else job.end()
        assert outcome.status == 0, outcome.lines
        assert outcome.warnings == []
    digests = digest_all(cluster)
    keeper.backup("incremental", transport)
    elsewhere = lab_directory / "elsewhere"
    restored = keeper.restore(f"--tablespace-map=here:{elsewhere}")
    assert set(digests) == {"postgres", "newborn", "template1"}
    for name, expected in digests.items():
        with restored.connect(name) as connection:
            assert digest(connection) == expected
    for table in ("grows", "shrinks", "rewritten", "moves"):
        restored.value(f"SELECT count(*) FROM {table} WHERE n BETWEEN 1 AND 10000")
    assert keeper.must("verify", "--json").report["is_clean"]
    # A Differential on top of a base that was read while all moved.
    cluster.sql("DELETE FROM grows WHERE n % 5 = 0")
    mark = ledger.mark("end")
    keeper.backup("differential", transport)
    keeper.backup("incremental", transport)
    again = keeper.restore(f"--tablespace-map=here:{lab_directory / 'third'}")
    again.assert_is_at(mark)
