"""BASE_BACKUP from real servers: what arrives is the cluster, and every accident on the way is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgkeep.errors import ServerError, UsageError
from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.data_directory import CONTROL_FILE
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.server import queries
from pgkeep.server.base_backup import (
    BaseBackup,
    BaseBackupEnd,
    BaseBackupStart,
    ReceivedFile,
)
from pgkeep.server.base_backup_command import BaseBackupOptions, base_backup_command
from pgkeep.server.connection import Server
from pgkeep.server.replication import Replication
from pgkeep.server.slots import TemporarySlot
from pgkeep.server.streamed_wal import StreamedWal
from pgkeep.streams.item import UNKNOWN_SIZE, ItemKind
from tests.lab.cluster import Cluster, MakeCluster
from tests.lab.proxy import Proxy
from tests.lab.server_user import server_user
from tests.server.wal_range import supply_range

from .conftest import target_of, turn_on_tls

FAST = BaseBackupOptions(label="pgkeep 'test'", fast=True)


@dataclass
class Received:
    """A base backup that has arrived."""

    start: BaseBackupStart
    end: BaseBackupEnd
    files: dict[str, ReceivedFile]
    order: list[str]
    content: dict[str, bytes]

    def lay_down(self, directory: Path, spaces: dict[int, Path]) -> None:
        """Write it where a server can be started, each tablespace to its directory in *spaces*."""
        directory.mkdir(mode=0o700)
        for path, file in self.files.items():
            place = directory / path
            for oid, space in spaces.items():
                prefix = f"pg_tblspc/{oid}/"
                if path.startswith(prefix):
                    place = space / path.removeprefix(prefix)
            if file.kind is ItemKind.DIRECTORY:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self.content[path])
            place.chmod(0o700 if file.kind is ItemKind.DIRECTORY else 0o600)
        if spaces:
            (directory / "tablespace_map").write_text("".join(f"{oid} {space}\n" for oid, space in spaces.items()))


def receive(replication: Replication, options: BaseBackupOptions = FAST, **arguments: object) -> Received:
    """Receive a whole base backup into memory."""
    backup = BaseBackup(replication, options)
    start = backup.start(**arguments)  # type: ignore[arg-type]
    files: dict[str, ReceivedFile] = {}
    content: dict[str, bytes] = {}
    for file in backup.files():
        assert file.path not in files
        assert not {"", ".", ".."} & set(file.path.split("/"))
        files[file.path] = file
        content[file.path] = b"".join(bytes(chunk) for chunk in file.chunks())
        assert file.size in {UNKNOWN_SIZE, len(content[file.path])}
    return Received(start, backup.end, files, list(files), content)


def test_backup_is_a_cluster_that_starts(major: int, make_cluster: MakeCluster, lab_directory: Path) -> None:
    """What arrives, with the WAL that the stream gives for it, starts as a server with the same rows everywhere."""
    cluster = make_cluster()
    spaces = {name: lab_directory / name for name in ("old space", "new space")}
    for directory in spaces.values():
        directory.mkdir()
        server_user().own(directory)
    cluster.sql(f"CREATE TABLESPACE outside LOCATION '{spaces['old space']}'")
    cluster.sql('CREATE DATABASE "we/ird ""näme"""')
    for dbname, tablespace in [("postgres", "pg_default"), ('we/ird "näme"', "outside")]:
        cluster.sql(
            f"CREATE TABLE t TABLESPACE {tablespace} AS SELECT i, repeat(md5(i::text), 20) AS s "
            "FROM generate_series(1, 20000) AS i",
            dbname=dbname,
        )
    cluster.sql("CREATE UNLOGGED TABLE volatile AS SELECT 1 AS i")
    digest = "SELECT md5(string_agg(i || s, ',' ORDER BY i)) FROM t"
    expected = {dbname: cluster.value(digest, dbname=dbname) for dbname in ("postgres", 'we/ird "näme"')}
    oid = cluster.value("SELECT oid::bigint FROM pg_tablespace WHERE spcname = 'outside'")
    with Server.open(target_of(cluster)) as server, TemporarySlot(server), server.replication() as replication:
        received = receive(replication)
        last = [CONTROL_FILE, "backup_manifest"] if server.capabilities.has_manifest else [CONTROL_FILE]
        assert received.order[-len(last) :] == last
        assert [tablespace.oid for tablespace in received.start.tablespaces] == [oid, 0]
        assert received.start.tablespaces[0].location == str(spaces["old space"])
        assert received.content["tablespace_map"].decode() == f"{oid} {spaces['old space']}\n"
        assert b"LABEL: pgkeep 'test'\n" in received.content["backup_label"]
        assert received.end.stop_lsn > received.start.start_lsn
        assert (received.start.timeline, received.end.timeline, received.end.damaged) == (1, 1, ())
        estimate = received.start.size_bytes
        assert estimate is not None
        assert abs(estimate - sum(map(len, received.content.values()))) < estimate / 10
        supply = StreamedWal(
            server.replication,
            system_identifier=queries.identify(server).system_identifier,
            flushed=lambda: queries.flushed_lsn(server),
            where=server.where,
        )
        restored = lab_directory / "restored"
        received.lay_down(restored, {oid: spaces["new space"]})
        for wal in supply_range(
            supply,
            TimelineHistory.single(received.end.timeline),
            start=received.start.start_lsn,
            start_timeline=received.start.timeline,
            end=received.end.stop_lsn,
            segment_size=queries.wal_segment_size(server),
            timeout_seconds=180,
        ):
            (restored / "pg_wal" / wal.segment.name).write_bytes(b"".join(bytes(chunk) for chunk in wal.chunks()))
        supply.close()
    # Both would write to the old tablespace otherwise, if the map were not obeyed.
    cluster.stop()
    server_user().own(restored)
    server_user().own(spaces["new space"])
    with Cluster(cluster.installation, restored) as again:
        again.start()
        assert {dbname: again.value(digest, dbname=dbname) for dbname in expected} == expected
        assert again.value("SELECT count(*) FROM volatile") == 0
        assert os.readlink(restored / f"pg_tblspc/{oid}") == str(spaces["new space"])


