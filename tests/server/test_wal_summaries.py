"""What a server says of its WAL summaries."""

from __future__ import annotations

from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.server.wal_summaries import summarizer, uncovered, wal_summaries
from tests.lab.cluster import MakeCluster, wait_for
from tests.lab.server_user import server_user


def test_summaries_come_in_the_order_of_their_wal(make_cluster: MakeCluster) -> None:
    """Also where a position gets another digit: what is covered there is not taken for a gap."""
    cluster = make_cluster(start=False, settings={"summarize_wal": "on"})
    resetwal = cluster.installation.program("pg_resetwal")
    server_user().run([resetwal, "-l", "00000001000000000000000E", "-D", cluster.data_directory])
    cluster.start()
    with Server.open(ConnectionTarget(**cluster.connection_arguments())) as server:
        since = Lsn.parse(cluster.value("SELECT redo_lsn::text FROM pg_control_checkpoint()"))
        for _ in range(4):
            cluster.switch_wal()
            cluster.sql("CHECKPOINT")
        until = Lsn.parse(cluster.value("SELECT redo_lsn::text FROM pg_control_checkpoint()"))
        assert str(since) < "0/10000000"
        assert until > Lsn.parse("0/11000000")
        wait_for(lambda: summarizer(server).summarized >= until, "all of it is summarized")
        found = wal_summaries(server, Timeline(1), since=since)
        assert [summary.end for summary in found[:-1]] == [summary.start for summary in found[1:]]
        assert uncovered(found, since, until) is None
