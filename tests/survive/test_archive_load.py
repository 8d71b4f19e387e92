"""Archiving and backups at once, under load."""

from __future__ import annotations

from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper


def test_archive_push_beside_backups(make_keeper: MakeKeeper) -> None:
    """Segments that the server archives and that backups carry meet in the archive, which stays without a hole."""
    keeper = make_keeper(archive="vault")
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    with ledger.load(workers=3) as load:
        for level, transport in (("full", "stream"), ("incremental", "local"), ("full", "local")):
            for _ in range(3):
                load.wait_for(10)
                cluster.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 17000000))")
            assert keeper.backup(level, transport).warnings == []
    mark = ledger.mark("end")
    keeper.wait_until_archived()
    report = keeper.must("verify", "--json").report
    assert report["is_clean"]
    info = keeper.info()
    assert (info["status"], info["gaps"], len(info["windows"]), len(info["wal"])) == ("ok", [], 1, 1)
    held = info["wal"][0]
    assert held["segments"] == int(held["last"][16:], 16) - int(held["first"][16:], 16) + 1 > 9
    failed = cluster.value("SELECT failed_count FROM pg_stat_archiver")
    assert failed == 0, cluster.log_text()[-4000:]
    keeper.restore(f"--target-lsn={mark.lsn}").assert_is_at(mark)
