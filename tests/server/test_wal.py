"""WAL from a real server by every way: the stream, the archive directory, pg_wal."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgkeep.errors import ArchiveError, FormatError, ServerError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.replication import HistoryFile
from pgkeep.server.slots import TemporarySlot, create_physical_slot, find_slot
from pgkeep.server.streamed_wal import StreamedWal
from pgkeep.server.wal_files import ArchiveDirectory, LocalWal
from pgkeep.server.wal_stream import WalChunk, WalStream
from pgkeep.server.wal_supply import FirstOf, NotThere, WalContent, WalSupply
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.proxy import Proxy
from tests.server.wal_range import supply_range

from .conftest import target_of

MEBIBYTE = 1 << 20


@pytest.fixture
def busy(major: int, make_cluster: MakeCluster) -> Cluster:
    """A cluster with WAL segments of 1 MiB, several of them full, that keeps its WAL and archives it."""
    cluster = make_cluster(wal_segment_size_mb=1, start=False, settings={"max_wal_size": "1GB"})
    cluster.archive_to(cluster.data_directory.parent / "archive")
    cluster.start()
    write_wal(cluster)
    return cluster


def write_wal(cluster: Cluster, rows: int = 30000) -> None:
    """Write some MiB of WAL."""
    cluster.sql("CREATE TABLE IF NOT EXISTS filler (i int, t text)")
    cluster.sql("INSERT INTO filler SELECT i, md5(i::text) FROM generate_series(1, %s) AS i", [rows])


@pytest.fixture
def busy_server(busy: Cluster) -> Iterator[Server]:
    """A session with that cluster."""
    with Server.open(target_of(busy)) as server:
        yield server


def local_wal(cluster: Cluster, server: Server) -> LocalWal:
    """Return the supply of the server's own files."""
    return LocalWal(
        str(cluster.data_directory / "pg_wal"),
        system_identifier=queries.identify(server).system_identifier,
        flushed=lambda: queries.flushed_lsn(server),
    )


def streamed_wal(cluster: Cluster, server: Server) -> StreamedWal:
    """Return the supply by the replication protocol."""
    return StreamedWal(
        server.replication,
        system_identifier=queries.identify(server).system_identifier,
        flushed=lambda: queries.flushed_lsn(server),
        where=server.where,
    )


def archive_directory(cluster: Cluster, server: Server) -> ArchiveDirectory:
    """Return the supply of what the server archived."""
    return ArchiveDirectory(
        str(cluster.data_directory.parent / "archive"),
        system_identifier=queries.identify(server).system_identifier,
    )


SUPPLIES: list[Callable[[Cluster, Server], WalSupply]] = [local_wal, streamed_wal, archive_directory]


def content_of(content: WalContent) -> bytes:
    """Return a segment's bytes, which must be as many as a segment has."""
    whole = b"".join(bytes(chunk) for chunk in content.chunks())
    assert len(whole) == content.segment.size
    return whole


def first_segment_of(server: Server) -> WalSegment:
    """Return the oldest segment that is certainly there: the one of the last checkpoint."""
    redo = queries.last_checkpoint(server).redo_lsn
    return WalSegment.containing(redo, timeline=Timeline(1), size=MEBIBYTE)


@pytest.mark.parametrize("make_supply", SUPPLIES)
def test_complete_segments_are_the_servers(
    busy: Cluster, busy_server: Server, make_supply: Callable[[Cluster, Server], WalSupply]
) -> None:
    """Every supply gives the same complete segments, byte for byte, without a hole up to the end that was asked for."""
    start = queries.last_checkpoint(busy_server).redo_lsn
    end = queries.switch_wal(busy_server)
    supply = make_supply(busy, busy_server)
    names = []
    for content in supply_range(
        supply,
        TimelineHistory.single(Timeline(1)),
        start=start,
        start_timeline=Timeline(1),
        end=end,
        segment_size=MEBIBYTE,
        timeout_seconds=180,
    ):
        assert not content.is_partial
        assert content.source == supply.name
        assert content_of(content) == (busy.data_directory / "pg_wal" / content.segment.name).read_bytes()
        names.append(content.segment.name)
    supply.close()
    assert len(names) >= 3
    assert names[0] == WalSegment.containing(start, timeline=Timeline(1), size=MEBIBYTE).name
    assert names[-1] == WalSegment.ending_at(end, timeline=Timeline(1), size=MEBIBYTE).name


