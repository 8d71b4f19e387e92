"""A cluster that comes back out of Bacula's stream."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from tests.bacula_restore.bridge import Answer
from tests.bacula_restore.conftest import Daemon, MakeDaemon
from tests.lab.cluster import MakeCluster
from tests.lab.ledger import Ledger, Mark, check_ledger
from tests.lab.server_user import server_user
from tests.restore.keeper import Restored

PGDATA = "@postgresql/pitr/pgdata"


def started(daemon: Daemon, answer: Answer, directory: Path) -> Restored:
    """Return the copy in *directory*, started by pg_ctl when the original is down, and promoted."""
    assert answer.error == "", answer.job.messages
    if daemon.cluster.is_running:
        daemon.cluster.stop()
    restored = daemon.server(directory, answer)
    restored.start()
    restored.wait_until_promoted()
    return restored


def chain(daemon: Daemon) -> list[Mark]:
    """Make a Full, an Incremental, a Differential and an Incremental, with a mark after the load before each end."""
    ledger = Ledger(daemon.cluster)
    ledger.transfer(30)
    daemon.cluster.sql("CREATE TABLE gone AS SELECT generate_series(1, 50000) n")
    daemon.cluster.sql("CREATE TABLE cut AS SELECT generate_series(1, 50000) n")
    daemon.cluster.sql("CHECKPOINT")
    marks = [ledger.mark("full")]
    daemon.backup("F")
    ledger.transfer(20)
    marks.append(ledger.mark("first"))
    ledger.transfer(5)
    daemon.backup("I")
    ledger.transfer(20)
    daemon.cluster.sql("DROP TABLE gone")
    daemon.cluster.sql("TRUNCATE cut")
    daemon.cluster.sql("CHECKPOINT")
    marks.append(ledger.mark("differential"))
    daemon.backup("D")
    ledger.transfer(20)
    marks.append(ledger.mark("second"))
    ledger.transfer(20)
    daemon.backup("I")
    return marks


@pytest.mark.usefixtures("major")
@pytest.mark.parametrize("plain", [False, True])
def test_a_full_becomes_a_directory_that_pg_ctl_starts(make_daemon: MakeDaemon, plain: bool) -> None:
    """where=/directory gives a data directory ready to start, which replays to the end of the WAL."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    ledger.transfer(50)
    mark = ledger.mark("before")
    daemon.backup()
    answer = daemon.restore(where=f"{daemon.directory}/out", plain=plain)
    assert answer.error == ""
    assert [line.partition(":")[0] for line in answer.phases] == [
        "RESTORE PHASE 1/6 pre-check",
        "RESTORE PHASE 2/6 lay-down",
        "RESTORE PHASE 3/6 recovery-config",
    ]
    directory = daemon.directory / f"out/{PGDATA}"
    assert any(f"pg_ctl -D {directory}" in line for line in answer.job.said("info"))
    started(daemon, answer, directory).assert_is_at(mark)


