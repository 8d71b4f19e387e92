"""Connections: what they are set to, and what is said when they cannot be made."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from pathlib import Path

import psycopg
import pytest

from pgkeep.errors import ServerError
from pgkeep.server.connection import ConnectionTarget, Server, connect
from pgkeep.server.refusals import connection_refusal, one_line
from tests.lab.cluster import Cluster, MakeCluster, free_port

from .conftest import target_of, turn_on_tls

SECRET = "s3cr3t 'quoted\\"


def test_server_knows_its_version(shared_server: Server, major: int) -> None:
    """An open server tells its version, and what that version can do."""
    assert shared_server.version // 10000 == major
    assert shared_server.capabilities.major == major
    assert shared_server.version_text.startswith(str(major))


def test_session_is_set_up(shared_cluster: Cluster) -> None:
    """Whatever the role's defaults are, a session has no time-outs, UTC, ISO dates, UTF-8 and a safe search path."""
    shared_cluster.sql("CREATE ROLE odd LOGIN SUPERUSER")
    try:
        for name, value in {
            "statement_timeout": "5ms",
            "lock_timeout": "5ms",
            "TimeZone": "Asia/Tokyo",
            "DateStyle": "German",
            "search_path": "public",
            "standard_conforming_strings": "off",
        }.items():
            shared_cluster.sql(f"ALTER ROLE odd SET {name} = '{value}'")
        with Server.open(target_of(shared_cluster, user="odd")) as server:
            names = ("statement_timeout", "lock_timeout", "TimeZone", "DateStyle", "search_path", "client_encoding")
            found = [server.value("SELECT current_setting(%s)", [name]) for name in names]
            assert found == ["0", "0", "UTC", "ISO, MDY", "pg_catalog", "UTF8"]
            assert server.value("SELECT current_setting('application_name')") == "pgkeep"
            assert server.value("SELECT current_setting('standard_conforming_strings')") == "on"
    finally:
        shared_cluster.sql("DROP ROLE odd")


def test_role_is_taken(shared_cluster: Cluster) -> None:
    """A target's role is what its questions are asked as; its name may hold anything."""
    shared_cluster.sql('CREATE ROLE "we/ird ""role"""')
    try:
        with Server.open(target_of(shared_cluster, role='we/ird "role"')) as server:
            assert server.value("SELECT current_user") == 'we/ird "role"'
    finally:
        shared_cluster.sql('DROP ROLE "we/ird ""role"""')


def test_target_hides_its_password() -> None:
    """A target does not show its password, and names the place instead."""
    target = ConnectionTarget(host="db1", port=5433, user="backup", password=SECRET)
    assert SECRET not in repr(target)
    assert target.where == "db1:5433 as backup"
    assert dataclasses.replace(target, host="", port=0, service="main").where == "service main as backup"
    assert ConnectionTarget().where == "the default address"


def test_refused_connection_is_told_apart(tmp_path: Path) -> None:
    """A closed port and a missing socket say so, each with what to look at."""
    port = free_port()
    with pytest.raises(ServerError) as closed:
        connect(ConnectionTarget(host="127.0.0.1", port=port, user="x"))
    assert closed.value.message.startswith(f"cannot connect to PostgreSQL at 127.0.0.1:{port} as x: ")
    assert "Connection refused" in closed.value.message
    assert closed.value.hint == "is PostgreSQL running there, and does it listen on this address and port?"
    with pytest.raises(ServerError) as missing:
        connect(ConnectionTarget(host=str(tmp_path), port=port))
    assert "No such file or directory" in missing.value.message
    assert missing.value.hint == "is PostgreSQL running, and is this the directory of its socket?"