@pytest.mark.parametrize("make_supply", SUPPLIES[:2])
def test_last_segment_is_partial(
    busy: Cluster, busy_server: Server, make_supply: Callable[[Cluster, Server], WalSupply]
) -> None:
    """The segment that is being written comes up to what is flushed, says so, and is zeros after that."""
    end = queries.flushed_lsn(busy_server)
    segment = WalSegment.ending_at(end, timeline=Timeline(1), size=MEBIBYTE)
    supply = make_supply(busy, busy_server)
    content = supply.fetch(segment, through=end, deadline=time.monotonic() + 10)
    assert content.is_partial
    assert end <= content.held_until <= segment.end_lsn
    found = content_of(content)
    held = content.held_until - segment.start_lsn
    assert found[:held] == (busy.data_directory / "pg_wal" / segment.name).read_bytes()[:held]
    assert not any(found[held:])
    # The same segment can be had again, whole, once it is.
    queries.switch_wal(busy_server)
    whole = supply.fetch(segment, through=segment.end_lsn, deadline=time.monotonic() + 10)
    assert not whole.is_partial
    assert content_of(whole)[:held] == found[:held]
    supply.close()


@pytest.mark.parametrize("make_supply", SUPPLIES)
def test_foreign_wal_is_refused(
    busy: Cluster, busy_server: Server, make_supply: Callable[[Cluster, Server], WalSupply]
) -> None:
    """WAL of another system identifier is never handed out."""
    queries.switch_wal(busy_server)
    supply = make_supply(busy, busy_server)
    known = supply._system_identifier  # type: ignore[attr-defined]
    supply._system_identifier = SystemIdentifier(known + 1)  # type: ignore[attr-defined]
    segment = first_segment_of(busy_server)
    with pytest.raises(FormatError) as error:
        content_of(supply.fetch(segment, through=segment.end_lsn, deadline=time.monotonic() + 10))
    assert error.value.message == (
        f"WAL segment {segment.name} belongs to system identifier {known}, not to {known + 1}"
    )
    supply.close()


