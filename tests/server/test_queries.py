"""Questions to a real server: each answer has the type and the meaning that its function promises."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator

import pytest

from pgkeep.errors import ServerError
from pgkeep.server import queries
from pgkeep.server.connection import Server
from tests.lab.cluster import Cluster, MakeCluster
from tests.lab.server_user import server_user

from .conftest import target_of


def test_identity_is_the_clusters(shared_server: Server) -> None:
    """SQL and the replication protocol name the same cluster and timeline."""
    identity = queries.identify(shared_server)
    with shared_server.replication() as replication:
        system = replication.identify()
    assert (identity.system_identifier, identity.timeline) == (system.system_identifier, system.timeline)
    assert not identity.is_in_recovery
    assert identity.catalog_version > 201900000


def test_timeline_is_known_right_after_a_promotion(cluster: Cluster, make_cluster: MakeCluster) -> None:
    """A standby is known as one, and after its promotion by its new timeline, checkpoint or not."""
    standby = cluster.create_standby(cluster.data_directory.parent / "standby")
    with standby:
        standby.start()
        with Server.open(target_of(standby)) as server:
            before = queries.identify(server)
            assert (before.timeline, before.is_in_recovery) == (1, True)
            assert queries.current_lsn(server) <= queries.flushed_lsn(server)
            standby.promote()
            after = queries.identify(server)
    assert (after.timeline, after.is_in_recovery) == (2, False)
    assert after.system_identifier == before.system_identifier


def test_databases_are_listed_by_name(shared_server: Server, shared_cluster: Cluster) -> None:
    """Every database is listed, whatever its name, with its size."""
    name = 'we/ird "näme"'
    shared_cluster.sql('CREATE DATABASE "we/ird ""näme"""')
    try:
        found = {database.name: database for database in queries.databases(shared_server)}
    finally:
        shared_cluster.sql('DROP DATABASE "we/ird ""näme"""')
    assert {"postgres", "template0", "template1", name} <= set(found)
    assert not found["template0"].allows_connections
    assert found["template0"].is_template
    size = found[name].size_bytes
    assert size is not None
    assert size > 1 << 20


def test_tablespaces_are_told_apart(cluster: Cluster, server: Server) -> None:
    """A tablespace has its directory, an in-place one has none of its own."""
    directory = cluster.data_directory.parent / "space one"
    directory.mkdir()
    server_user().own(directory)
    cluster.sql(f"CREATE TABLESPACE outside LOCATION '{directory}'")
    expected = {"outside": str(directory)}
    if server.capabilities.has_in_place_tablespaces:
        with cluster.connect() as connection:
            connection.execute("SET allow_in_place_tablespaces = on")
            connection.execute("CREATE TABLESPACE inside LOCATION ''")
        expected["inside"] = ""
    found = queries.tablespaces(server)
    assert {tablespace.name: tablespace.location for tablespace in found} == expected
    assert [tablespace.is_in_place for tablespace in found] == [not location for location in expected.values()]


def test_settings_for_recovery_are_complete(shared_server: Server) -> None:
    """What a replaying server is held to is among the settings, as SHOW prints it."""
    found = queries.recovery_settings(shared_server)
    assert found["max_connections"] == "40"
    assert found["wal_level"] == "replica"
    assert found["wal_segment_size"] == "16MB"
    assert {"max_worker_processes", "max_prepared_transactions", "max_locks_per_transaction"} <= set(found)


@pytest.mark.parametrize("megabytes", [1, 64])
def test_segment_size_is_in_bytes(make_cluster: MakeCluster, major: int, megabytes: int) -> None:
    """Whatever initdb was given, the segment size is bytes."""
    cluster = make_cluster(wal_segment_size_mb=megabytes, data_checksums=False)
    with Server.open(target_of(cluster)) as server:
        assert queries.wal_segment_size(server) == megabytes << 20
        assert not queries.has_data_checksums(server)


def test_files_are_the_clusters(shared_server: Server, shared_cluster: Cluster) -> None:
    """The data directory and the three configuration files are known by path."""
    found = queries.files(shared_server)
    assert found.data_directory == str(shared_cluster.data_directory)
    assert found.hba_file == f"{shared_cluster.data_directory}/pg_hba.conf"