def test_silent_server_times_out() -> None:
    """A server that takes the connection and says nothing is given up after the time-out."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        target = ConnectionTarget(host="127.0.0.1", port=listener.getsockname()[1], connect_timeout_seconds=2)
        with pytest.raises(ServerError) as error:
            connect(target)
    assert error.value.message == (
        f"cannot connect to PostgreSQL at 127.0.0.1:{target.port}: connection timeout expired"
    )


class TestPasswords:
    """A server that wants a password."""

    @pytest.fixture
    def guarded(self, make_cluster: MakeCluster) -> Cluster:
        cluster = make_cluster()
        quoted = psycopg.sql.Literal(SECRET).as_string(None)
        cluster.sql("SET password_encryption = 'scram-sha-256'")
        cluster.sql(f"CREATE ROLE backup LOGIN REPLICATION PASSWORD {quoted}")
        cluster.set_hba("host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256")
        return cluster

    def test_right_password_is_taken(self, guarded: Cluster) -> None:
        """A password of the target's serves questions and replication."""
        with Server.open(target_of(guarded, tcp=True, user="backup", password=SECRET)) as server:
            with server.replication() as replication:
                assert replication.identify().timeline == 1
            assert server.value("SELECT current_user") == "backup"

    def test_wrong_password_is_not_shown(self, guarded: Cluster) -> None:
        """A wrong password is an error with place and role, that holds the secret nowhere."""
        target = target_of(guarded, tcp=True, user="backup", password=SECRET + "x")
        with pytest.raises(ServerError) as error:
            Server.open(target)
        assert error.value.message == (
            f"cannot connect to PostgreSQL at 127.0.0.1:{guarded.port} as backup: "
            'password authentication failed for user "backup"'
        )
        assert error.value.hint == "check the password or its line in the pgpass file"
        assert SECRET not in str(error.value)
        assert error.value.__suppress_context__

    def test_missing_password_is_said(self, guarded: Cluster) -> None:
        """Without a password the error says where one can be given."""
        with pytest.raises(ServerError) as error:
            Server.open(target_of(guarded, tcp=True, user="backup", pgpass_file="/dev/null"))
        assert error.value.hint == "give a pgpass file (pgpass_file) or a password in the configuration file"

    @pytest.mark.parametrize("database", ["*", "postgres", "replication"])
    def test_pgpass_file_serves_replication(self, guarded: Cluster, tmp_path: Path, database: str) -> None:
        """A pgpass line for the database, for ``replication`` or for any serves the replication protocol."""
        pgpass = tmp_path / "pgpass"
        escaped = SECRET.replace("\\", "\\\\").replace(":", "\\:")
        pgpass.write_text(f"127.0.0.1:{guarded.port}:{database}:backup:{escaped}\n")
        pgpass.chmod(0o600)
        target = target_of(guarded, tcp=True, user="backup", pgpass_file=str(pgpass))
        connect(target, replication=True).close()
        if database != "replication":
            connect(target).close()

    def test_service_file_names_the_server(
        self, guarded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A service's section gives host, port, user and database."""
        services = tmp_path / "services"
        services.write_text(
            f"[main]\nhost=127.0.0.1\nport={guarded.port}\nuser=backup\ndbname=template1\npassword={SECRET}\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        with Server.open(ConnectionTarget(service="main")) as server:
            assert server.value("SELECT current_database()") == "template1"
        with pytest.raises(ServerError) as error:
            connect(ConnectionTarget(service="other"))
        assert error.value.message == (
            'cannot connect to PostgreSQL at service other: definition of service "other" not found'
        )


def test_tls_is_verified(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """A server's certificate is checked against the authority; a server without TLS is refused where TLS is wanted."""
    cluster = make_cluster(major=15)
    with pytest.raises(ServerError) as error:
        connect(target_of(cluster, tcp=True, sslmode="require"))
    assert error.value.message.endswith("server does not support SSL, but SSL was required")
    assert error.value.hint == "turn on ssl at the server, or use another sslmode"
    certificate = turn_on_tls(cluster)
    authority = tmp_path / "authority.crt"
    authority.write_bytes(certificate.read_bytes())
    target = target_of(cluster, tcp=True, sslmode="verify-ca", sslrootcert=str(authority))
    with Server.open(target) as server:
        assert server.value("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        with server.replication() as replication:
            assert replication.identify().timeline == 1
    with pytest.raises(ServerError) as wrong_name:
        connect(dataclasses.replace(target, sslmode="verify-full"))
    assert wrong_name.value.hint == "connect by the name in the server's certificate, or use sslmode=verify-ca"
    with pytest.raises(ServerError) as no_authority:
        connect(dataclasses.replace(target, sslrootcert=str(tmp_path / "absent.crt")))
    assert no_authority.value.hint == "set sslrootcert to the authority's certificate, or sslrootcert=system"


def test_lost_session_is_said(server: Server, cluster: Cluster) -> None:
    """A session that the server ended is a lost connection, not a refusal."""
    cluster.sql("SELECT pg_terminate_backend(%s)", [server.sql.info.backend_pid])
    with pytest.raises(ServerError) as error:
        server.value("SELECT 1")
    assert error.value.message == (
        f"the connection to PostgreSQL at {server.where} was lost: terminating connection due to administrator command"
    )


def test_missing_right_is_said(shared_cluster: Cluster) -> None:
    """A right that the role lacks is a refusal that names the command to run."""
    shared_cluster.sql("CREATE ROLE poor LOGIN")
    try:
        with Server.open(target_of(shared_cluster, user="poor")) as server, pytest.raises(ServerError) as error:
            server.rows("SELECT pg_switch_wal()")
        assert error.value.message == (
            f"PostgreSQL at {server.where} refused: permission denied for function pg_switch_wal"
        )
        assert error.value.hint == 'run "pgkeep grants" for the rights that the role needs'
    finally:
        shared_cluster.sql("DROP ROLE poor")


def test_questions_take_turns(shared_server: Server) -> None:
    """Several threads may ask one server; each gets its own answer."""
    answers: list[int] = []

    def ask(number: int) -> None:
        answers.extend(shared_server.value("SELECT %s::int", [number]) for _ in range(20))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(list(range(4)) * 20)


def test_password_is_in_no_environment(shared_cluster: Cluster) -> None:
    """A password is given to libpq alone, never to the environment, which children inherit."""
    with Server.open(target_of(shared_cluster, password=SECRET)):
        assert not any(SECRET in value for value in os.environ.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('connection failed: FATAL:  role "x" does not exist\n', 'role "x" does not exist'),
        ("ERROR:  relation\nDETAIL: more", "relation"),
        ("plain", "plain"),
        (" \n", "no reason was given"),
    ],
)
def test_message_is_one_line(text: str, expected: str) -> None:
    """What the server or libpq says becomes one line without its severity."""
    assert one_line(text) == expected


def test_connection_refusal_drops_libpq_preamble() -> None:
    """The words of libpq for the place are left out: ours stand before."""
    error = psycopg.OperationalError(
        'connection failed: connection to server at "10.0.0.9", port 5432 failed: FATAL:  the database system is '
        "starting up"
    )
    refused = connection_refusal(error, where="10.0.0.9", replication=True)
    assert refused.message == (
        "cannot connect to PostgreSQL at 10.0.0.9 for replication: the database system is starting up"
    )
    assert refused.hint == "the server is starting: try again when it accepts connections"