def filled(file: ReceivedFile, *, room: int) -> tuple[bytes, int]:
    """Return the content of *file*, and how much of it was put straight into a buffer of *room* bytes."""
    content, straight = bytearray(), 0
    buffer = bytearray(room)
    for chunk in file.chunks():
        content += chunk
        while taken := file.fill(memoryview(buffer)):
            content += buffer[:taken]
            straight += taken
    return bytes(content), straight


@pytest.mark.parametrize("room", [33 << 10, 300 << 10, 4 << 20])
def test_content_goes_straight_to_its_place(shared_cluster: Cluster, room: int) -> None:
    """Nearly all of large files can be put where it is wanted, over a socket and over an address; it is the same."""
    # A vacuum in between would write to its pages.
    shared_cluster.sql(
        f"CREATE TABLE t{room} WITH (autovacuum_enabled = off) AS "
        "SELECT i, repeat(md5(i::text), 8) AS s FROM generate_series(1, 30000) AS i"
    )
    path = shared_cluster.value(f"SELECT pg_relation_filepath('t{room}')")
    shared_cluster.sql("CHECKPOINT")
    expected = (shared_cluster.data_directory / path).read_bytes()
    for is_tcp in (False, True):
        with Server.open(target_of(shared_cluster, tcp=is_tcp)) as server, server.replication() as replication:
            for _ in range(2):
                backup = BaseBackup(replication, FAST)
                backup.start()
                found = {file.path: filled(file, room=room) for file in backup.files()}
                content, straight = found[path]
                assert content == expected
                assert straight > len(content) - (256 << 10) - 2 * (32 << 10) > 0
                assert json.loads(found["backup_manifest"][0])["Files"] if "backup_manifest" in found else True
            assert replication.identify().timeline == 1
    shared_cluster.sql(f"DROP TABLE t{room}")


def test_encrypted_backup_is_libpqs(make_cluster: MakeCluster) -> None:
    """Over TLS the socket's bytes mean nothing to us: libpq reads the backup, and nothing is put straight anywhere."""
    cluster = make_cluster(major=15)
    fill(cluster)
    turn_on_tls(cluster)
    target = target_of(cluster, tcp=True, sslmode="require")
    with Server.open(target) as server, server.replication() as replication:
        assert replication.lend() is None
        backup = BaseBackup(replication, FAST)
        backup.start()
        found = {file.path: filled(file, room=1 << 20) for file in backup.files()}
        assert replication.identify().timeline == 1
    manifest = json.loads(found["backup_manifest"][0])
    sizes = {file["Path"]: file["Size"] for file in manifest["Files"]}
    assert {path: len(found[path][0]) for path in sizes} == sizes
    assert sum(straight for _, straight in found.values()) == 0


def test_unfinished_backup_ends_the_conversation(shared_server: Server) -> None:
    """A conversation whose backup was not read to its end takes no other command, and can be closed."""
    with shared_server.replication() as replication:
        BaseBackup(replication, FAST).start()
        with pytest.raises(ServerError) as error:
            replication.identify()
    assert error.value.message == (
        f"a conversation with PostgreSQL at {shared_server.where} was left in the middle of an answer"
    )


