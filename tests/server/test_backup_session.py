"""Backup mode on a real server: its result, and every way in which it is lost."""

from __future__ import annotations

import os
import signal

import pytest

from pgkeep.errors import ServerError
from pgkeep.pg.wal import WalSegment
from pgkeep.server import queries
from pgkeep.server.backup_session import BackupSession
from pgkeep.server.connection import Server
from tests.lab.cluster import Cluster, wait_for
from tests.lab.server_user import server_user

from .conftest import target_of


def is_in_backup_mode(cluster: Cluster, pid: int) -> bool:
    """Whether a session is still alive at the server; backup mode ends with it."""
    return bool(cluster.value("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]))


def test_backup_gives_label_and_positions(server: Server, cluster: Cluster) -> None:
    """A stopped backup tells where replay starts and must end, with the server's own label."""
    with BackupSession(server) as session:
        start = session.start("pgkeep 'nightly'", fast=True)
        cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
        assert session.is_alive()
        stop = session.stop()
    assert stop.start_lsn == start < stop.stop_lsn
    assert (stop.timeline, stop.stop_timeline) == (1, 1)
    assert stop.label.start_lsn == start
    assert stop.label.label == "pgkeep 'nightly'"
    assert stop.label.render() == stop.backup_label
    assert stop.label.start_wal_file == WalSegment.containing(start, timeline=stop.timeline, size=16 << 20).name
    assert stop.tablespace_map == ""
    assert stop.stop_lsn <= queries.flushed_lsn(server)


def test_tablespaces_are_in_the_map(server: Server, cluster: Cluster) -> None:
    """The tablespace map names each tablespace outside the data directory."""
    directory = cluster.data_directory.parent / "space"
    directory.mkdir()
    server_user().own(directory)
    cluster.sql(f"CREATE TABLESPACE outside LOCATION '{directory}'")
    oid = cluster.value("SELECT oid::bigint FROM pg_tablespace WHERE spcname = 'outside'")
    with BackupSession(server) as session:
        session.start("with a tablespace", fast=True)
        assert session.stop().tablespace_map == f"{oid} {directory}\n"


def test_order_of_calls_is_held(server: Server) -> None:
    """A backup is started once and stopped once, in this order."""
    with BackupSession(server) as session:
        with pytest.raises(ServerError) as not_started:
            session.stop()
        start = session.start("twice", fast=True)
        with pytest.raises(ServerError) as started:
            session.start("twice", fast=True)
        session.stop()
        with pytest.raises(ServerError) as stopped:
            session.stop()
    prefix = f"the backup at PostgreSQL at {server.where}"
    assert not_started.value.message == f"{prefix} was not started"
    assert started.value.message == f"{prefix} was already started at {start}"
    assert stopped.value.message == f"{prefix} was already stopped"


def test_leaving_early_ends_backup_mode(server: Server, cluster: Cluster) -> None:
    """A backup that is not stopped leaves no session behind, and another one can be made at once."""
    with BackupSession(server) as session:
        session.start("abandoned", fast=True)
        pid = session.backend_pid
    wait_for(lambda: not is_in_backup_mode(cluster, pid), "the session is gone")
    with BackupSession(server) as again:
        again.start("again", fast=True)
        assert again.stop().stop_lsn


def test_ended_session_loses_the_backup(server: Server, cluster: Cluster) -> None:
    """A session that an administrator ends takes the backup with it, which the probe and the stop both say."""
    with BackupSession(server) as session:
        session.start("to be ended", fast=True)
        cluster.sql("SELECT pg_terminate_backend(%s)", [session.backend_pid])
        with pytest.raises(ServerError) as error:
            session.stop()
        assert error.value.message == (
            f"the backup is lost, for the connection to PostgreSQL at {server.where} was lost: "
            "terminating connection due to administrator command"
        )
        assert not session.is_alive()


def test_killed_server_loses_the_backup(server: Server, cluster: Cluster) -> None:
    """A crash of the server loses the backup, and the server comes back by itself without a trace of it."""
    with BackupSession(server) as session:
        session.start("to crash", fast=True)
        os.kill(session.backend_pid, signal.SIGKILL)
        with pytest.raises(ServerError) as error:
            session.check()
        assert error.value.message.startswith("the backup is lost, for the connection to PostgreSQL at ")
    cluster.wait_until_ready()
    assert not (cluster.data_directory / "backup_label").exists()


def test_backup_from_a_standby_is_lost_by_its_promotion(cluster: Cluster) -> None:
    """A standby gives a backup of its own; promoted meanwhile, it gives none."""
    with cluster.create_standby(cluster.data_directory.parent / "standby") as standby:
        standby.start()
        with Server.open(target_of(standby)) as server:
            with BackupSession(server) as session:
                session.start("from a standby", fast=True)
                stop = session.stop()
                assert stop.label.is_from_standby
                assert (stop.timeline, stop.stop_timeline) == (1, 1)
            with BackupSession(server) as session:
                session.start("promoted", fast=True)
                standby.promote()
                with pytest.raises(ServerError) as error:
                    session.stop()
    assert error.value.message == (
        f"PostgreSQL at {server.where} refused: the standby was promoted during online backup"
    )


def test_waiting_for_a_failing_archive_ends(cluster: Cluster) -> None:
    """The wait for a failing archive ends in time with what to look at; without the wait the backup is good."""
    cluster.stop()
    cluster.configure({"archive_mode": "on", "archive_command": "false"})
    cluster.start()
    with Server.open(target_of(cluster)) as server:
        with BackupSession(server) as session:
            session.start("in vain", fast=True)
            with pytest.raises(ServerError) as error:
                session.stop(wait_for_archive=True, timeout_seconds=1.5)
            assert error.value.message == (
                f"PostgreSQL at {server.where} did not archive the backup's WAL within 1.5 seconds"
            )
        with BackupSession(server) as session:
            session.start("without waiting", fast=True)
            assert session.stop().stop_lsn


def test_notice_about_missing_archiving_is_kept(server: Server) -> None:
    """Where WAL is not archived, waiting for the archive returns at once with the server's notice."""
    with BackupSession(server) as session:
        session.start("not archived", fast=True)
        assert any("WAL archiving is not enabled" in notice for notice in session.stop(wait_for_archive=True).notices)


def test_missing_right_is_said(shared_cluster: Cluster) -> None:
    """A role without the right to start a backup is told how to get it."""
    shared_cluster.sql("CREATE ROLE poor LOGIN REPLICATION")
    try:
        with Server.open(target_of(shared_cluster, user="poor")) as server, BackupSession(server) as session:
            function = server.capabilities.start_function
            with pytest.raises(ServerError) as error:
                session.start("without a right", fast=True)
        assert error.value.message == f"PostgreSQL at {server.where} refused: permission denied for function {function}"
        assert error.value.hint == 'run "pgkeep grants" for the rights that the role needs'
    finally:
        shared_cluster.sql("DROP ROLE poor")