def test_wal_that_is_not_selected_is_said(make_daemon: MakeDaemon) -> None:
    """Without the last WAL file of the jobs the cluster comes back, and a warning names the job and both ends."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    daemon.backup()
    ledger.transfer(20)
    daemon.backup("I")
    ledger.transfer(20)
    daemon.backup("I")
    whole = daemon.restoring()
    answer = daemon.restore(where=f"{daemon.directory}/whole")
    assert (answer.error, answer.job.said("warning")) == ("", [])
    last = max(file.name for file in whole.files if "/pitr/wal/" in file.name)
    answer = daemon.restore(whole.without(last), where=f"{daemon.directory}/out")
    [warning] = answer.job.said("warning")
    assert answer.error == ""
    assert warning.partition("-I is not selected")[2] == (
        ", or the catalog has lost its names: it goes on to 0/05000000, and what is announced ends at 0/04000000, "
        "where the recovery may end"
    )


def test_a_chain_reaches_every_moment(make_daemon: MakeDaemon) -> None:
    """The newest files of a Full and a Differential, with the WAL of all jobs, are the cluster at any later moment."""
    daemon = make_daemon()
    _, _, differential, second = chain(daemon)
    answer = daemon.restore(
        where=f"{daemon.directory}/out", options={"target_lsn": str(second.lsn), "target_inclusive": "yes"}
    )
    assert any(line.startswith("removed ") for line in answer.job.said("info"))
    restored = started(daemon, answer, daemon.directory / f"out/{PGDATA}")
    restored.assert_is_at(second)
    assert restored.value("SELECT count(*) FROM cut") == 0
    assert restored.value("SELECT count(*) FROM pg_class WHERE relname = 'gone'") == 0

    early = daemon.restore(where=f"{daemon.directory}/early", options={"target_lsn": str(differential.lsn)})
    assert "is before the end of backup" in early.error
    assert 'restore ... before="' in early.error
    assert not (daemon.directory / "early").exists()
    late = daemon.restore(where=f"{daemon.directory}/late", options={"target_lsn": "FF/0"})
    assert "is beyond the WAL held" in late.error
    assert late.answers == {}


def test_older_jobs_reach_older_moments(make_daemon: MakeDaemon) -> None:
    """Without the Differential the Full is the base, and the WAL of the Incremental leads to a time."""
    daemon = make_daemon()
    _, first, *_ = chain(daemon)
    answer = daemon.restore(
        daemon.restoring(0, 1),
        where=f"/@pgkeep/?target_time={first.time.isoformat().replace('+', '%2B')}&where={daemon.directory}/out",
    )
    started(daemon, answer, daemon.directory / f"out/{PGDATA}").assert_is_at(first)


def test_wal_does_not_stand_in_for_files(make_daemon: MakeDaemon) -> None:
    """A selection without one file is refused before the first byte, however much WAL of later jobs comes along."""
    daemon = make_daemon()
    daemon.backup()
    for _ in range(2):
        daemon.cluster.sql("CREATE TABLE IF NOT EXISTS later AS SELECT 1")
        daemon.cluster.switch_wal()
    daemon.backup("I")
    restoring = daemon.restoring()
    lost = restoring.first(f"/{PGDATA}/base/", larger_than=8192).name
    answer = daemon.restore(restoring.without(lost), options={"pgdata_dir": f"{daemon.directory}/out"})
    assert "files are selected, backup" in answer.error
    assert answer.answers == {}


def test_the_service_comes_back_in_its_place(make_daemon: MakeDaemon) -> None:
    """where=/ takes the cluster's own place when it may be overwritten, and starts the server when that is asked."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    ledger.transfer(50)
    mark = ledger.mark("before")
    daemon.backup()
    running = daemon.restore()
    assert "a server runs in" in running.error
    assert running.answers == {}
    daemon.cluster.stop()
    full = daemon.restore()
    assert "is not empty" in full.error
    where = base64.b64encode(json.dumps({"overwrite_existing": True, "start_postgresql_after_restore": "yes"}).encode())
    answer = daemon.restore(where=f"/#{where.decode()}")
    assert answer.error == ""
    assert len(answer.phases) == 6
    restored = daemon.server(daemon.cluster.data_directory, answer)
    restored.assert_is_at(mark)
    assert not list(daemon.directory.glob("*.pgkeep-wal"))
    assert list(daemon.directory.glob("data.old.*"))


def test_another_cluster_is_never_replaced(make_daemon: MakeDaemon, make_cluster: MakeCluster) -> None:
    """overwrite_existing does not reach a cluster of another system identifier."""
    daemon = make_daemon()
    daemon.backup()
    other = make_cluster("other", start=False)
    answer = daemon.restore(options={"overwrite_existing": "yes", "pgdata_dir": str(other.data_directory)})
    assert "holds another cluster: its system identifier is" in answer.error
    assert answer.answers == {}


@pytest.mark.usefixtures("major")
def test_tablespaces_come_beside_the_copy(make_daemon: MakeDaemon) -> None:
    """A tablespace is laid down below the directory too, or where the map says, never in its original place."""
    daemon = make_daemon()
    place = daemon.directory / "fast"
    place.mkdir()
    os.chown(place, server_user().uid, server_user().gid)
    daemon.cluster.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    daemon.cluster.sql("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 10000) n")
    daemon.backup()
    answer = daemon.restore(where=f"{daemon.directory}/out")
    restored = started(daemon, answer, daemon.directory / f"out/{PGDATA}")
    assert restored.value("SELECT count(*) FROM there") == 10000
    oid = restored.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")
    assert restored.value(f"SELECT pg_tablespace_location({oid})") == str(
        daemon.directory / f"out/@postgresql/pitr/tblspc/{oid}"
    )


def test_a_dry_run_says_the_plan_and_touches_nothing(make_daemon: MakeDaemon) -> None:
    """dry_run_restore prints the plan; what comes is dropped."""
    daemon = make_daemon()
    daemon.backup()
    answer = daemon.restore(where=f"{daemon.directory}/out", options={"dry_run_restore": "yes"})
    assert answer.error == ""
    assert any(line.startswith("recovery target:") for line in answer.job.said("info"))
    assert set(answer.answers.values()) == {"SKIP"}
    assert not (daemon.directory / "out").exists()