@pytest.mark.pg(">=13")
def test_manifest_is_the_servers(shared_server: Server) -> None:
    """The manifest arrives whole, and names what has arrived."""
    with shared_server.replication() as replication:
        received = receive(replication)
    manifest = json.loads(received.content["backup_manifest"])
    named = {file["Path"]: file["Size"] for file in manifest["Files"]}
    files = {path: len(content) for path, content in received.content.items() if path in named}
    assert files == named
    assert {file["Checksum-Algorithm"] for file in manifest["Files"]} == {"CRC32C"}
    unnamed = {path for path, file in received.files.items() if file.kind is ItemKind.FILE} - set(named)
    assert unnamed == {"backup_manifest"}


def test_conversation_goes_on_after_a_backup(shared_server: Server) -> None:
    """One conversation makes several backups, without a manifest or an estimate where none is wanted."""
    options = BaseBackupOptions(label="plain", fast=True, manifest=False, verify_checksums=False, estimate_size=False)
    with shared_server.replication() as replication:
        first = receive(replication, options)
        assert first.start.size_bytes is None
        assert "backup_manifest" not in first.files
        second = receive(replication, options)
        assert second.start.start_lsn > first.start.start_lsn
        assert replication.identify().timeline == 1


def test_content_that_is_not_read_is_passed_over(shared_server: Server) -> None:
    """Files may be skipped, or read in part; the following ones are not touched by it."""
    with shared_server.replication() as replication:
        backup = BaseBackup(replication, FAST)
        backup.start()
        seen = []
        for number, file in enumerate(backup.files()):
            seen.append(file.path)
            if number % 3 == 0:
                next(file.chunks(), None)
            elif file.path == CONTROL_FILE:
                assert len(b"".join(bytes(chunk) for chunk in file.chunks())) == 8192
        assert seen[-1] == ("backup_manifest" if shared_server.capabilities.has_manifest else CONTROL_FILE)
        assert backup.end.stop_lsn
        assert backup.received_bytes > 10 << 20


def test_in_place_tablespace_comes_or_is_refused(cluster: Cluster, server: Server) -> None:
    """An in-place tablespace's files stand below pg_tblspc; a server that leaves them out is refused beforehand."""
    queries.check_stream_is_complete(server)
    with cluster.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE inside LOCATION ''")
    cluster.sql("CREATE TABLE t TABLESPACE inside AS SELECT generate_series(1, 10000) AS i")
    path = cluster.value("SELECT pg_relation_filepath('t')")
    with server.replication() as replication:
        received = receive(replication)
    assert path.startswith("pg_tblspc/")
    if path not in received.content:
        with pytest.raises(ServerError) as error:
            queries.check_stream_is_complete(server)
        assert error.value.message == (
            f"PostgreSQL {cluster.major} at {server.where} does not stream the files of the in-place tablespace inside"
        )
        return
    queries.check_stream_is_complete(server)
    assert received.content[path] == (cluster.data_directory / path).read_bytes()
    assert all(not tablespace.location for tablespace in received.start.tablespaces)


def test_damaged_pages_are_told_with_all_data(cluster: Cluster, server: Server) -> None:
    """Damaged pages are told by file and block, after everything has arrived; they end nothing."""
    cluster.sql("CREATE TABLE t AS SELECT i, repeat('x', 200) AS s FROM generate_series(1, 20000) AS i")
    path = cluster.value("SELECT pg_relation_filepath('t')")
    server.sql.close()
    cluster.stop()
    with (cluster.data_directory / path).open("r+b") as file:
        for block in (3, 5, 8, 13, 21, 34, 55):
            file.seek(block * 8192 + 4000)
            file.write(b"damage")
    cluster.start()
    with Server.open(target_of(cluster)) as again, again.replication() as replication:
        received = receive(replication)
        [damaged] = received.end.damaged
        assert (damaged.path, damaged.blocks, damaged.count) == (path, (3, 5, 8, 13, 21), 7)
        assert received.content[path] == (cluster.data_directory / path).read_bytes()
        unchecked = BaseBackupOptions(label="unchecked", fast=True, verify_checksums=False)
        assert receive(replication, unchecked).end.damaged == ()


