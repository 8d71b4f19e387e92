"""Ends that nobody planned: cancelled, killed, or left alone by the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.bacula_backend.bridge import Bridge, Ended, PlainBridge
from tests.bacula_backend.conftest import Client
from tests.lab.cluster import wait_for

SOON_SECONDS = 60
"""A second or two on an idle machine; whoever waits for the server's checkpoint waits for minutes."""


class Reached(Exception):
    """The job is where the test wants it."""


def at_name(part: str) -> Callable[[str], None]:
    """Return what stops a job before the content of the first file with *part* in its name."""

    def stop(name: str) -> None:
        if part in name:
            raise Reached

    return stop


def cancel(bridge: PlainBridge) -> None:
    """Do as pgkeep's bridge does."""
    bridge.command("CANCEL")
    os.killpg(bridge.pid, signal.SIGTERM)
    close_input(bridge)


def terminate(bridge: PlainBridge) -> None:
    """Send SIGTERM alone."""
    os.kill(bridge.pid, signal.SIGTERM)


def interrupt(bridge: PlainBridge) -> None:
    """Do as other bridges do."""
    os.kill(bridge.pid, signal.SIGUSR1)


def close_input(bridge: PlainBridge) -> None:
    """Close the backend's standard input."""
    assert bridge.process.stdin is not None
    bridge.process.stdin.close()


def vanish(bridge: PlainBridge) -> None:
    """Close both pipes, as a daemon does that dies."""
    close_input(bridge)
    assert bridge.process.stdout is not None
    bridge.process.stdout.close()


def only_say_cancel(bridge: PlainBridge) -> None:
    """Say it in the conversation alone; a backend that waits for a slot reads it."""
    bridge.command("CANCEL")


ENDS = [cancel, terminate, interrupt, close_input, vanish]


def assert_nothing_is_left(client: Client, bridge: PlainBridge, *, status: int | None = 10) -> None:
    """Assert that the backend ends soon and quietly, and the server is as before."""
    bridge.process.wait(SOON_SECONDS)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgkeep%'"
    wait_for(lambda: client.cluster.value(sessions) == 0, "all sessions of pgkeep have ended")
    assert client.cluster.value("SELECT count(*) FROM pg_replication_slots") == 0
    wait_for(lambda: not children_of_group(bridge.pid), "all children have ended")
    assert not list(client.directory.glob("state/bacula/*/*/[!.]*"))
    with contextlib.suppress(ValueError):
        bridge._reap()
    assert bridge.job.stderr == ""
    if status is not None:
        assert bridge.job.status == status


