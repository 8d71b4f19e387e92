"""What the reader says of real WAL, against what the server and pg_waldump say."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.segment_index import Ending, SegmentIndex, close_index, index_segment, joined_ends
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_reader import WalReader
from pgkeep.pg.wal_record import (
    BackupEnded,
    Checkpoint,
    DatabaseCreated,
    DatabaseDropped,
    EndOfRecovery,
    Event,
    ParameterChange,
    RestorePoint,
    TablespaceCreated,
    TablespaceDropped,
    TransactionEnd,
)
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.server_user import server_user
from tests.pg.made_records import MIB, pieces_of

SIZE = MIB


@dataclass
class Known:
    """What a test did to a server, told by the server."""

    commits: dict[int, dt.datetime] = field(default_factory=dict)
    restore_points: dict[str, Lsn] = field(default_factory=dict)
    tablespaces: list[tuple[int, str]] = field(default_factory=list)


def segments_in(directory: Path) -> Iterator[tuple[WalSegment, bytes]]:
    """Yield the complete segments in *directory*, in order."""
    for path in sorted(directory.iterdir()):
        if re.fullmatch("[0-9A-F]{24}", path.name):
            yield WalSegment.parse(path.name, size=SIZE), path.read_bytes()


def read_events(segments: list[tuple[WalSegment, bytes]]) -> tuple[WalReader, list[Event]]:
    """Read *segments* one after the other, with every CRC checked."""
    reader, events = WalReader(checks_all=True), []
    for segment, content in segments:
        reader.enter(segment)
        for piece in pieces_of(content, 128 << 10):
            events += reader.feed(piece)
    return reader, events


def busy_server(cluster: Cluster, directory: Path) -> Known:
    """Do all that leaves a trace in WAL, and end with a switch."""
    known = Known()
    place = directory / "täblespace"
    place.mkdir()
    server_user().own(place)
    start = Lsn.parse(cluster.current_lsn())
    cluster.sql("CREATE TABLE item (id int PRIMARY KEY, what text)")
    with cluster.connect() as connection:
        connection.execute("INSERT INTO item SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n")
        for number in range(200):
            connection.execute("UPDATE item SET what = 'y' WHERE id = %s", [number])
        # Subtransactions have no end of their own in WAL, but the commit names them.
        with connection.transaction():
            for number in range(100):
                with connection.transaction():
                    connection.execute("INSERT INTO item VALUES (%s)", [100_000 + number])
        # Tables dropped, invalidations and, since 15, dropped statistics come before the prepared transaction's xid.
        connection.execute("CREATE TABLE gone AS SELECT 1 AS one")
        connection.execute("BEGIN")
        connection.execute("DROP TABLE gone")
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("SAVEPOINT a")
        connection.execute("INSERT INTO kept VALUES (1)")
        connection.execute("PREPARE TRANSACTION 'number one'")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO item VALUES (200000)")
        connection.execute("PREPARE TRANSACTION 'number two'")
        connection.execute("COMMIT PREPARED 'number one'")
        connection.execute("ROLLBACK PREPARED 'number two'")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO item VALUES (300000)")
        connection.execute("ROLLBACK")
        # Longer than two segments.
        for is_transactional in (True, False):
            connection.execute(
                "SELECT pg_logical_emit_message(%s, 'test', repeat('long ', 600000))", [is_transactional]
            )
        known.restore_points["after: ä'"] = end = Lsn.parse(
            connection.execute("SELECT pg_create_restore_point('after: ä''')::text").fetchall()[0][0]
        )
        assert end > start
        connection.execute(f"CREATE TABLESPACE other LOCATION '{place}'")
        [(oid,)] = connection.execute("SELECT oid::int FROM pg_tablespace WHERE spcname = 'other'").fetchall()
        known.tablespaces.append((oid, str(place)))
        connection.execute("CREATE DATABASE made")
        connection.execute("DROP DATABASE made")
        if cluster.major >= 15:
            connection.execute("CREATE DATABASE copied STRATEGY file_copy TABLESPACE other")
            connection.execute("DROP DATABASE copied")
        connection.execute("DROP TABLESPACE other")
        connection.execute("CHECKPOINT")
        times = connection.execute(
            "SELECT n, pg_xact_commit_timestamp(n::text::xid) FROM generate_series(%s::int, %s::int) n",
            [known_first_xid(cluster), known_next_xid(cluster) - 1],
        )
        known.commits = {xid: time for xid, time in times if time is not None}
    cluster.switch_wal()
    return known


def known_first_xid(cluster: Cluster) -> int:
    """Return the first xid that has a commit time."""
    return int(cluster.value("SELECT oldest_commit_ts_xid::text FROM pg_control_checkpoint()"))


def known_next_xid(cluster: Cluster) -> int:
    """Return the next xid."""
    return int(cluster.value("SELECT txid_snapshot_xmax(txid_current_snapshot())"))


@pytest.fixture
def archive(lab_directory: Path) -> Path:
    """The directory that the server archives to."""
    return lab_directory / "archive"


@pytest.fixture
def server(major: int, make_cluster: MakeCluster, archive: Path) -> Cluster:
    """A server with segments of 1 MiB that archives and keeps commit times."""
    cluster = make_cluster(
        start=False,
        wal_segment_size_mb=1,
        settings={
            "track_commit_timestamp": "on",
            "max_prepared_transactions": "5",
            "wal_level": "logical",
            "autovacuum": "off",
        },
    )
    cluster.archive_to(archive)
    # A server that was killed may archive the same segment again.
    cluster.configure({"archive_command": f'cp "%p" "{archive}/%f.new" && mv "{archive}/%f.new" "{archive}/%f"'})
    return cluster.start()


def wait_until_archived(cluster: Cluster, archive: Path) -> None:
    """Wait until every complete segment is in *archive*."""
    timeline = Timeline.parse_hex(str(cluster.value("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")))
    current = Lsn.parse(cluster.current_lsn())
    last = WalSegment(timeline, current // SIZE - 1, SIZE)
    wait_for((archive / last.name).exists, "the WAL is archived")


def test_everything_that_a_server_did(server: Cluster, archive: Path, lab_directory: Path) -> None:
    """Commit times, restore points, tablespaces and databases are found as the server tells them."""
    known = busy_server(server, lab_directory)
    wait_until_archived(server, archive)
    segments = list(segments_in(archive))
    reader, events = read_events(segments)
    assert (reader.trouble, reader.open) == ("", None)
    ends = [event for event in events if isinstance(event, TransactionEnd)]
    commits = {event.xid: event.time for event in ends if event.is_commit}
    subtransactions = 101
    found = {xid: time for xid, time in commits.items() if xid in known.commits}
    assert found == {xid: known.commits[xid] for xid in found}
    # The server knows a time for each subtransaction too.
    assert len(known.commits) - len(found) == subtransactions
    aborted = [event for event in ends if not event.is_commit]
    assert len(aborted) >= 2
    assert not {event.xid for event in aborted} & set(known.commits)
    points = [event for event in events if isinstance(event, RestorePoint)]
    assert [point.name for point in points] == list(known.restore_points)
    # The function answers with the end of the record.
    assert [point.lsn + 104 for point in points] == list(known.restore_points.values())
    created = [event for event in events if isinstance(event, TablespaceCreated)]
    assert [(event.oid, event.path) for event in created] == known.tablespaces
    dropped = [event.oid for event in events if isinstance(event, TablespaceDropped)]
    assert dropped == [oid for oid, _ in known.tablespaces]
    databases = [event for event in events if isinstance(event, DatabaseCreated)]
    made = [event for event in databases if event.oid > 16383]
    copied = [bool(event.copied_from) for event in made]
    assert copied == ([False, True] if server.major >= 15 else [True])
    gone = [event.oid for event in events if isinstance(event, DatabaseDropped)]
    assert gone == [event.oid for event in made]
    assert any(isinstance(event, Checkpoint) and not event.is_shutdown for event in events)


def test_an_index_segment_by_segment(server: Cluster, archive: Path, lab_directory: Path) -> None:
    """The indexes of single segments, closed with the next one, tell together what reading all at once tells."""
    busy_server(server, lab_directory)
    wait_until_archived(server, archive)
    segments = list(segments_in(archive))
    _, events = read_events(segments)
    indexes: list[SegmentIndex] = []
    for (segment, content), (following, next_content) in zip(segments, segments[1:] + segments[:1], strict=True):
        index = index_segment(segment, pieces_of(content, 64 << 10))
        if index.needs_next:
            index = close_index(index, following, pieces_of(next_content, 64 << 10))
        assert not index.needs_next
        assert index.trouble == ""
        indexes.append(index)
    ends = [event for event in events if isinstance(event, TransactionEnd) and event.is_commit]
    commits = joined_ends(index.commits for index in indexes)
    assert commits is not None
    assert (commits.count, commits.first.xid, commits.last.xid) == (len(ends), ends[0].xid, ends[-1].xid)
    assert commits.latest.time == max(end.time for end in ends)
    assert commits.earliest.time == min(end.time for end in ends)
    lists = [index.restore_points + index.tablespaces_created + index.databases_created for index in indexes]
    wanted = (RestorePoint, TablespaceCreated, DatabaseCreated)
    assert sorted([event.lsn for some in lists for event in some]) == [
        event.lsn for event in events if isinstance(event, wanted)
    ]
    # Some segments lie within the long records.
    assert any(index.first is None for index in indexes)
    assert indexes[-1].ending is Ending.SWITCHED


# The fetched servers of the other majors come without the program, and each reads its own major only.
@pytest.mark.pg(">=15, !=16")
def test_the_same_records_as_pg_waldump(server: Cluster, archive: Path, lab_directory: Path) -> None:
    """PostgreSQL's own program sees the same commits, aborts and checkpoints at the same places."""
    busy_server(server, lab_directory)
    wait_until_archived(server, archive)
    segments = list(segments_in(archive))
    reader, events = read_events(segments)
    dumped = subprocess.run(
        [server.installation.program("pg_waldump"), "-p", archive, "-s", str(reader.first), "-e", str(reader.end)],
        capture_output=True,
        text=True,
        env={"TZ": "UTC", "LC_ALL": "C"},
        check=True,
    ).stdout
    line = re.compile(r"rmgr: (\w+) .* tx: +(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), .*desc: (\w+)(.*)")
    records = [match for match in map(line.match, dumped.splitlines()) if match]
    ends = [
        (Lsn.parse(match[3]), match[4] in ("COMMIT", "COMMIT_PREPARED"))
        for match in records
        if match[1] == "Transaction" and match[4].startswith(("COMMIT", "ABORT"))
    ]
    assert [(end.lsn, end.is_commit) for end in events if isinstance(end, TransactionEnd)] == ends
    plain = [int(match[2]) for match in records if match[1] == "Transaction" and match[4] == "COMMIT"]
    prepared = [int(xid) for xid in re.findall(r"COMMIT_PREPARED (\d+):", dumped)]
    found = [end.xid for end in events if isinstance(end, TransactionEnd) and end.is_commit]
    assert sorted(found) == sorted([*plain, *prepared])
    checkpoints = [
        Lsn.parse(match[3]) for match in records if match[4].startswith("CHECKPOINT_") and "REDO" not in match[4]
    ]
    assert [event.lsn for event in events if isinstance(event, Checkpoint)] == checkpoints
    assert Lsn.parse(records[-1][3]) == reader.last