@pytest.mark.pg(">=17")
def test_incremental_backup_is_small(cluster: Cluster) -> None:
    """With the manifest of a backup given, the server sends only the blocks that changed since."""
    cluster.sql("CREATE TABLE t AS SELECT i, repeat('x', 200) AS s FROM generate_series(1, 50000) AS i")
    path = cluster.value("SELECT pg_relation_filepath('t')")
    # Reading rows for the first time marks them, which would write every page to WAL.
    cluster.sql("VACUUM t")
    cluster.configure({"summarize_wal": "on"})
    cluster.reload()
    with Server.open(target_of(cluster)) as server, server.replication() as replication:
        full = receive(replication)
        cluster.sql("UPDATE t SET s = 'y' WHERE i = 1")
        manifest = full.content["backup_manifest"]
        pieces = [manifest[offset : offset + 1000] for offset in range(0, len(manifest), 1000)]
        incremental = receive(replication, incremental_from=pieces)
        directory, _, name = path.rpartition("/")
        assert len(incremental.content[f"{directory}/INCREMENTAL.{name}"]) < len(full.content[path]) / 10
        with pytest.raises(ServerError) as error:
            BaseBackup(replication, FAST).start(incremental_from=[b"rubbish"])
        assert "refused: " in error.value.message
        assert replication.identify().timeline == 1


@pytest.mark.pg("<17")
def test_incremental_backup_needs_17(shared_server: Server, major: int) -> None:
    """An older server is not asked for what it does not know."""
    with shared_server.replication() as replication, pytest.raises(ServerError) as error:
        BaseBackup(replication, FAST).start(incremental_from=[b"{}"])
    assert error.value.message == (
        f"PostgreSQL {major} at {shared_server.where} makes no incremental backups, 17 and later do"
    )


def fill(cluster: Cluster) -> None:
    """Make the cluster too large for the buffers of a connection."""
    cluster.sql("CREATE TABLE filler AS SELECT i, repeat(md5(i::text), 30) AS s FROM generate_series(1, 30000) AS i")


ACCIDENTS: list[tuple[str, Callable[[Cluster, Proxy], None], str]] = [
    ("cut", lambda _cluster, proxy: proxy.cut(), "the connection to {where} was lost: "),
    ("killed", lambda cluster, _proxy: cluster.kill(), "the connection to {where} was lost: "),
    (
        "terminated",
        lambda cluster, _proxy: cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication") and None,
        "the connection to {where} was lost: terminating connection due to administrator command",
    ),
    (
        "canceled",
        lambda cluster, _proxy: cluster.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_replication") and None,
        "{where} refused: canceling statement due to user request",
    ),
]


@pytest.mark.parametrize(("accident", "happen", "message"), ACCIDENTS, ids=[row[0] for row in ACCIDENTS])
def test_accident_on_the_way_is_said(
    cluster: Cluster, accident: str, happen: Callable[[Cluster, Proxy], None], message: str
) -> None:
    """A backup that is cut off in the middle ends with the reason, and never looks complete."""
    fill(cluster)
    with Proxy(("127.0.0.1", cluster.port)) as proxy:
        target = target_of(cluster, tcp=True, port=proxy.port)
        slow = BaseBackupOptions(label="slow", fast=True, max_rate_kib=2048)
        with Server.open(target) as server, server.replication() as replication:
            backup = BaseBackup(replication, slow)
            backup.start()
            files = backup.files()
            next(files)
            happen(cluster, proxy)
            with pytest.raises(ServerError) as error:
                sum(len(chunk) for file in files for chunk in file.chunks())
            with pytest.raises(AssertionError):
                _ = backup.end
            if accident == "canceled":
                assert replication.identify().timeline == 1
    where = f"PostgreSQL at 127.0.0.1:{proxy.port} as postgres"
    assert error.value.message.startswith(message.format(where=where)), accident


def test_rate_is_held_and_checked(shared_server: Server) -> None:
    """A rate out of range is refused before the server is asked."""
    with shared_server.replication() as replication:
        for rate in (31, (1 << 20) + 1):
            with pytest.raises(UsageError) as error:
                BaseBackup(replication, BaseBackupOptions(label="x", fast=True, max_rate_kib=rate))
            assert error.value.message == f"rate of a base backup must be 32 to 1048576 KiB/s, found {rate}"


@pytest.mark.parametrize(
    ("version", "command"),
    [
        (120022, "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 100 TABLESPACE_MAP"),
        (
            140000,
            (
                "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 100 TABLESPACE_MAP "
                "MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
            ),
        ),
        (
            150000,
            (
                "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, MAX_RATE 100, TABLESPACE_MAP, "
                "MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
            ),
        ),
    ],
)
def test_command_is_in_the_versions_grammar(version: int, command: str) -> None:
    """The command is written as the server's version understands it."""
    options = BaseBackupOptions(label="it's", fast=True, max_rate_kib=100)
    assert base_backup_command(options, Capabilities(version)) == command
