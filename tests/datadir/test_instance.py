"""Starting, watching and stopping a server; and a whole base backup and recovery by the data directory alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
import pytest

from pgkeep.datadir.instance import Instance, PrivateAccess, ServerStatus, StopMode
from pgkeep.datadir.lay_down import LayDown
from pgkeep.datadir.owner import Owner, owner_of_restored_files
from pgkeep.datadir.postmaster import read_control_file, read_postmaster_file, running_postmaster
from pgkeep.datadir.read import PageCheck, PageReport, ReadReport, open_file
from pgkeep.datadir.recovery_files import RecoveryFiles, Signal, append_settings, remove_settings
from pgkeep.datadir.scan import Scan
from pgkeep.datadir.target import Target
from pgkeep.datadir.unlisted import remove_unlisted
from pgkeep.errors import RecoveryFailed, ServerError, ToolError
from pgkeep.pg.backup_label import parse_backup_label
from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.control_file import ClusterState
from pgkeep.pg.data_directory import tablespace_version_directory
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind, recovery_settings
from pgkeep.pg.tablespace_map import render_tablespace_map
from pgkeep.streams.item import BytesItem, DetachedItem, StreamedItem
from tests.datadir.trees import ROOT
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.ledger import Ledger, digest
from tests.lab.server_user import server_user

UP = frozenset({ServerStatus.READY, ServerStatus.STANDBY})


@pytest.fixture
def private(lab_directory: Path) -> Iterator[PrivateAccess]:
    """A private way in."""
    access = PrivateAccess.make(Owner.of(lab_directory))
    yield access
    access.remove()
    assert not access.directory.exists()


def instance_of(cluster: Cluster, data_directory: Path | None = None) -> Instance:
    """Return an instance over a cluster that is not running."""
    return Instance(
        data_directory or cluster.data_directory,
        bin_directory=cluster.installation.program("postgres").parent,
        log_path=cluster.data_directory.parent / "instance.log",
    )


def connect(private: PrivateAccess, dbname: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
    """Connect by the private socket."""
    return psycopg.connect(
        host=str(private.directory), port=private.port, user="postgres", dbname=dbname, autocommit=True
    )


def test_a_server_is_started_reached_by_its_private_socket_only_and_stopped(
    make_cluster: MakeCluster, private: PrivateAccess, major: int
) -> None:
    """What its configuration says about other places is overridden."""
    cluster = make_cluster(start=False)
    elsewhere = cluster.data_directory.parent / "external.pid"
    cluster.configure(
        {
            "data_directory": "/nonexistent",
            "hba_file": "/nonexistent/pg_hba.conf",
            "external_pid_file": str(elsewhere),
            "logging_collector": "on",
            "port": "1",
            # The wheel's build has no TLS and takes no such line.
            **({"ssl": "on"} if major < 18 else {}),
        }
    )
    instance = instance_of(cluster)
    assert instance.status() is ServerStatus.STOPPED

    instance.start(private.settings())
    try:
        assert instance.wait_for(UP, timeout_seconds=180) is ServerStatus.READY
        with connect(private) as connection:
            rows = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
        settings = dict(rows)
        assert settings["data_directory"] == str(cluster.data_directory)
        assert settings["listen_addresses"] == ""
        assert settings["unix_socket_directories"] == str(private.directory)
        assert not elsewhere.exists()
        assert private.directory.stat().st_mode & 0o777 == 0o700
        assert read_control_file(cluster.data_directory).state is ClusterState.IN_PRODUCTION
        postmaster = running_postmaster(cluster.data_directory)
        assert postmaster is not None
        assert (postmaster.port, postmaster.socket_directory) == (private.port, str(private.directory))
        with pytest.raises(RecoveryFailed) as raised:
            instance.start({})
        assert raised.value.message == (f"a server already runs in {cluster.data_directory}: process {postmaster.pid}")
    finally:
        instance.stop()

    assert instance.status() is ServerStatus.STOPPED
    assert read_postmaster_file(cluster.data_directory) is None
    assert read_control_file(cluster.data_directory).state is ClusterState.SHUT_DOWN
    instance.stop()
    assert "database system is shut down" in instance.log_tail()[-1]


def test_a_server_that_cannot_start_is_reported_with_its_last_fatal_line(make_cluster: MakeCluster) -> None:
    """Without waiting for the time to run out."""
    instance = instance_of(make_cluster(start=False, major=18))

    instance.start({"shared_buffers": "nonsense"})
    with pytest.raises(RecoveryFailed) as raised:
        instance.wait_for(UP, timeout_seconds=180)

    assert raised.value.message.startswith(f"the server in {instance.data_directory} stopped: ")
    assert raised.value.message.endswith('FATAL:  invalid value for parameter "shared_buffers": "nonsense"')
    assert raised.value.hint == f"see {instance.log_path}"


def test_a_server_that_takes_too_long_is_reported(make_cluster: MakeCluster, private: PrivateAccess) -> None:
    """A restore_command that hangs must not hang the restore; the caller sees every look."""
    cluster = make_cluster(start=False, major=18)
    (cluster.data_directory / "recovery.signal").touch()
    instance = instance_of(cluster)
    seen = []

    instance.start({**private.settings(), "restore_command": "sleep 1000"})
    try:
        with pytest.raises(RecoveryFailed) as raised:
            instance.wait_for(UP, timeout_seconds=0.5, tick=seen.append)
    finally:
        instance.stop(StopMode.IMMEDIATE)

    assert raised.value.message == f"the server in {cluster.data_directory} is still starting after 0.5 s"
    assert set(seen) == {ServerStatus.STARTING}


def test_a_server_that_is_to_stay_follows_its_own_configuration(
    make_cluster: MakeCluster, private: PrivateAccess, major: int
) -> None:
    """Who may enter is said by the file that it names, not by the one that initdb left; and it keeps its own log."""
    cluster = make_cluster(start=False)
    data_directory = cluster.data_directory
    hba_file, included = data_directory.parent / "real_hba.conf", data_directory / "access.conf"
    hba_file.write_text("local all all trust\n")
    included.write_text(f"hba_file = '{hba_file}'\nident_file = '/nonexistent/pg_ident.conf'\n")
    for path in (hba_file, included):
        server_user().own(path)
    cluster.configure({"include": "access.conf", "logging_collector": "on", "log_destination": "csvlog"})
    way_in = {name: private.settings()[name] for name in ("listen_addresses", "unix_socket_directories", "port")}
    instance = instance_of(cluster)

    instance.start(way_in, is_final=True)
    try:
        instance.wait_for(UP, timeout_seconds=180)
        with connect(private) as connection:
            rows = connection.execute("SELECT name, setting FROM pg_settings").fetchall()
    finally:
        instance.stop()

    names = ("data_directory", "hba_file", "ident_file", "logging_collector", "log_destination")
    assert {name: setting for name, setting in rows if name in names} == {
        "data_directory": str(data_directory),
        "hba_file": str(hba_file),
        "ident_file": str(data_directory / "pg_ident.conf"),
        "logging_collector": "on",
        "log_destination": "csvlog",
    }


def test_a_program_that_is_not_there_is_named(lab_directory: Path) -> None:
    """It is the tool that is missing, not the server that failed."""
    instance = Instance(lab_directory, bin_directory=lab_directory, log_path=lab_directory / "log")

    with pytest.raises(ToolError) as raised:
        instance.start({})

    assert raised.value.message == f"cannot start {lab_directory}/postgres: No such file or directory"


def test_a_killed_server_counts_as_stopped(make_cluster: MakeCluster, private: PrivateAccess) -> None:
    """It leaves its pid file behind."""
    cluster = make_cluster(start=False, major=18)
    instance = instance_of(cluster)
    instance.start(private.settings())
    instance.wait_for(UP, timeout_seconds=180)
    postmaster = running_postmaster(cluster.data_directory)
    assert postmaster is not None

    os.kill(postmaster.pid, signal.SIGKILL)
    wait_for(lambda: instance.status() is ServerStatus.STOPPED, "the server is gone")

    assert read_postmaster_file(cluster.data_directory) == postmaster
    assert instance_of(cluster).status() is ServerStatus.STOPPED
    instance.stop()


def test_a_log_that_cannot_be_written_goes_to_the_directory_for_temporary_files(
    make_cluster: MakeCluster, private: PrivateAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server starts all the same, and who is told to look at the log is told where it is."""
    cluster = make_cluster(start=False, major=18)
    wanted = cluster.data_directory.parent / "instance.log"
    wanted.mkdir()
    temporary = cluster.data_directory.parent / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    instance = instance_of(cluster)

    with pytest.raises(RecoveryFailed) as refused:
        instance.start(private.settings())
    assert refused.value.message == f"cannot write the server's log: {wanted}: Is a directory"
    assert refused.value.hint == f"make it writable, or the directory for temporary files, {temporary}"

    temporary.mkdir()
    instance.start({**private.settings(), "work_mem": "nonsense"})
    with pytest.raises(RecoveryFailed) as raised:
        instance.wait_for(UP, timeout_seconds=180)
    [log_path] = temporary.glob("instance-*.log")
    assert raised.value.hint == f"see {log_path}"
    assert 'invalid value for parameter "work_mem": "nonsense"' in "".join(instance.log_tail())

    instance.start(private.settings())
    try:
        assert instance.wait_for(UP, timeout_seconds=180) is ServerStatus.READY
    finally:
        instance.stop()
    assert list(temporary.glob("*")) == [log_path]


