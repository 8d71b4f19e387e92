"""A real server archives through the client under load, loses everything, and comes back through it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgkeep.jobs.archive.service import ArchiveService
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.wal import WalSegment
from pgkeep.vault import wal_holdings
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.wire.archive_packets import Operation
from tests.archive.client import Client, build_client, wait_until
from tests.lab.cluster import Cluster, MakeCluster
from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem

SEGMENT_MB = 1


def _own(path: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{server_user().uid}:{server_user().gid}", str(path)], check=True)


def _give_archive(cluster: Cluster, directory: Path, programs: Path, *, root: Path | None = None) -> Client:
    """Make an archive for *cluster* and have the running server archive into it."""
    system_identifier = int(cluster.value("SELECT system_identifier FROM pg_control_system()"))
    wal_root = (root or directory / "vault") / "main" / "wal"
    wal_root.mkdir(parents=True)
    (wal_root.parent / "cluster.json").touch()
    _own(wal_root.parent.parent)
    archive = WalArchive(wal_root, system_identifier=SystemIdentifier(system_identifier), segment_size=SEGMENT_MB << 20)
    client = Client(build_client(programs), cluster.data_directory, directory / "run", archive)
    client.log.touch()
    _own(client.log)
    return client


def _command(client: Client, verb: str, *operands: str) -> str:
    words = " ".join(client.arguments(verb, *operands))
    return f"PGKEEP_RUNTIME_DIR={client.runtime} PYTHONDONTWRITEBYTECODE=1 {words}"


def _start_archiving(cluster: Cluster, client: Client) -> None:
    cluster.configure({"archive_command": _command(client, "archive-push", "%p")})
    cluster.reload()


@contextmanager
def _load(cluster: Cluster) -> Iterator[None]:
    """Write rows from two sessions, some MiB a second, until the block ends."""
    ending = threading.Event()

    def write(worker: int) -> None:
        with cluster.connect(autocommit=True) as connection:
            while not ending.is_set():
                connection.execute(
                    "INSERT INTO load SELECT %s, g, md5(random()::text) || repeat('x', 200) "
                    "FROM generate_series(1, 500) g, pg_sleep(0.05)",
                    (worker,),
                )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _digest(cluster: Cluster) -> str:
    return str(cluster.value("SELECT count(*) || ':' || sum(hashtext(load::text)) FROM load"))


def _archived(cluster: Cluster) -> int:
    return int(cluster.value("SELECT archived_count FROM pg_stat_archiver"))


def _switch_and_wait(cluster: Cluster) -> Lsn:
    """End the current segment, wait until it is archived, and return the LSN up to which WAL is held."""
    lsn = Lsn.parse(str(cluster.value("SELECT pg_switch_wal()")))
    segment = WalSegment.ending_at(lsn, timeline=Timeline(1), size=SEGMENT_MB << 20)
    # The archive may hold it sooner, pushed ahead; only when the server says so does it hold all before it.
    last = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver"
    wait_until(lambda: str(cluster.value(last))[:24] >= segment.name, f"the archiving of {segment.name}")
    return segment.end_lsn


def _base_copy(cluster: Cluster, target: Path) -> Lsn:
    """Take a plain base backup, and return where it starts."""
    server_user().run(
        [
            cluster.installation.program("pg_basebackup"),
            *("-h", str(cluster.socket_directory), "-p", str(cluster.port), "-U", "postgres"),
            *("-D", str(target), "-X", "none", "-c", "fast", "--no-manifest"),
        ]
    )
    text = (target / "backup_label").read_text()
    return Lsn.parse(text.split("START WAL LOCATION: ")[1].split()[0])


def _recovering(cluster: Cluster, data: Path, client: Client, options: list[str]) -> Cluster:
    """Prepare the server in *data* for a recovery through the client; it is not started."""
    recovering = Cluster(cluster.installation, data)
    client.options = options
    recovering.configure(
        {
            "archive_mode": "off",
            "port": str(recovering.port),
            "restore_command": _command(client, "archive-get", "%f", "%p"),
            "recovery_target_action": "promote",
        }
    )
    (data / "recovery.signal").touch()
    _own(data / "recovery.signal")
    return recovering


@pytest.fixture
def programs(lab_directory: Path) -> Path:
    """Where the client is built: the server's account can run it, and an interpreter."""
    return lab_directory / "bin"


@pytest.fixture
def archiving(make_cluster: MakeCluster, lab_directory: Path, programs: Path) -> Iterator[tuple[Cluster, Client]]:
    """A server with segments of 1 MiB that archives through the client."""
    cluster = make_cluster(
        wal_segment_size_mb=SEGMENT_MB, settings={"archive_mode": "on", "archive_command": "/bin/false"}
    )
    cluster.sql("CREATE TABLE load (worker int, n int, body text)")
    client = _give_archive(cluster, lab_directory, programs)
    _start_archiving(cluster, client)
    yield cluster, client
    client.kill_services()