class TestMissing:
    """What is said of a segment that is not there."""

    def test_archive_says_what_it_found(self, busy: Cluster, busy_server: Server, tmp_path: Path) -> None:
        """An archive directory tells a missing segment from an incomplete one, and takes rubbish for neither."""
        supply = ArchiveDirectory(str(tmp_path), system_identifier=queries.identify(busy_server).system_identifier)
        segment = first_segment_of(busy_server)
        path = tmp_path / segment.name
        for content, found in [
            (None, "it is not there"),
            (b"", "it is incomplete, 0 bytes of 1048576"),
            (bytes(MEBIBYTE), "it is incomplete, 1048576 bytes of 1048576"),
        ]:
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(NotThere) as error:
                supply.fetch(segment, through=segment.end_lsn, deadline=0)
            assert error.value.message == (
                f"WAL segment {segment.name} cannot be had from archive directory {tmp_path}: {found}"
            )
            assert error.value.hint == (
                "look for a failing archive_command in the server's log, or raise switch_wal_timeout"
            )
        path.write_bytes(b"x" * MEBIBYTE)
        with pytest.raises(FormatError) as not_wal:
            supply.fetch(segment, through=segment.end_lsn, deadline=0)
        assert not_wal.value.message == "not a WAL segment of PostgreSQL 12 to 18: page magic is 7878"
        assert supply.history(Timeline(2)) is None

    def test_archive_is_waited_for(self, busy: Cluster, busy_server: Server, tmp_path: Path) -> None:
        """A segment that the archiver brings late is taken when it is whole, and cancelling ends the wait."""
        cancelled = threading.Event()
        supply = ArchiveDirectory(
            str(tmp_path),
            system_identifier=queries.identify(busy_server).system_identifier,
            cancelled=cancelled,
        )
        segment = first_segment_of(busy_server)
        whole = (busy.data_directory / "pg_wal" / segment.name).read_bytes()
        path = tmp_path / segment.name
        path.write_bytes(whole[: MEBIBYTE // 2])

        def complete() -> None:
            path.write_bytes(whole)

        timer = threading.Timer(0.3, complete)
        timer.start()
        assert content_of(supply.fetch(segment, through=segment.end_lsn, deadline=time.monotonic() + 30)) == whole
        timer.join()
        cancelled.set()
        with pytest.raises(ServerError) as error:
            supply.fetch(segment.next(), through=segment.next().end_lsn, deadline=time.monotonic() + 30)
        assert error.value.message == "cancelled while waiting for WAL"

    def test_unwritten_wal_is_said(self, busy: Cluster, busy_server: Server) -> None:
        """WAL that the server has not written yet cannot be had, and the message says how far it is."""
        flushed = queries.flushed_lsn(busy_server)
        far = Lsn(flushed + 64 * MEBIBYTE)
        segment = WalSegment.containing(far, timeline=Timeline(1), size=MEBIBYTE)
        for supply in (local_wal(busy, busy_server), streamed_wal(busy, busy_server)):
            with pytest.raises(NotThere) as error:
                supply.fetch(segment, through=far, deadline=time.monotonic() + 0.2)
            assert error.value.message.startswith(f"WAL segment {segment.name} cannot be had from {supply.name}: ")
            assert error.value.message.endswith(f", needed up to {far}")
            assert error.value.hint == "a standby must have received and replayed the WAL: look at its lag"

    def test_recycled_wal_is_said(self, busy: Cluster, busy_server: Server) -> None:
        """WAL that the server has recycled cannot be had from it any more, and the hint says how to keep it."""
        first = first_segment_of(busy_server)
        hint = "set archive_dir to where the server archives, or slot_name, so that WAL is kept between jobs"
        supply = local_wal(busy, busy_server)
        under_way = supply.fetch(first, through=first.end_lsn, deadline=0).chunks()
        busy.configure({"max_wal_size": "2MB", "min_wal_size": "2MB"})
        busy.reload()

        def is_recycled() -> bool:
            write_wal(busy, 3000)
            busy.switch_wal()
            busy.sql("CHECKPOINT")
            return not (busy.data_directory / "pg_wal" / first.name).exists()

        wait_for(is_recycled, "the first segment is recycled")
        for name, fetched in [
            (supply.name, supply),
            (f"the WAL stream of {busy_server.where}", streamed_wal(busy, busy_server)),
        ]:
            with pytest.raises(NotThere) as error:
                content_of(fetched.fetch(first, through=first.end_lsn, deadline=0))
            assert error.value.message.startswith(f"WAL segment {first.name} cannot be had from {name}: ")
            assert error.value.hint == hint
        with pytest.raises(NotThere):
            list(under_way)
        archive = archive_directory(busy, busy_server)
        everywhere = FirstOf([supply, streamed_wal(busy, busy_server), archive])
        content = everywhere.fetch(first, through=first.end_lsn, deadline=time.monotonic() + 30)
        assert content.source == archive.name
        content_of(content)
        nowhere = FirstOf([supply, ArchiveDirectory("/nonexistent", system_identifier=SystemIdentifier(1))])
        with pytest.raises(NotThere) as error:
            nowhere.fetch(first, through=first.end_lsn, deadline=0)
        assert error.value.message == (
            f"WAL segment {first.name} cannot be had from {supply.name}: the server has recycled it; "
            "archive directory /nonexistent: it is not there"
        )
        assert error.value.hint == hint

    def test_file_reused_while_read_is_noticed(self, busy: Cluster, busy_server: Server, tmp_path: Path) -> None:
        """A file of pg_wal that the server begins to write anew while it is read is noticed at its end."""
        segment = first_segment_of(busy_server)
        source = busy.data_directory / "pg_wal"
        (tmp_path / segment.name).write_bytes((source / segment.name).read_bytes())
        supply = LocalWal(
            str(tmp_path),
            system_identifier=queries.identify(busy_server).system_identifier,
            flushed=lambda: segment.end_lsn,
        )
        chunks = supply.fetch(segment, through=segment.end_lsn, deadline=0).chunks()
        next(chunks)
        descriptor = os.open(tmp_path / segment.name, os.O_WRONLY)
        os.pwrite(descriptor, (source / segment.next().name).read_bytes()[:8192], 0)
        os.close(descriptor)
        with pytest.raises(NotThere) as error:
            list(chunks)
        assert error.value.message == (
            f"WAL segment {segment.name} cannot be had from WAL directory {tmp_path}: the server has recycled it"
        )

    def test_unreadable_directory_is_said(self, tmp_path: Path) -> None:
        """A path that is not a directory is an error of the archive, not a missing segment."""
        (tmp_path / "file").write_text("")
        supply = ArchiveDirectory(str(tmp_path / "file"), system_identifier=SystemIdentifier(1))
        segment = WalSegment(Timeline(1), 1, MEBIBYTE)
        with pytest.raises(ArchiveError) as error:
            supply.fetch(segment, through=segment.end_lsn, deadline=0)
        assert error.value.message == f"cannot read {tmp_path}/file/{segment.name}: Not a directory"


class TestStream:
    """The WAL stream itself."""

    def test_stream_is_gapless_until_its_stop(self, busy: Cluster, busy_server: Server) -> None:
        """Chunks follow one another without a gap until the LSN that was asked for, and the conversation goes on."""
        end = queries.flushed_lsn(busy_server)
        with busy_server.replication() as replication:
            start = queries.last_checkpoint(busy_server).redo_lsn
            stream = WalStream(replication, start=start, timeline=Timeline(1), segment_size=MEBIBYTE, stop=end)
            position = first_segment_of(busy_server).start_lsn
            for chunk in stream:
                assert isinstance(chunk, WalChunk)
                assert (chunk.lsn, chunk.timeline) == (position, 1)
                position = chunk.end_lsn
            assert position == stream.position >= end
            assert stream.server_end >= end
            assert replication.identify().timeline == 1

    def test_confirmed_position_reaches_the_slot(self, busy: Cluster, busy_server: Server) -> None:
        """The server's slot moves to what is confirmed, and not to what was only received."""
        begin = create_physical_slot(busy_server, "receiver")
        end = queries.flushed_lsn(busy_server)
        confirmed = Lsn(begin - begin % MEBIBYTE + MEBIBYTE)

        def restart_lsn() -> Lsn | None:
            slot = find_slot(busy_server, "receiver")
            assert slot is not None
            return slot.restart_lsn

        with busy_server.replication() as replication:
            stream = WalStream(
                replication,
                start=begin,
                timeline=Timeline(1),
                segment_size=MEBIBYTE,
                slot="receiver",
                stop=lambda position: position >= end and restart_lsn() == confirmed,
                status_interval_seconds=0.05,
            )
            for chunk in stream:
                assert isinstance(chunk, WalChunk)
                if chunk.end_lsn >= end:
                    stream.confirm(confirmed)
        assert restart_lsn() == confirmed

    def test_receiver_is_no_synchronous_standby(self, busy: Cluster, busy_server: Server) -> None:
        """A receiver that confirms nothing is not taken for a synchronous standby, even where any would be."""
        with busy_server.replication() as replication:
            stream = WalStream(
                replication,
                start=queries.flushed_lsn(busy_server),
                timeline=Timeline(1),
                segment_size=MEBIBYTE,
                status_interval_seconds=0.05,
            )
            chunks = iter(stream)
            next(chunks)
            flushed = busy.value("SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'pgkeep'")
            assert flushed is None

    @pytest.mark.parametrize("make_supply", SUPPLIES[:2])
    def test_timeline_switch_is_followed(
        self, busy: Cluster, make_supply: Callable[[Cluster, Server], WalSupply]
    ) -> None:
        """A stream goes on where the timeline does, with the history file; whole segments carry the newest name."""
        with busy.create_standby(busy.data_directory.parent / "standby") as standby:
            standby.start()
            with (
                Server.open(target_of(standby)) as server,
                TemporarySlot(server),
                server.replication() as replication,
            ):
                start = queries.last_checkpoint(server).redo_lsn
                first = Lsn(start - start % MEBIBYTE)
                position = first
                histories: list[HistoryFile] = []
                standby.wait_for_replay(busy.value("SELECT pg_current_wal_flush_lsn()::text"))
                promoted = threading.Thread(target=standby.promote)
                enough = threading.Event()
                stream = WalStream(
                    replication,
                    start=start,
                    timeline=Timeline(1),
                    segment_size=MEBIBYTE,
                    stop=lambda _position: enough.is_set(),
                )
                streamed: dict[str, bytearray] = {}
                for chunk in stream:
                    if isinstance(chunk, HistoryFile):
                        histories.append(chunk)
                        position = Lsn(stream.position)
                        continue
                    if not histories and promoted.ident is None:
                        promoted.start()
                    assert chunk.lsn == position
                    position = chunk.end_lsn
                    segment = WalSegment.containing(chunk.lsn, timeline=chunk.timeline, size=MEBIBYTE)
                    streamed.setdefault(segment.name, bytearray()).extend(chunk.data)
                    if histories and chunk.timeline == 2:
                        enough.set()
                promoted.join()
                assert [history.name for history in histories] == ["00000002.history"]
                history = TimelineHistory.parse(histories[0].content, timeline=Timeline(2))
                assert history.parents == (1,)
                write_wal(standby)
                end = queries.switch_wal(server)
                supply = make_supply(standby, server)
                assert supply.history(Timeline(2)) == histories[0].content
                assert supply.history(Timeline(3)) is None
                found = [
                    (content.segment.name, content_of(content))
                    for content in supply_range(
                        supply,
                        history,
                        start=start,
                        start_timeline=Timeline(1),
                        end=end,
                        segment_size=MEBIBYTE,
                        timeout_seconds=180,
                    )
                ]
                supply.close()
                switch = history.entries[0].switch_lsn
                assert [name[:8] for name, _ in found] == [
                    "00000002" if name_at + MEBIBYTE > switch else "00000001" for name_at in range(first, end, MEBIBYTE)
                ]
                for name, content in found:
                    assert content == (standby.data_directory / "pg_wal" / name).read_bytes()

    def test_shutdown_ends_the_stream(self, busy: Cluster, busy_server: Server) -> None:
        """A server that shuts down ends the stream with an error, after the last byte of its WAL."""
        # Without it the checkpoint of the shutdown may remove the segment that is being streamed.
        busy.sql("SELECT pg_create_physical_replication_slot('kept', true)")
        with busy_server.replication() as replication:
            stream = WalStream(
                replication,
                start=queries.flushed_lsn(busy_server),
                timeline=Timeline(1),
                segment_size=MEBIBYTE,
                slot="kept",
                status_interval_seconds=0.05,
            )
            stopping = threading.Thread(target=busy.stop)

            def receive() -> None:
                for chunk in stream:
                    assert isinstance(chunk, WalChunk)
                    # The server waits until all of its WAL is flushed by its receivers.
                    stream.confirm(chunk.end_lsn)
                    if stopping.ident is None:
                        stopping.start()

            with pytest.raises(ServerError) as error:
                receive()
            stopping.join()
        assert error.value.message == (
            f"PostgreSQL at {busy_server.where} ended the WAL stream at {stream.position}: it shuts down"
        )

    def test_killed_server_ends_the_stream(self, busy: Cluster, busy_server: Server) -> None:
        """A server that dies ends the stream with an error."""
        with busy_server.replication() as replication:
            stream = WalStream(
                replication,
                start=queries.flushed_lsn(busy_server),
                timeline=Timeline(1),
                segment_size=MEBIBYTE,
            )
            chunks = iter(stream)
            next(chunks)
            busy.kill()
            with pytest.raises(ServerError) as error:
                for _chunk in chunks:
                    pass
        assert error.value.message.startswith(f"the connection to PostgreSQL at {busy_server.where} was lost: ")

    @pytest.mark.parametrize("accident", ["cut", "stall"])
    def test_broken_line_ends_the_stream(self, busy: Cluster, accident: str) -> None:
        """A line that is cut, or that lets nothing through any more, ends the stream with an error."""
        with Proxy(("127.0.0.1", busy.port)) as proxy:
            target = target_of(busy, tcp=True, port=proxy.port)
            with Server.open(target) as server, server.replication() as replication:
                stream = WalStream(
                    replication,
                    start=queries.last_checkpoint(server).redo_lsn,
                    timeline=Timeline(1),
                    segment_size=MEBIBYTE,
                    silence_seconds=1.5,
                )
                chunks = iter(stream)
                next(chunks)
                getattr(proxy, accident)()
                with pytest.raises(ServerError) as error:
                    for _chunk in chunks:
                        pass
        where = f"PostgreSQL at 127.0.0.1:{proxy.port} as postgres"
        if accident == "cut":
            assert error.value.message.startswith(f"the connection to {where} was lost: ")
        else:
            assert error.value.message == (
                f"{where} has been silent for 1.5 seconds in the WAL stream at {stream.position}"
            )

    def test_slot_in_use_is_said(self, busy: Cluster, busy_server: Server) -> None:
        """A slot that somebody else streams from is refused with the server's word."""
        begin = create_physical_slot(busy_server, "receiver")
        arguments = {"start": begin, "timeline": Timeline(1), "segment_size": MEBIBYTE, "slot": "receiver"}
        with busy_server.replication() as first, busy_server.replication() as second:
            chunks = iter(WalStream(first, **arguments))  # type: ignore[arg-type]
            next(chunks)
            with pytest.raises(ServerError) as error:
                next(iter(WalStream(second, **arguments)))  # type: ignore[arg-type]
        assert 'refused: replication slot "receiver" is active for PID' in error.value.message