def children_of_group(pid: int) -> list[str]:
    """Return the processes that the backend *pid* started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_text()
            if int(fields[1]) == pid or (fields[0] != "Z" and int(fields[3]) == pid and "pg_dump" in command):
                found.append(command)
    return found


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("place", ["PG_VERSION", "/base/1/", "pg_control", "/wal/", "_manifest.json"])
def test_physical_backup_ends_anywhere(client: Client, end: Callable[[PlainBridge], None], place: str) -> None:
    """Wherever a physical backup is ended, no session stays in backup mode and no record is kept."""
    client.cluster.sql("CREATE TABLE big AS SELECT g, repeat('x', 1000) FROM generate_series(1, 30000) AS g")
    with Bridge() as bridge:
        with pytest.raises(Reached):
            bridge.backup({"Name": client.name()}, client.line, at=at_name(place))
        end(bridge)
        assert_nothing_is_left(client, bridge)


@pytest.mark.parametrize("end", [cancel, interrupt, close_input])
def test_backup_ends_while_the_server_makes_its_checkpoint(client: Client, end: Callable[[PlainBridge], None]) -> None:
    """A backup that waits for a spread checkpoint gives up at once, and the server never enters backup mode."""
    client.cluster.sql("CREATE TABLE dirty AS SELECT g, repeat('x', 1000) FROM generate_series(1, 30000) AS g")
    client.words = "mode=pitr"
    with Bridge() as bridge:
        bridge.open({"Type": "B", "Level": "F", "Name": client.name()}, client.line, "BackupStart")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_backup_start%' AND state = 'active'"
        own = " AND pid <> pg_backend_pid()"
        wait_for(lambda: client.cluster.value(waiting + own) == 1, "the backup waits for its checkpoint")
        end(bridge)
        assert_nothing_is_left(client, bridge)


@pytest.mark.parametrize("end", [cancel, interrupt, vanish])
def test_stream_backup_ends(client: Client, end: Callable[[PlainBridge], None]) -> None:
    """A base backup over the replication protocol ends with its conversation."""
    client.words = "mode=pitr transport=stream start_fast=yes"
    with Bridge() as bridge:
        with pytest.raises(Reached):
            bridge.backup({"Name": client.name()}, client.line, at=at_name("/base/1/"))
        end(bridge)
        assert_nothing_is_left(client, bridge)


@pytest.mark.parametrize("end", ENDS)
def test_dump_ends_with_its_children(client: Client, end: Callable[[PlainBridge], None]) -> None:
    """pg_dump, which waits for a lock, ends with the job."""
    client.words = "mode=dump"
    client.cluster.sql("CREATE TABLE locked (i int)")
    with psycopg.connect(client.cluster.conninfo()) as other:
        other.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        with Bridge() as bridge:
            with pytest.raises(Reached):
                bridge.backup({"Name": client.name()}, client.line, at=at_name("postgres.dump"))
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_for(lambda: client.cluster.value(waiting) == 1, "pg_dump waits for its lock")
            end(bridge)
            assert_nothing_is_left(client, bridge)


def test_cancel_in_the_conversation_is_enough_where_the_backend_listens(client: Client) -> None:
    """A backend that waits for a slot of the ring ends when CANCEL comes instead."""
    client.cluster.sql("CREATE TABLE big AS SELECT g, repeat('x', 1000) FROM generate_series(1, 60000) AS g")
    path = client.cluster.value("SELECT pg_relation_filepath('big')")
    with Bridge() as bridge:
        with pytest.raises(Reached):
            bridge.backup({"Name": client.name()}, client.line, at=at_name(path))
        only_say_cancel(bridge)
        assert_nothing_is_left(client, bridge)


def test_killed_backend_leaves_no_session_in_backup_mode(client: Client) -> None:
    """Killed by SIGKILL, the backend takes its sessions along, and the next job is as if nothing had been."""
    with Bridge() as bridge:
        with pytest.raises(Reached):
            bridge.backup({"Name": client.name()}, client.line, at=at_name("/base/1/"))
        os.kill(bridge.pid, signal.SIGKILL)
        assert_nothing_is_left(client, bridge, status=-signal.SIGKILL)
    assert client.run().status == 0


def test_record_is_kept_only_when_the_daemon_says_that_the_job_is_through(client: Client) -> None:
    """A job that ends between the last file and END leaves no record to build on."""
    with Bridge() as bridge:
        bridge.open({"Type": "B", "Level": "F", "Name": client.name()}, client.line, "BackupStart")
        for _, payload in bridge._packets_until_end():
            bridge._backup_command(payload.decode().rstrip("\n"), lambda name: None)
        close_input(bridge)
        assert_nothing_is_left(client, bridge)


def test_silence_of_the_server_ends_the_job_after_timeout(client: Client) -> None:
    """When nothing happens for longer than the timeout, the job fails and says why."""
    client.words = "mode=dump timeout=2s lock_wait_timeout=60"
    client.cluster.sql("CREATE TABLE locked (i int)")
    with psycopg.connect(client.cluster.conninfo()) as other:
        other.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        job = client.run(counts=False)
    assert job.status == 10
    assert job.said("error")[0].startswith("nothing happened for ")
    assert job.said("error")[0].endswith(" s, which is longer than timeout allows")


def test_backend_beats_while_it_waits(client: Client) -> None:
    """While nothing else passes, pgkeep's bridge hears a heartbeat; a plain bridge hears nothing it does not know."""
    client.words = "mode=dump lock_wait_timeout=12"
    client.cluster.sql("CREATE TABLE locked (i int)")
    with psycopg.connect(client.cluster.conninfo()) as other:
        other.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        with Bridge() as bridge:
            with pytest.raises(Ended):
                bridge.backup({"Name": client.name()}, f"{client.line} abort_on_error lock_wait_timeout=12")
            assert bridge.heartbeats >= 1
