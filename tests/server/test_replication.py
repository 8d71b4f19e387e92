"""The replication protocol's commands on a real server, and what ends a conversation."""

from __future__ import annotations

import threading
import time

import pytest

from pgkeep.errors import ServerError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.refusals import Refused
from pgkeep.server.replication import quoted_name, quoted_text
from pgkeep.server.slots import TemporarySlot, advance_slot, create_physical_slot, drop_slot, find_slot, slots
from tests.lab.cluster import Cluster, wait_for
from tests.lab.proxy import Proxy

from .conftest import target_of


def test_commands_answer(shared_server: Server) -> None:
    """A conversation answers one command after the other, a refused one included."""
    with shared_server.replication() as replication:
        system = replication.identify()
        assert system.lsn <= queries.flushed_lsn(shared_server)
        assert replication.setting("wal_segment_size") == "16MB"
        with pytest.raises(Refused) as error:
            replication.timeline_history(Timeline(7))
        assert error.value.state == "58P01"
        assert error.value.message == (
            f'PostgreSQL at {shared_server.where} refused: could not open file "pg_wal/00000007.history": '
            "No such file or directory"
        )
        with pytest.raises(Refused) as syntax:
            replication.rows("BASE_BACKUP NONSENSE")
        assert "syntax error" in syntax.value.message
        assert replication.identify() == system


def test_history_of_a_promoted_server_is_read(cluster: Cluster) -> None:
    """A promoted server gives the history file of its timeline, byte for byte."""
    with cluster.create_standby(cluster.data_directory.parent / "standby") as standby:
        standby.start()
        standby.promote()
        with Server.open(target_of(standby)) as server, server.replication() as replication:
            assert replication.identify().timeline == 2
            history = replication.timeline_history(Timeline(2))
            assert history.name == "00000002.history"
            assert history.content == (standby.data_directory / "pg_wal/00000002.history").read_bytes()
            assert TimelineHistory.parse(history.content, timeline=Timeline(2)).parents == (1,)


def test_temporary_slot_of_the_protocol_ends_with_it(server: Server, cluster: Cluster) -> None:
    """A temporary slot made by the protocol is there while the conversation is, and can be dropped before."""
    with server.replication() as replication:
        replication.create_slot("by_protocol")
        slot = find_slot(server, "by_protocol")
        assert slot is not None
        assert slot.is_temporary
        assert slot.restart_lsn is not None
        if server.capabilities.has_read_replication_slot:
            position = replication.read_slot("by_protocol")
            assert position is not None
            assert (position.restart_lsn, position.timeline) == (slot.restart_lsn, 1)
            assert replication.read_slot("absent") is None
        replication.drop_slot("by_protocol")
        assert find_slot(server, "by_protocol") is None
        replication.create_slot("by_protocol")
    wait_for(lambda: find_slot(server, "by_protocol") is None, "the slot is gone with its conversation")


def test_temporary_slot_keeps_wal_for_one_job(server: Server, cluster: Cluster) -> None:
    """A job's slot keeps WAL from the last checkpoint on, and is gone when the job is."""
    with TemporarySlot(server) as slot:
        redo = queries.last_checkpoint(server).redo_lsn
        assert slot.restart_lsn == slot.check() == redo
        found = find_slot(server, slot.name)
        assert found is not None
        assert (found.is_temporary, found.is_physical, found.is_lost) == (True, True, False)
        for _ in range(3):
            cluster.sql("CREATE TABLE t AS SELECT 1")
            cluster.sql("DROP TABLE t")
            cluster.switch_wal()
            cluster.sql("CHECKPOINT")
        assert slot.check() == redo
    wait_for(lambda: slots(server) == [], "the slot is gone with its session")


@pytest.mark.pg(">=13")
def test_lost_slot_is_said(server: Server, cluster: Cluster) -> None:
    """A slot whose WAL the server gave up is an error that names the bound."""
    cluster.configure({"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"})
    cluster.reload()
    with TemporarySlot(server) as slot:

        def is_lost() -> bool:
            cluster.sql("CREATE TABLE t AS SELECT 1")
            cluster.sql("DROP TABLE t")
            cluster.switch_wal()
            cluster.sql("CHECKPOINT")
            try:
                slot.check()
            except ServerError as error:
                messages.append((error.message, error.hint))
                return True
            return False

        messages: list[tuple[str, str]] = []
        wait_for(is_lost, "the server gives up the slot's WAL")
    message, hint = messages[0]
    assert message == (
        f"the slot that kept this job's WAL is gone: the connection to PostgreSQL at {server.where} was lost: "
        "terminating connection due to administrator command"
    )
    assert hint == "raise max_slot_wal_keep_size, or set archive_dir to where the server archives"


def test_lasting_slot_moves_and_goes(server: Server, cluster: Cluster) -> None:
    """A lasting slot reserves WAL at once, moves forward when told, and is dropped by name."""
    lsn = create_physical_slot(server, "lasting")
    cluster.switch_wal()
    target = queries.flushed_lsn(server)
    assert advance_slot(server, "lasting", target) == target > lsn
    slot = find_slot(server, "lasting")
    assert slot is not None
    assert (slot.restart_lsn, slot.is_temporary) == (target, False)
    drop_slot(server, "lasting")
    assert find_slot(server, "lasting") is None


def test_cancelled_conversation_ends(shared_server: Server) -> None:
    """Another thread's cancellation ends what a conversation waits for, although the server says nothing."""
    cancelled = threading.Event()
    with shared_server.replication(cancelled=cancelled) as replication:
        end = replication.identify().lsn
        replication.send(f"START_REPLICATION PHYSICAL {end >> 32:X}/{(end - end % (16 << 20)) & 0xFFFFFFFF:X}")
        replication.result()
        threading.Timer(0.2, cancelled.set).start()
        begin = time.monotonic()
        with pytest.raises(ServerError) as error:
            for _message in replication.copy_messages():
                pass
    assert error.value.message == f"cancelled in the conversation with PostgreSQL at {shared_server.where}"
    assert time.monotonic() - begin < 60


def test_cut_connection_is_said(cluster: Cluster) -> None:
    """A connection that is cut between two commands is a lost connection."""
    with Proxy(("127.0.0.1", cluster.port)) as proxy:
        target = target_of(cluster, tcp=True, port=proxy.port)
        with Server.open(target) as server, server.replication() as replication:
            replication.identify()
            proxy.cut()
            with pytest.raises(ServerError) as error:
                replication.identify()
    where = f"PostgreSQL at 127.0.0.1:{proxy.port} as postgres"
    assert error.value.message.startswith(f"the connection to {where} was lost: ")


def test_words_are_quoted() -> None:
    """Names and texts are quoted as the protocol's grammar wants them."""
    assert quoted_name('a"b') == '"a""b"'
    assert quoted_text("it's") == "'it''s'"
    assert Lsn(5) == 5