def test_a_crash_a_restart_and_other_settings(server: Cluster, archive: Path) -> None:
    """WAL goes on through crashes, and tells of settings and of the end of a backup."""
    server.sql("CREATE TABLE item (id int)")
    for _ in range(3):
        server.sql("INSERT INTO item SELECT generate_series(1, 5000)")
        server.kill()
        server.start()
    server.configure({"max_connections": "57"})
    server.restart()
    with server.connect() as connection:
        old = server.major < 15
        connection.execute("SELECT pg_start_backup('x', true, false)" if old else "SELECT pg_backup_start('x', true)")
        connection.execute("SELECT pg_stop_backup(false, false)" if old else "SELECT pg_backup_stop(false)")
    server.switch_wal()
    wait_until_archived(server, archive)
    reader, events = read_events(list(segments_in(archive)))
    assert (reader.trouble, reader.open) == ("", None)
    assert [event.max_connections for event in events if isinstance(event, ParameterChange)][-1] == 57
    checkpoints = [event.redo for event in events if isinstance(event, Checkpoint)]
    [ended] = [event for event in events if isinstance(event, BackupEnded)]
    assert ended.start in checkpoints


def test_a_switch_of_timelines_within_a_segment(server: Cluster, archive: Path, lab_directory: Path) -> None:
    """The segment of the new timeline has pages of both, and the record of the switch."""
    server.sql("CREATE TABLE item (id int)")
    standby = server.create_standby(lab_directory / "standby")
    with standby:
        standby.start()
        server.sql("INSERT INTO item SELECT generate_series(1, 3000)")
        standby.wait_for_replay(server.current_lsn())
        # The old primary lives on, or it would switch to another segment while it stops.
        standby.promote()
        standby.sql("INSERT INTO item SELECT generate_series(1, 30000)")
        [(xid,)] = standby.sql("SELECT max(xmin::text::bigint) FROM item")
        standby.switch_wal()
        history = archive / "00000002.history"
        wait_for(history.exists, "the history is archived")
        switch = Lsn.parse(history.read_text().split("\t")[1])
        wait_until_archived(standby, archive)
    segments = [(segment, content) for segment, content in segments_in(archive) if segment.timeline == 2]
    assert segments[0][0].start_lsn < switch < segments[0][0].end_lsn
    reader, events = read_events(segments)
    assert reader.trouble == ""
    assert xid in {event.xid for event in events if isinstance(event, TransactionEnd)}
    [ended] = [event for event in events if isinstance(event, EndOfRecovery)]
    assert (ended.timeline, ended.previous_timeline, ended.lsn) == (2, 1, switch)
    # What the old timeline's file has of the segment ends where the new one begins, if it goes no further.
    partial = archive / f"{segments[0][0].on(ended.previous_timeline).name}.partial"
    wait_for(partial.exists, "the old timeline's last segment is archived")
    index = index_segment(segments[0][0].on(ended.previous_timeline), [partial.read_bytes()], checks_all=True)
    assert index.end >= switch
    limited = index_segment(segments[0][0], [segments[0][1]], end=switch)
    assert limited.ends_of_recovery == ()
