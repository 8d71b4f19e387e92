"""A role with nothing but what `pgkeep grants` prints makes a dump, and lesser roles are told what they lack."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.errors import ServerError, ToolError
from pgkeep.modes.dump_plan import DumpOptions
from pgkeep.pg.grants import grants
from pgkeep.server.connection import Server
from tests.dump.sample import WEIRD, MemoryBackup, digests, dump, make_sample, restore_cluster, target_of
from tests.lab.cluster import Cluster, MakeCluster


@pytest.fixture
def prepared(make_cluster: MakeCluster, major: int) -> Cluster:
    """A cluster with the sample, whose tables and large objects belong to a role of their own."""
    cluster = make_cluster()
    make_sample(cluster, "app")
    cluster.sql(f'CREATE DATABASE "{WEIRD.replace(chr(34), chr(34) * 2)}"')
    cluster.sql("CREATE ROLE owner")
    for name in ("account", "secret", "event", "nothing"):
        cluster.sql(f"ALTER TABLE {name} OWNER TO owner", dbname="app")
    cluster.sql("ALTER LARGE OBJECT 4711 OWNER TO owner", dbname="app")
    cluster.sql("CREATE ROLE plain LOGIN")
    return cluster


def test_role_with_the_printed_rights(prepared: Cluster, bin_dir: Path, major: int) -> None:
    """The printed rights suffice for tables, row level security, large objects, the globals and their passwords."""
    prepared.sql(grants("dump", major, 'Back "up"'))
    prepared.sql("ALTER ROLE owner PASSWORD 'geheim'")
    with Server.open(target_of(prepared, user='Back "up"')) as server:
        backup = dump(server, DumpOptions(bin_dir=bin_dir))
    assert backup.warned == []
    assert b"SCRAM-SHA-256" in backup.content["@postgresql/dump/globals.sql"] or major < 14
    restore_cluster(prepared, backup, bin_dir=bin_dir, databases=("app",), new_database="copy")
    assert digests(prepared, "copy") == digests(prepared, "app")


def test_globals_without_passwords(prepared: Cluster, bin_dir: Path) -> None:
    """A role that may not read passwords dumps the globals without them, and both jobs say so."""
    prepared.sql("CREATE DATABASE mine OWNER plain")
    prepared.sql("ALTER ROLE owner PASSWORD 'geheim'")
    with Server.open(target_of(prepared, user="plain")) as server:
        backup = dump(server, DumpOptions(databases=("mine",), bin_dir=bin_dir))
    assert backup.warned == ["role passwords are not in this backup: the role may not read pg_authid"]
    script = backup.content["@postgresql/dump/globals.sql"]
    assert b"CREATE ROLE owner" in script
    assert b"PASSWORD" not in script
    prepared.sql("DROP DATABASE mine")
    _, _, warned = restore_cluster(prepared, backup, bin_dir=bin_dir, include_globals=True)
    assert warned == ["globals: this backup holds no role passwords; set them by hand"]


@pytest.mark.parametrize(
    ("given", "needle", "hint"),
    [
        ("", "permission denied for", 'give the role the rights that "pgkeep grants --mode dump" prints'),
        (
            "GRANT pg_read_all_data TO plain",
            "query would be affected by row-level security policy",
            'give the role BYPASSRLS: run "pgkeep grants --mode dump"',
        ),
        (
            "GRANT pg_read_all_data TO plain; ALTER ROLE plain BYPASSRLS",
            "permission denied for large object",
            'give the role rights on large objects: run "pgkeep grants --mode dump"',
        ),
    ],
    ids=["nothing", "no BYPASSRLS", "no large objects"],
)
@pytest.mark.pg(">=14")
def test_role_that_lacks_a_right(prepared: Cluster, bin_dir: Path, given: str, needle: str, hint: str) -> None:
    """pg_dump's complaint is the job's error, and the hint says which right is missing."""
    if given:
        prepared.sql(given)
    with Server.open(target_of(prepared, user="plain")) as server, pytest.raises(ToolError) as failure:
        dump(server, DumpOptions(databases=("app",), include_globals=False, bin_dir=bin_dir))
    assert needle in str(failure.value)
    assert failure.value.hint == hint


def test_role_that_may_not_connect(prepared: Cluster, bin_dir: Path) -> None:
    """A database that the role may not connect to is refused before the first byte, never left out in silence."""
    prepared.sql("REVOKE CONNECT ON DATABASE app FROM PUBLIC")
    with Server.open(target_of(prepared, user="plain")) as server, pytest.raises(ServerError) as failure:
        dump(server, DumpOptions(bin_dir=bin_dir), MemoryBackup())
    assert str(failure.value) == 'role "plain" may not connect to database "app"'
    assert failure.value.hint == "grant it CONNECT, or leave the database out: exclude_database=app"


def test_role_taken_after_login(prepared: Cluster, bin_dir: Path) -> None:
    """A login role that may become another one dumps with that one's rights."""
    prepared.sql("CREATE ROLE reader SUPERUSER; GRANT reader TO plain")
    with Server.open(target_of(prepared, user="plain", role="reader")) as server:
        backup = dump(server, DumpOptions(databases=("app",), bin_dir=bin_dir))
    assert backup.warned == []
    restore_cluster(prepared, backup, bin_dir=bin_dir, new_database="copy")
    assert digests(prepared, "copy") == digests(prepared, "app")
