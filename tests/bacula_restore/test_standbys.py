"""Standbys and outside configuration through Bacula's door."""

from __future__ import annotations

from tests.bacula_restore.conftest import MakeDaemon
from tests.lab.cluster import SUPERUSER, wait_for
from tests.lab.ledger import Ledger
from tests.restore.etc import Etc

PGDATA = "@postgresql/pitr/pgdata"


def test_a_standby_comes_from_a_stream(make_daemon: MakeDaemon) -> None:
    """What Bacula restores becomes a standby of the primary that the restore options name."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    ledger.transfer(10)
    daemon.backup()
    ledger.transfer(10)
    daemon.backup("I")
    cluster = daemon.cluster
    primary = f"host={cluster.socket_directory} port={cluster.port} user={SUPERUSER}"
    answer = daemon.restore(
        where=f"{daemon.directory}/out",
        options={
            "restore_as_standby": "yes",
            "primary_conninfo": primary,
            "start_postgresql_after_restore": "yes",
            "port": str(cluster.port + 1 if cluster.port < 65535 else 5000),
        },
    )
    assert answer.error == "", answer.job.messages
    standby = daemon.server(daemon.directory / f"out/{PGDATA}", answer)
    mark = ledger.mark("after the restore")
    lsn = cluster.current_lsn()
    wait_for(lambda: bool(standby.value(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'")), "the standby has caught up")
    standby.assert_is_at(mark)
    assert standby.value("SELECT pg_is_in_recovery()")
    # The WAL of the restore is gone: what comes now comes from the primary.
    assert not (daemon.directory / f"out/{PGDATA}.pgkeep-wal").exists()
    assert standby.value("SHOW restore_command") == ""


def test_configuration_comes_from_a_stream(make_daemon: MakeDaemon) -> None:
    """Files of /etc lie in the catalog's tree and in the copy; one that a later job does not have is not there."""
    daemon = make_daemon()
    daemon.cluster.stop()
    etc = Etc(daemon.cluster, daemon.directory / "etc" / "main")
    etc.start()
    old = etc.directory / "conf.d" / "old.conf"
    old.write_text("work_mem = '6MB'\n")
    daemon.backup()
    old.unlink()
    daemon.backup("D")
    answer = daemon.restore(where=f"{daemon.directory}/out")
    assert answer.error == "", answer.job.messages
    laid = daemon.directory / f"out/{PGDATA}/pgkeep.configuration" / etc.directory.relative_to("/")
    found = {str(path.relative_to(laid)): path.read_text() for path in laid.rglob("*") if path.is_file()}
    assert found == {name: text for name, text in etc.content().items() if name != "conf.d/README"}
    assert any("configuration from outside the data directory" in line for line in answer.job.said("info"))


def test_a_job_takes_the_standby_of_its_list(make_daemon: MakeDaemon) -> None:
    """The Plugin line leads to the primary; the job takes the standby that it names, and says so."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    with daemon.cluster.create_standby(daemon.directory / "standby") as standby:
        standby.start()
        mark = ledger.mark("there")
        standby.wait_for_replay(daemon.cluster.current_lsn())
        where = f"{standby.socket_directory}:{standby.port}"
        job = daemon.backup("F", f"standby_host=/nonexistent,{where}")
    said = job.said("info")
    assert any(line.endswith(f"backup from the standby at {where} as {SUPERUSER}") for line in said), said
    assert any("passed over: cannot connect to PostgreSQL at /nonexistent" in line for line in said)
    answer = daemon.restore(where=f"{daemon.directory}/out")
    assert answer.error == "", answer.job.messages
    daemon.cluster.stop()
    restored = daemon.server(daemon.directory / f"out/{PGDATA}", answer)
    restored.start()
    restored.wait_until_promoted()
    restored.assert_is_at(mark)