def test_archiving_is_known(cluster: Cluster, server: Server) -> None:
    """Archiving that is off has no command; what the archiver did is counted."""
    assert queries.archiving(server) == queries.Archiving("off", "", "")
    status = queries.archiver_status(server)
    assert (status.archived_count, status.last_archived_wal, status.last_archived_time) == (0, "", None)
    archive = cluster.data_directory.parent / "archive"
    server.sql.close()
    cluster.stop()
    cluster.archive_to(archive)
    cluster.start()
    with Server.open(target_of(cluster)) as again:
        found = queries.archiving(again)
    assert found.mode == "on"
    assert found.command == f'test ! -f "{archive}/%f" && cp "%p" "{archive}/%f"'


def test_positions_move_forward(cluster: Cluster, server: Server) -> None:
    """WAL that is written moves the positions; so do a switch, a restore point and a checkpoint."""
    begin = queries.current_lsn(server)
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
    assert begin < queries.switch_wal(server) <= queries.flushed_lsn(server)
    named = queries.create_restore_point(server, "before the accident")
    assert named > begin
    queries.checkpoint(server)
    checkpoint = queries.last_checkpoint(server)
    assert named <= checkpoint.redo_lsn <= checkpoint.lsn
    assert checkpoint.timeline == 1
    assert abs(checkpoint.time - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
    assert any(re.fullmatch("[0-9A-F]{24}", name) for name in queries.wal_file_names(server))


def test_clock_and_libraries_are_known(shared_server: Server) -> None:
    """The server's clock is aware, its start is before it, and libc's version looks like one."""
    assert queries.start_time(shared_server) < queries.server_time(shared_server)
    for version in queries.libraries(shared_server).values():
        assert re.match(r"\d+(\.\d+)*", version)


class TestRights:
    """What roles may do."""

    @pytest.fixture
    def poor(self, shared_cluster: Cluster) -> Iterator[Server]:
        shared_cluster.sql("CREATE ROLE poor LOGIN REPLICATION")
        shared_cluster.sql("GRANT pg_monitor TO poor")
        try:
            with Server.open(target_of(shared_cluster, user="poor")) as server:
                yield server
        finally:
            shared_cluster.sql("DROP ROLE poor")

    def test_superuser_may_all(self, shared_server: Server) -> None:
        """A superuser has every right and every predefined role."""
        rights = queries.role_rights(shared_server)
        assert rights.is_superuser
        assert "pg_read_all_settings" in rights.memberships

    def test_plain_role_is_known_by_its_memberships(self, poor: Server) -> None:
        """A role's attributes and predefined roles are known, those that it inherits through another included."""
        rights = queries.role_rights(poor)
        assert (rights.name, rights.is_superuser, rights.can_replicate) == ("poor", False, True)
        assert {"pg_monitor", "pg_read_all_settings"} <= rights.memberships
        assert "pg_signal_backend" not in rights.memberships

    def test_functions_are_probed(self, poor: Server) -> None:
        """Whether a function may be called is known without calling it; one that is not there may not."""
        assert queries.may_execute(poor, "pg_catalog.pg_current_wal_lsn()")
        assert not queries.may_execute(poor, "pg_catalog.pg_switch_wal()")
        assert not queries.may_execute(poor, "pg_catalog.no_such_function()")

    def test_size_that_may_not_be_asked_is_absent(self, shared_cluster: Cluster, poor: Server) -> None:
        """Sizes need a right; without it they are None and the list is still complete."""
        shared_cluster.sql("REVOKE pg_monitor FROM poor")
        shared_cluster.sql("REVOKE CONNECT ON DATABASE template1 FROM PUBLIC")
        try:
            sizes = {database.name: database.size_bytes for database in queries.databases(poor)}
        finally:
            shared_cluster.sql("GRANT CONNECT ON DATABASE template1 TO PUBLIC")
        assert sizes["template1"] is None
        assert sizes["postgres"] is not None

    def test_hidden_data_directory_is_said(self, shared_cluster: Cluster, poor: Server) -> None:
        """A role that may not see the data directory is told which right it lacks."""
        shared_cluster.sql("REVOKE pg_monitor FROM poor")
        with pytest.raises(ServerError) as error:
            queries.files(poor)
        assert error.value.message == (
            f"the role that is connected to PostgreSQL at {poor.where} may not see data_directory"
        )
        assert error.value.hint == 'run "pgkeep grants" for the rights that the role needs'