def test_the_ledger_adds_up_under_load(make_daemon: MakeDaemon) -> None:
    """A Full made under load is consistent when it comes back without a ring and without a list of files."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    with ledger.load() as load:
        load.wait_for(20)
        daemon.backup()
        load.wait_for(20)
    answer = daemon.restore(where=f"{daemon.directory}/out", ring=False, expects=False)
    restored = started(daemon, answer, daemon.directory / f"out/{PGDATA}")
    with restored.connect() as connection:
        assert check_ledger(connection)


def test_options_are_known_or_refused(make_daemon: MakeDaemon) -> None:
    """An unknown option is refused before anything happens, with the name that was meant."""
    daemon = make_daemon()
    daemon.backup()
    answer = daemon.restore(options={"target_tme": "2026-01-01"})
    assert 'unknown parameter "target_tme" in the restore options' in answer.error
    assert 'did you mean "target_time"?' in answer.error
    both = daemon.restore(where="/@pgkeep/?target_time=2026-04-23T14:30:00Z&target_xid=5")
    assert "one recovery target is possible" in both.error


def test_options_come_from_everywhere(make_daemon: MakeDaemon) -> None:
    """where= wins over the menu, that over the Plugin line, that over a profile, which must keep its secrets."""
    daemon = make_daemon()
    daemon.backup()
    configuration = daemon.directory / "etc"
    (configuration / "restore.d").mkdir(parents=True)
    (configuration / "pgkeep.conf").write_text("[options]\nparallel_jobs = 2\n")
    profile = configuration / "restore.d/drill.conf"
    profile.write_text(f"[restore]\npgdata_dir = {daemon.directory}/profile\nrecovery_target_action = pause\n")
    for path in (configuration / "pgkeep.conf", profile):
        path.chmod(0o644)
    daemon.words += f" config={configuration}/pgkeep.conf"

    def planned(where: str, words: str = "", **options: str) -> str:
        answer = daemon.restore(
            where=where, options={**options, "dry_run_restore": "yes"}, words=f"{daemon.words} {words}".strip()
        )
        assert answer.error == "", answer.error
        [line] = [line for line in answer.job.said("info") if line.startswith("files: ")]
        return line.rpartition("/")[2]

    assert planned("/@pgkeep/drill") == "profile"
    assert planned("/", profile="drill") == "profile"
    assert planned("/@pgkeep/drill", f"pgdata_dir={daemon.directory}/line") == "line"
    menu = f"{daemon.directory}/menu"
    assert planned("/@pgkeep/drill", f"pgdata_dir={daemon.directory}/line", pgdata_dir=menu) == "menu"
    assert planned(f"/@pgkeep/?pgdata_dir={daemon.directory}/where&profile=drill", pgdata_dir=menu) == "where"
    missing = daemon.restore(where="/@pgkeep/other")
    assert "profile other: cannot read" in missing.error
    profile.write_text("[restore]\nprimary_conninfo = host=a password=secret\n")
    exposed = daemon.restore(where="/@pgkeep/drill")
    assert "holds a password and must not be readable by others" in exposed.error
    assert "secret" not in str(exposed.job.messages)


def test_a_line_with_a_cluster_id_has_a_root_of_its_own(make_daemon: MakeDaemon) -> None:
    """The files of a cluster with a name lie below that name, whatever name this host's settings give it."""
    daemon = make_daemon("pitr", "cluster_id=west")
    mark = Ledger(daemon.cluster).mark("before")
    daemon.backup()
    answer = daemon.restore(where=f"{daemon.directory}/out")
    directory = daemon.directory / "out/@postgresql/cluster_west/pitr/pgdata"
    started(daemon, answer, directory).assert_is_at(mark)
    other = daemon.restore(where=f"{daemon.directory}/other", words=daemon.words.replace("=west", "=east"))
    assert other.error == ""
    assert (daemon.directory / "other/@postgresql/cluster_west/pitr/pgdata/backup_label").exists()


def test_a_backup_of_a_standby_comes_back(make_daemon: MakeDaemon) -> None:
    """A standby cannot end its last segment: what there is of it makes the copy consistent."""
    daemon = make_daemon()
    ledger = Ledger(daemon.cluster)
    ledger.transfer(20)
    standby = daemon.cluster.create_standby(daemon.directory / "standby")
    with standby.start():
        standby.wait_for_replay(daemon.cluster.current_lsn())
        daemon.words = daemon.words.replace(f"port={daemon.cluster.port}", f"port={standby.port}").replace(
            f"host={daemon.cluster.socket_directory}", f"host={standby.socket_directory}"
        )
        daemon.backup()
    answer = daemon.restore(where=f"{daemon.directory}/out")
    restored = started(daemon, answer, daemon.directory / f"out/{PGDATA}")
    with restored.connect() as connection:
        assert check_ledger(connection)


def test_a_host_without_postgresql_takes_a_copy(make_daemon: MakeDaemon) -> None:
    """Where nothing is to be started, no program of PostgreSQL is needed; otherwise that is refused at once."""
    daemon = make_daemon()
    daemon.backup()
    (daemon.directory / "bin").mkdir()
    words = daemon.words.replace(f"bin_dir={daemon.cluster.installation.bin_dir}", f"bin_dir={daemon.directory}/bin")
    answer = daemon.restore(where=f"{daemon.directory}/out", words=words)
    assert answer.error == ""
    assert (daemon.directory / f"out/{PGDATA}/global/pg_control").exists()
    answer = daemon.restore(
        where=f"{daemon.directory}/other", words=words, options={"start_postgresql_after_restore": "yes"}
    )
    assert "bin_dir" in answer.error
    assert answer.answers == {}
