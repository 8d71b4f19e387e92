from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from pgkeep.errors import UsageError
from pgkeep.pg.capabilities import SUPPORTED_MAJORS, Capabilities
from pgkeep.pg.grants import MODES, TRANSPORTS, grants, identifier, literal
from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation

ROLE = "we/ird \"nä'm\\e"


@pytest.mark.parametrize("version", SUPPORTED_MAJORS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_script_says_what_it_is_for(mode: str, version: int, transport: str) -> None:
    """Mode and version head each script; a mode that the version does not have is refused."""
    if mode == "pitr_block" and version < 17:
        with pytest.raises(UsageError) as caught:
            grants(mode, version, "pgkeep", transport=transport)
        assert str(caught.value) == f"mode pitr_block needs PostgreSQL 17 or later, this is {version}"
        return
    script = grants(mode, version, "pgkeep", transport=transport)
    how = f" with transport {transport}" if mode == "pitr" else ""
    assert script.startswith(f"-- Rights of a role for pgkeep's mode {mode}{how} on PostgreSQL {version}.\n")
    assert script.endswith("\n")
    assert ("SUPERUSER" in script) == (mode.endswith("dump") and version < 14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("full", 18, "r"), 'unknown mode "full", expected one of dump, parallel_dump, pitr, pitr_block, cdp'),
        (("dump", 11, "r"), "no rights known for PostgreSQL 11, expected 12 to 18"),
        (("dump", 18, ""), 'not a usable role name: ""'),
        (("dump", 18, "a\nb"), 'not a usable role name: "a\nb"'),
        (("dump", 18, "x$pgkeep$; DROP"), 'not a usable role name: "x$pgkeep$; DROP"'),
        (("dump", 18, "ä" * 32), f'not a usable role name: "{"ä" * 32}"'),
    ],
)
def test_an_impossible_request_is_refused(arguments: tuple[str, int, str], message: str) -> None:
    """Modes, versions and names that do not exist are refused."""
    with pytest.raises(UsageError) as caught:
        grants(*arguments)
    assert str(caught.value) == message


def test_an_unknown_transport_is_refused() -> None:
    """There are two ways to read a cluster."""
    with pytest.raises(UsageError) as caught:
        grants("pitr", 18, "r", transport="tape")
    assert str(caught.value) == 'unknown transport "tape", expected local or stream'


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(texts)
def test_names_and_texts_cannot_end_their_quotes(text: str) -> None:
    """Taking the quotes off again gives the text back."""
    assert identifier(text)[1:-1].replace('""', '"') == text
    quoted = literal(text)
    body = quoted[2:-1].replace("\\\\", "\\") if quoted.startswith("E") else quoted[1:-1]
    assert body.replace("''", "'") == text


@pytest.fixture
def protected(shared_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with what a role without rights cannot read: others' tables, row level security, large objects."""
    shared_cluster.sql("CREATE SCHEMA hidden")
    shared_cluster.sql("CREATE TABLE hidden.rows AS SELECT 1 AS i")
    shared_cluster.sql("ALTER TABLE hidden.rows ENABLE ROW LEVEL SECURITY")
    shared_cluster.sql("CREATE SEQUENCE hidden.numbers")
    large_object = shared_cluster.value("SELECT lo_from_bytea(0, 'content')")
    yield shared_cluster
    shared_cluster.sql("DROP SCHEMA hidden CASCADE")
    shared_cluster.sql("SELECT lo_unlink(%s)", [large_object])
    with shared_cluster.connect() as session:
        session.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(ROLE)))


def granted(cluster: Cluster, mode: str, *, transport: str = "local") -> psycopg.Connection[tuple[object, ...]]:
    """Run the script twice, as it promises to bear, and return a session of the role."""
    for _ in range(2):
        cluster.sql(grants(mode, cluster.major, ROLE, transport=transport))
    return cluster.connect(user=ROLE)


@pytest.mark.pg(">=17")
def test_a_role_for_dumps_can_dump_everything(protected: Cluster) -> None:
    """pg_dump and pg_dumpall -g run with the role's rights alone."""
    granted(protected, "dump").close()
    connection = protected.conninfo(user=ROLE)
    for program, options in (("pg_dump", ["-Fc"]), ("pg_dumpall", ["-g"])):
        server_user().run(
            [newest_installation().program(program), *options, "--no-sync", "-f", "/dev/null", "-d", connection]
        )


def test_a_role_for_dumps_can_read_everything(protected: Cluster) -> None:
    """What a dump reads is readable: rows under row level security, large objects, passwords of roles."""
    with granted(protected, "dump") as session:
        session.execute("SET row_security = off")
        assert session.execute("SELECT i FROM hidden.rows").fetchone() == (1,)
        session.execute("SELECT last_value FROM hidden.numbers")
        [(content,)] = session.execute("SELECT lo_get(oid) FROM pg_largeobject_metadata").fetchall()
        assert content == b"content"
        session.execute("SELECT rolpassword FROM pg_authid")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_role_for_pitr_can_back_up(protected: Cluster, transport: str) -> None:
    """Backup functions for the local transport, BASE_BACKUP for both, and no look at the rows for either."""
    capabilities = Capabilities(protected.major * 10000)
    with granted(protected, "pitr", transport=transport) as session:
        for query in (
            "SHOW data_directory",
            "SELECT pg_create_restore_point('here')",
            "SELECT pg_switch_wal()",
            "SELECT count(*) FROM pg_ls_waldir()",
            "SELECT pg_database_size('postgres')",
            "SELECT * FROM pg_control_checkpoint()",
            *(["CHECKPOINT"] if capabilities.has_checkpoint_role else []),
        ):
            session.execute(query)
        if transport == "local":
            session.execute(capabilities.start_backup_sql, ["test", True])
            session.execute(capabilities.stop_backup_sql, [False])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT i FROM hidden.rows")
    server_user().run(
        [
            *(newest_installation().program("pg_receivewal"), "--create-slot", "--slot=granted"),
            *("-d", protected.conninfo(user=ROLE)),
        ]
    )
    protected.sql("SELECT pg_drop_replication_slot('granted')")
