"""A cluster that comes back out of Bacula's stream."""

from __future__ import annotations

from tests.bacula_restore.conftest import MakeDaemon
from tests.lab.ledger import Ledger


def test_a_full_becomes_a_directory_that_pg_ctl_starts(make_daemon: MakeDaemon) -> None:
    """where=/directory gives a data directory ready to start, which replays to the end of the WAL."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    ledger.transfer(50)
    mark = ledger.mark("before")
    daemon.backup()
    answer = daemon.restore(where=f"{daemon.directory}/out")
    print(answer.job.messages, answer.job.stderr)
    assert answer.error == ""
    assert [line.partition(":")[0] for line in answer.phases] == [
        "RESTORE PHASE 1/6 pre-check",
        "RESTORE PHASE 2/6 lay-down",
        "RESTORE PHASE 3/6 recovery-config",
    ]
    daemon.cluster.stop()
    restored = daemon.server(daemon.directory / "out/@postgresql/pitr/pgdata", answer)
    restored.start()
    restored.wait_until_promoted()
    restored.assert_is_at(mark)