_MAKE_UNDER_ATTACK = """
import os, sys
from pathlib import Path
from pgkeep.datadir.instance import PrivateAccess
from pgkeep.datadir.owner import Owner
owner, victim = Owner(int(sys.argv[1]), int(sys.argv[2])), sys.argv[3]
def attack(event, arguments):
    # Whatever is about to be given away is replaced by a link, as soon as the directory is the attacker's.
    if event == "os.chown" and os.stat(os.path.dirname(arguments[0])).st_uid == owner.uid:
        os.unlink(arguments[0])
        os.symlink(victim, arguments[0])
sys.addaudithook(attack)
access = PrivateAccess.make(owner)
print(*sorted(f"{path.name} {path.stat().st_uid}" for path in [*access.directory.iterdir()]), sep="\\n")
print(access.directory.stat().st_uid)
access.remove()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_of_a_private_directory_cannot_make_root_give_away_a_file(tmp_path: Path) -> None:
    """A link that the server's account puts into the directory while root still works in it is never followed."""
    victim = tmp_path / "shadow"
    victim.touch()
    user = server_user()

    made = subprocess.run(
        [sys.executable, "-c", _MAKE_UNDER_ATTACK, str(user.uid), str(user.gid), str(victim)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    assert made.stdout.splitlines() == [f"pg_hba.conf {user.uid}", f"pg_ident.conf {user.uid}", str(user.uid)]
    assert victim.stat().st_uid == 0


_START = """
import sys
from pathlib import Path
from pgkeep.datadir.instance import Instance, PrivateAccess
Instance(Path(sys.argv[1]), bin_directory=Path(sys.argv[2]), log_path=Path(sys.argv[3])).start(
    PrivateAccess(Path(sys.argv[4])).settings())
"""


def test_a_server_outlives_the_process_that_started_it(make_cluster: MakeCluster, private: PrivateAccess) -> None:
    """The next run of pgkeep finds it, and can stop it; libpq's variables have not reached it."""
    cluster = make_cluster(start=False, major=18)
    instance = instance_of(cluster)
    subprocess.run(
        [
            sys.executable,
            *("-c", _START, cluster.data_directory, cluster.installation.program("postgres").parent),
            *(instance.log_path, private.directory),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PGPASSWORD": "secret", "PGKEEP_X": "kept"},
        check=True,
    )
    try:
        assert instance.wait_for(UP, timeout_seconds=180) is ServerStatus.READY
        postmaster = running_postmaster(cluster.data_directory)
        assert postmaster is not None
        environment = Path(f"/proc/{postmaster.pid}/environ").read_bytes()
        assert b"secret" not in environment
        assert b"PGKEEP_X=kept" in environment
    finally:
        instance.stop()
    assert instance.status() is ServerStatus.STOPPED


def test_a_missing_or_damaged_control_file_is_named(tmp_path: Path) -> None:
    """Reading it again does not help."""
    with pytest.raises(ServerError) as raised:
        read_control_file(tmp_path)

    assert raised.value.message == f"cannot read {tmp_path}/global/pg_control: No such file or directory"


def copy_files(scan: Scan, work: LayDown, pages: PageCheck) -> list[str]:
    """Lay down what *scan* finds, pg_control last; return the paths."""
    reads = ReadReport()
    listed = []

    def accept(item: DetachedItem | StreamedItem | None) -> None:
        if item is not None:
            listed.append(item.header.path)
            work.accept(item)

    for found in scan.files():
        accept(BytesItem(found.header(), b"") if found.is_directory else open_file(found, report=reads, pages=pages))
    accept(open_file(scan.control_file(), report=reads, barrier=True))
    return listed


def test_a_base_backup_taken_under_load_recovers_to_the_last_row(
    make_cluster: MakeCluster, private: PrivateAccess, major: int
) -> None:
    """Tables are written, rewritten, truncated and dropped while they are read; the recovered rows are the same."""
    cluster = make_cluster(start=False)
    directory = cluster.data_directory.parent
    cluster.archive_to(directory / "archive")
    cluster.start()
    (directory / "ts").mkdir()
    server_user().own(directory / "ts")
    cluster.sql(f"CREATE TABLESPACE outside LOCATION '{directory}/ts'")
    cluster.sql(
        "CREATE TABLE far TABLESPACE outside AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 9000) n"
    )
    cluster.sql("CREATE TABLE rewritten AS SELECT n, repeat('y', 500) AS t FROM generate_series(1, 9000) n")
    cluster.sql("CREATE TABLE doomed AS SELECT * FROM rewritten")
    cluster.sql("CREATE UNLOGGED TABLE unlogged AS SELECT * FROM rewritten")
    ledger = Ledger(cluster)
    capabilities = Capabilities(major * 10000)
    control = read_control_file(cluster.data_directory)
    version_directory = tablespace_version_directory(major, control.catalog_version)
    oid = int(cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'outside'"))
    target = Target(
        data_directory=directory / "restored",
        version_directory=version_directory,
        tablespaces={oid: directory / "restored-ts"},
        owner=owner_of_restored_files(directory / "restored", recorded=server_user().name),
    )
    report = PageReport()

    with ledger.load() as load, cluster.connect() as session:
        load.wait_for(50)
        [start] = session.execute(cast("LiteralString", capabilities.start_backup_sql), ["test", True]).fetchone() or ()
        scan = Scan(
            cluster.data_directory,
            root=ROOT,
            version_directory=version_directory,
            required_tablespaces=[oid],
            warn=print,
        )
        target.check()
        target.begin()
        with LayDown(target, root=ROOT, workers=2) as work:
            load.wait_for(50)
            cluster.sql("VACUUM FULL rewritten")
            listed = copy_files(scan, work, PageCheck(Lsn.parse(start), report))
            cluster.sql("DROP TABLE doomed")
            cluster.sql("DELETE FROM far WHERE n > 100")
            cluster.sql("VACUUM far")
            load.wait_for(50)
            laid = work.finish()
        row = session.execute(cast("LiteralString", capabilities.stop_backup_sql), [True]).fetchone()
        assert row is not None
    stop, label = str(row[0]), str(row[1])
    report.settle(Lsn.parse(stop))
    assert (report.damaged(), laid.files > 900) == ([], True)
    assert report.checked > 3000
    mark = ledger.mark("end")
    last = cluster.switch_wal()
    wait_for((directory / "archive" / last).exists, "the last segment is archived")
    cluster.stop()

    assert parse_backup_label(label).start_lsn == Lsn.parse(start)
    goal = RecoveryTarget(kind=TargetKind.NAME, value="end", action=TargetAction.PROMOTE)
    settings = recovery_settings(goal, major=major, restore_command=f'cp "{directory}/archive/%f" "%p"')
    files = RecoveryFiles(
        backup_label=label,
        tablespace_map=render_tablespace_map({oid: str(directory / "restored-ts")}, major=major),
        signal=Signal.RECOVERY,
        settings=settings,
    )
    files.write(target.data_directory, owner=target.owner)
    assert remove_unlisted(target, listed, root=ROOT) == 0
    target.complete()
    instance = instance_of(cluster, target.data_directory)
    instance.start({**private.settings(), "archive_mode": "off"})
    try:
        instance.wait_for({ServerStatus.READY}, timeout_seconds=180)
        wait_for(lambda: not _is_recovering(private), "recovery is over")
        with connect(private) as connection:
            assert digest(connection) == mark.digests
            ledger.check(connection)
            assert connection.execute("SELECT count(*) FROM unlogged").fetchone() == (0,)
    finally:
        instance.stop()
    remove_settings(target.data_directory, settings, owner=target.owner)
    assert "recovery_target" not in (target.data_directory / "postgresql.auto.conf").read_text()
    assert not (target.data_directory / "recovery.signal").exists()
    assert os.readlink(target.data_directory / f"pg_tblspc/{oid}") == str(directory / "restored-ts")


def _is_recovering(private: PrivateAccess) -> bool:
    with connect(private) as connection:
        return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


def test_settings_put_into_a_real_server_are_in_force_and_taken_out_after_alter_system(
    make_cluster: MakeCluster, major: int
) -> None:
    """The server's own rewriting of the file neither loses nor keeps them."""
    cluster = make_cluster()
    cluster.sql("ALTER SYSTEM SET work_mem = '7MB'")
    settings = {"work_mem": "9MB", "cluster_name": 'it\'s \\ a "name"'}
    append_settings(cluster.data_directory, settings, owner=Owner.of(cluster.data_directory))
    cluster.restart()
    assert cluster.value("SHOW work_mem") == "9MB"
    assert cluster.value("SHOW cluster_name") == settings["cluster_name"]

    cluster.sql("ALTER SYSTEM SET jit = on")
    remove_settings(cluster.data_directory, settings, owner=Owner.of(cluster.data_directory))
    cluster.restart()

    assert cluster.value("SHOW work_mem") == "7MB"
    assert cluster.value("SHOW cluster_name") == ""
    assert cluster.value("SHOW jit") == "on"