@pytest.mark.parametrize("killing", [False, True], ids=["calm", "kills"])
def test_server_comes_back_through_the_archive(
    archiving: tuple[Cluster, Client], lab_directory: Path, run_cluster: object, killing: bool
) -> None:
    """Under load, with the service killed again and again, what is archived is whole and replays to equal rows."""
    cluster, client = archiving
    start = _base_copy(cluster, lab_directory / "restored")
    with _load(cluster):
        before = _archived(cluster)
        for goal in range(4, 32, 4):
            wait_until(lambda goal=goal: _archived(cluster) >= before + goal, "archiving under load")  # type: ignore[misc]
            if killing:
                client.kill_services()
    digest = _digest(cluster)
    end = _switch_and_wait(cluster)
    assert list(wal_holdings.missing(client.archive, _segments(start, end))) == []
    cluster.stop()
    plan = _plan(client, start, end)
    plan.write(lab_directory / "plan")
    (lab_directory / "plan").chmod(0o644)
    recovering = _recovering(cluster, lab_directory / "restored", client, [f"--plan={lab_directory / 'plan'}"])
    with recovering:
        recovering.start(wait=not killing)
        if killing:
            for _ in range(5):
                client.kill_services()
            recovering.wait_until_ready()
        wait_until(lambda: not recovering.value("SELECT pg_is_in_recovery()"), "the promotion")
        assert _digest(recovering) == digest
    names = [path.name for path in (lab_directory / "restored" / "pg_wal").iterdir()]
    assert [name for name in names if name.startswith((".pgkeep", "RECOVERY"))] == []


def test_recovery_stops_at_a_hole_instead_of_opening(archiving: tuple[Cluster, Client], lab_directory: Path) -> None:
    """A segment missing inside the plan ends the start of the server: no quiet promotion."""
    cluster, client = archiving
    start = _base_copy(cluster, lab_directory / "restored")
    with _load(cluster):
        before = _archived(cluster)
        wait_until(lambda: _archived(cluster) >= before + 12, "archiving under load")
    end = _switch_and_wait(cluster)
    cluster.stop()
    segments = list(_segments(start, end))
    hole = segments[len(segments) // 2]
    client.archive.remove(hole.name)
    _plan(client, start, end).write(lab_directory / "plan")
    (lab_directory / "plan").chmod(0o644)
    recovering = _recovering(cluster, lab_directory / "restored", client, [f"--plan={lab_directory / 'plan'}"])
    with recovering:
        recovering.start(wait=False)
        recovering.wait_until_ended()
        assert f"{hole.name} is missing from the archive" in recovering.log_text()
        assert "archive recovery complete" not in recovering.log_text()
    assert (lab_directory / "restored" / "recovery.signal").exists()


def test_full_vault_fails_the_push_and_loses_nothing(
    make_cluster: MakeCluster, lab_directory: Path, programs: Path
) -> None:
    """With the vault full the server keeps its WAL and tries again; when there is room, all of it is archived."""
    cluster = make_cluster(
        wal_segment_size_mb=SEGMENT_MB, settings={"archive_mode": "on", "archive_command": "/bin/false"}
    )
    cluster.sql("CREATE TABLE load (worker int, n int, body text)")
    with small_filesystem(6) as small:
        client = _give_archive(cluster, lab_directory, programs, root=small / "vault")
        try:
            filler = small / "filler"
            filler.write_bytes(bytes((6 << 20) - (300 << 10)))
            _start_archiving(cluster, client)
            cluster.sql(
                "INSERT INTO load SELECT 1, g, md5(random()::text) || md5(random()::text) "
                "FROM generate_series(1, 20000) g"
            )
            wait_until(lambda: "No space left on device" in cluster.log_text(), "the full vault")
            for path in client.archive.root.rglob("*.zst"):
                client.archive.verify(path.stem)
            filler.unlink()
            end = _switch_and_wait(cluster)
            held = next(iter(wal_holdings.ranges(client.archive)))
            assert held.end_lsn >= end
            for number in range(held.first.number, held.last.number + 1):
                client.archive.verify(WalSegment(Timeline(1), number, SEGMENT_MB << 20).name)
        finally:
            client.kill_services()
            cluster.stop()


def test_service_hosted_by_a_restore_answers_the_server(archiving: tuple[Cluster, Client], lab_directory: Path) -> None:
    """A service inside another process, perhaps root's, feeds the whole replay without running Python once."""
    cluster, client = archiving
    _base_copy(cluster, lab_directory / "restored")
    with _load(cluster):
        before = _archived(cluster)
        wait_until(lambda: _archived(cluster) >= before + 8, "archiving under load")
    digest = _digest(cluster)
    _switch_and_wait(cluster)
    cluster.stop()
    client.kill_services()
    socket_path = lab_directory / "hosted" / "socket"
    # The root of a restore makes a directory that the server's user can pass.
    socket_path.parent.mkdir(mode=0o711)
    recovering = _recovering(cluster, lab_directory / "restored", client, [f"--socket={socket_path}"])
    runs = client.python_runs()
    with ArchiveService(
        client.archive, socket_path, operations=[Operation.GET], client_uid=server_user().uid
    ) as service:
        thread = threading.Thread(target=service.serve)
        thread.start()
        with recovering:
            recovering.start()
            wait_until(lambda: not recovering.value("SELECT pg_is_in_recovery()"), "the promotion")
            assert _digest(recovering) == digest
        service.stop()
        thread.join()
    assert client.python_runs() == runs
    restored = lab_directory / "restored" / "pg_wal"
    assert {path.stat().st_uid for path in restored.iterdir()} == {restored.stat().st_uid}


def _segments(start: Lsn, end: Lsn) -> Iterator[WalSegment]:
    segment = WalSegment.containing(start, timeline=Timeline(1), size=SEGMENT_MB << 20)
    while segment.end_lsn <= end:
        yield segment
        segment = segment.next()


def _plan(client: Client, start: Lsn, end: Lsn) -> WalPlan:
    names = [segment.name for segment in _segments(start, end)]
    return WalPlan(client.archive.system_identifier, SEGMENT_MB << 20, needed=((names[0], names[-1]),))
