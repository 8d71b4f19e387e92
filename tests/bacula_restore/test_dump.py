"""Dumps that come back out of Bacula's stream."""

from __future__ import annotations

import hashlib

import pytest

from tests.bacula_restore.conftest import Daemon, MakeDaemon
from tests.lab.cluster import Cluster

BASE = "/@postgresql/dump"


def fill(cluster: Cluster, *names: str) -> None:
    """Make databases with some rows in them."""
    for name in names:
        cluster.sql(f'CREATE DATABASE "{name}"')
        cluster.sql("CREATE TABLE item AS SELECT n, repeat('x', 100) AS t FROM generate_series(1, 5000) n", dbname=name)


def rows(cluster: Cluster, dbname: str) -> int:
    """Return how many rows came back."""
    return int(cluster.value("SELECT count(*) FROM item", dbname=dbname))


def databases(cluster: Cluster) -> set[str]:
    """Return the names of all databases."""
    return set(cluster.value("SELECT array_agg(datname::text) FROM pg_database"))


@pytest.fixture
def daemon(make_daemon: MakeDaemon, request: pytest.FixtureRequest) -> Daemon:
    """Two databases, dumped."""
    made = make_daemon("dump", *getattr(request, "param", ()))
    fill(made.cluster, "sales", "we ird")
    made.words += f" tmpdir={made.directory}/tmp"
    made.backup()
    return made


def test_files_are_what_was_dumped(daemon: Daemon) -> None:
    """where=/directory gives files of the very bytes, under the names of the catalog."""
    answer = daemon.restore(where=f"{daemon.directory}/out")
    assert answer.error == ""
    assert answer.job.said("warning") == []
    for name, file in daemon.jobs[0].files.items():
        if file.kind != "D":
            content = (daemon.directory / f"out{name}").read_bytes()
            assert hashlib.md5(content).hexdigest() == file.digest
    assert not list((daemon.directory / "out").rglob("*.pgkeep"))


@pytest.mark.parametrize(("replace", "expected"), [("a", False), ("n", True), ("w", True), ("o", False)])
def test_replace_decides_about_files_that_are_there(daemon: Daemon, replace: str, expected: bool) -> None:
    """A file that is there is replaced always, never, by a newer one, or by an older one."""
    place = daemon.directory / f"out{BASE}/sales.dump"
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    for directory in (place.parent, place.parent.parent, place.parent.parent.parent, place):
        directory.chmod(0o777)
    answer = daemon.restore(where=f"{daemon.directory}/out", replace=replace)
    assert answer.error == ""
    assert (place.read_bytes() == b"mine") is expected


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    "daemon", [(), ("dump_format=directory",), ("dump_format=plain", "compress=zstd")], indirect=True
)
def test_databases_come_back(daemon: Daemon, plain: bool) -> None:
    """where=/ loads the databases anew; what was there is renamed only where that is allowed."""
    cluster = daemon.cluster
    refused = daemon.restore(plain=plain)
    assert "exists and is not empty" in refused.error
    assert refused.answers == {}
    cluster.sql('DROP DATABASE "we ird"')
    cluster.sql("DELETE FROM item", dbname="sales")
    answer = daemon.restore(options={"overwrite_existing": "yes", "target_database": "sales"}, plain=plain)
    assert answer.error == ""
    assert rows(cluster, "sales") == 5000
    assert "we ird" not in databases(cluster)
    assert not [name for name in databases(cluster) if name.startswith("pgkeep_restore_")]


def test_a_damaged_dump_gets_no_name(daemon: Daemon) -> None:
    """A database whose dump is not what the record says is dropped; the others are restored."""
    cluster = daemon.cluster
    cluster.sql('DROP DATABASE "we ird"')
    cluster.sql("DROP DATABASE sales")
    name = f"{BASE}/sales.dump"
    content = bytearray(daemon.jobs[0].files[name].content or b"")
    position = content.index(b"postgres")
    content[position : position + 8] = b"postgreS"
    answer = daemon.restore(daemon.restoring().with_file(name, content=bytes(content)))
    assert "sales.dump did not arrive as it was backed up: it has the digest" in answer.error
    assert "sales" not in databases(cluster)
    assert rows(cluster, "we ird") == 5000


def test_a_dump_that_breaks_off_gets_no_name(daemon: Daemon) -> None:
    """The daemon gives up on a dump: that database is not there, the other is."""
    cluster = daemon.cluster
    cluster.sql('DROP DATABASE "we ird"')
    cluster.sql("DROP DATABASE sales")
    restoring = daemon.restoring()
    restoring.failed[f"{BASE}/sales.dump"] = 2000
    answer = daemon.restore(restoring)
    assert "sales" in answer.error
    assert "sales" not in databases(cluster)
    assert rows(cluster, "we ird") == 5000
    assert not [name for name in databases(cluster) if name.startswith("pgkeep_restore_")]


def test_one_selected_dump_is_enough(daemon: Daemon) -> None:
    """Only one dump is marked in the tree: it is restored under another name, and the log says what is not checked."""
    only = daemon.restoring().only(f"{BASE}/sales.dump")
    answer = daemon.restore(only, options={"target_database": "sales", "new_database": "copy"})
    assert answer.error == ""
    assert rows(daemon.cluster, "copy") == 5000
    assert any("cannot be checked" in line for line in answer.job.said("warning"))
    lacking = daemon.restore(only, options={"target_database": "we ird"})
    assert "is not selected" in lacking.error


def test_one_table_comes_back(daemon: Daemon) -> None:
    """One table is wanted: it comes back into its database, which stays; what has its name must be out of the way."""
    cluster = daemon.cluster
    options = {"target_database": "sales", "target_table": "item"}
    assert 'database "sales" has "public"."item" already' in daemon.restore(options=options).error
    cluster.sql("CREATE TABLE later (n int)", dbname="sales")
    cluster.sql("DROP TABLE item", dbname="sales")
    answer = daemon.restore(options=options)
    assert answer.error == ""
    assert rows(cluster, "sales") == 5000
    assert cluster.value("SELECT count(*) FROM later", dbname="sales") == 0
    assert 'database "sales": 1 tables restored' in answer.job.said("info")
    assert not list((daemon.directory / "tmp").iterdir())
