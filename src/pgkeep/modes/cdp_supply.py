"""Where a cdp backup has its WAL from: the spool, the server, or both; and what is there of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pgkeep.errors import ServerError, SettingsError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, WalPosition
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import check_slot_is_bounded, find_slot
from pgkeep.server.streamed_wal import StreamedWal
from pgkeep.server.wal_supply import NotThere, WalContent
from pgkeep.spool.proof import read_proof
from pgkeep.spool.reading import SpoolView, record_end
from pgkeep.streams.item import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class CdpWal:
    """
    The WAL that a cdp backup can have.

    Attributes:
        system_identifier: Whose WAL it is.
        segment_size: Bytes.
        history: Of the timeline at its end.
        history_text: The same, as the server writes it; empty on timeline 1.
        end: Up to where there is WAL: behind a whole record.
        flushed: Up to where there is any; not before *end*.
        proved_ns: In nanoseconds of the epoch: every commit before that is before *end*; None when that is not known.
        where: What messages call it.
        spool: None when there is none.
        stream: None while a receiver streams, or when the server does not answer.
        slot: The lasting slot that is to be made or moved here, which is so only without a spool; empty for none.
        is_standby: Whether the server is one: its WAL may end before what was had from another, and nobody knows when
            its primary wrote it. False where WAL comes from the spool alone.
        kept: From where on the server surely has its WAL; None without a stream, or when that is not known.
        timeout_seconds: How long to wait for a segment of the server's.
    """

    system_identifier: SystemIdentifier
    segment_size: int
    history: TimelineHistory
    history_text: str
    end: Lsn
    flushed: Lsn
    proved_ns: int | None
    where: str
    spool: SpoolView | None
    stream: StreamedWal | None
    slot: str
    is_standby: bool
    kept: Lsn | None
    timeout_seconds: float

    def was_put_back(self, held: Lsn) -> bool:
        """
        Tell whether the server, on the timeline of *held*, once had WAL up to there and is about to write other WAL.

        Never of a receiver or a standby, which may be about to catch up.
        """
        return self.stream is not None and not self.is_standby and self.flushed < held

    def segments(self, begin: WalPosition, end: Lsn) -> list[WalSegment]:
        """Return the segments with the bytes from *begin* to *end*, oldest first."""
        return list(self.history.segments(begin.lsn, start_timeline=begin.timeline, end=end, size=self.segment_size))

    def oldest(self) -> Lsn:
        """Return from where on there is WAL without a hole, up to its end."""
        held = set(self.spool.segments()) if self.spool is not None else set()
        number = (self.end - 1) // self.segment_size if self.end else 0
        lowest = self.kept // self.segment_size if self.kept is not None else None

        def has(number: int) -> bool:
            if lowest is not None and number >= lowest:
                return True
            return (
                WalSegment(
                    next(self.history.segment_timelines(number, size=self.segment_size)), number, self.segment_size
                )
                in held
            )

        while number >= 0 and has(number):
            number -= 1
        return min(self.end, Lsn((number + 1) * self.segment_size))

    def can_stream(self, position: WalPosition) -> bool:
        """Tell whether the server still has its WAL from *position* on."""
        if self.stream is None:
            return False
        segment = self.segments(position, Lsn(position.lsn + 1))[0]
        try:
            self.stream.fetch(segment, through=Lsn(position.lsn + 1), deadline=0.0)
        except NotThere:
            return False
        finally:
            self.stream.close()
        return True


def cdp_wal(
    directory: Path, server: Server | None, *, slot: str, allow_unbounded_slot: bool, timeout_seconds: float
) -> CdpWal:
    """
    Return where the WAL of the cluster is whose spool is *directory*; nothing is made.

    Args:
        directory: Of the spool; there need not be one.
        server: The server; None when it does not answer.
        slot: Name of the lasting slot: whether somebody streams from it tells whether a receiver runs.
        allow_unbounded_slot: Whether it may be made although nothing bounds what it keeps.
        timeout_seconds: How long to wait for a segment of the server's.

    Raises:
        SettingsError: There is neither a spool nor a server; or they are of two clusters.
        ServerError: The server cannot be asked.
        VaultError: The spool cannot be read.
    """
    spool = SpoolView.found(directory)
    if server is None:
        if spool is None or not spool.segments():
            raise ServerError(
                f"the server does not answer, and there is no WAL in a spool {directory}",
                hint="spool_dir and cluster_id must be those of pgkeep receive",
            )
        return _spooled(spool, timeout_seconds)
    identity = queries.identify(server)
    if spool is not None and spool.system_identifier != identity.system_identifier:
        raise SettingsError(
            f"the spool {directory} is for system identifier {spool.system_identifier}, the server has "
            f"{identity.system_identifier}",
            hint="give each cluster a cluster_id of its own",
        )
    found = find_slot(server, slot)
    if spool is not None and spool.segments() and found is not None and found.is_active:
        return _spooled(spool, timeout_seconds)
    if spool is None:
        if found is not None and found.is_active:
            raise SettingsError(
                f'slot "{slot}" is in use, but there is no spool {directory}',
                hint="spool_dir and cluster_id must be those of pgkeep receive; the backend runs as its user",
            )
        check_slot_is_bounded(server, slot, allow_unbounded=allow_unbounded_slot)
    history_text = server.history_text(identity.timeline)
    stream = StreamedWal(
        server.replication,
        system_identifier=identity.system_identifier,
        flushed=lambda: queries.flushed_lsn(server),
        where=server.where,
    )
    begun_ns = time.time_ns()
    flushed = queries.flushed_lsn(server)
    size = queries.wal_segment_size(server)
    kept = found.restart_lsn if found is not None and not found.is_lost else None
    wal = CdpWal(
        system_identifier=identity.system_identifier,
        segment_size=size,
        history=TimelineHistory.parse(history_text, timeline=identity.timeline),
        history_text=history_text,
        end=flushed,
        flushed=flushed,
        # Nobody knows when its primary wrote the last that a standby has.
        proved_ns=begun_ns if not identity.is_in_recovery else None,
        where=f"the server {server.where}",
        spool=spool,
        stream=stream,
        slot=slot if spool is None else "",
        is_standby=identity.is_in_recovery,
        kept=min(kept, flushed) if kept is not None else Lsn(flushed - flushed % size),
        timeout_seconds=timeout_seconds,
    )
    return _up_to_a_record(wal)


def _spooled(spool: SpoolView, timeout_seconds: float) -> CdpWal:
    # First: what is received from here on is not promised.
    proof = read_proof(spool.path)
    newest = spool.segments()[-1]
    history = spool.history_of(newest.timeline)
    content = spool.history(newest.timeline) or b""
    end = newest.start_lsn
    held = spool.open(newest)
    if held is not None:
        try:
            end = newest.end_lsn
            if not held.is_complete:
                before = WalSegment(newest.timeline, newest.number - 1, newest.size) if newest.number else None
                previous = spool.open(before) if before is not None else None
                try:
                    is_whole = previous is not None and previous.is_complete
                    end = record_end(
                        newest, held.pieces, previous.pieces if previous is not None and is_whole else None
                    )
                finally:
                    if previous is not None:
                        previous.close()
        finally:
            held.close()
    return CdpWal(
        system_identifier=spool.system_identifier,
        segment_size=spool.segment_size,
        history=history,
        history_text=content.decode("utf-8", "surrogateescape"),
        end=end,
        flushed=end,
        proved_ns=proof.time_of(newest.timeline) if proof is not None else None,
        where=f"the spool {spool.path}",
        spool=spool,
        stream=None,
        slot="",
        is_standby=False,
        kept=None,
        timeout_seconds=timeout_seconds,
    )


def _up_to_a_record(wal: CdpWal) -> CdpWal:
    """Return *wal* with its end behind a whole record: a server may have flushed a part of one."""
    assert wal.stream is not None
    stream = wal.stream
    if wal.end % wal.segment_size == 0:
        return wal
    segment = WalSegment.containing(wal.end, timeline=wal.history.timeline, size=wal.segment_size)
    previous = WalSegment(segment.timeline, segment.number - 1, segment.size)

    def fetch(one: WalSegment) -> WalContent:
        deadline = time.monotonic() + wal.timeout_seconds
        return stream.fetch(one, through=min(wal.end, one.end_lsn), deadline=deadline)

    def content() -> Iterator[Buffer]:
        return fetch(segment).chunks()

    try:
        is_first = wal.history.begin_of(segment.timeline) >= segment.start_lsn
        end = record_end(segment, content, None if is_first else lambda: fetch(previous).chunks())
    except NotThere:
        # The server has the segment before it no more.
        end = record_end(segment, content, None)
    finally:
        stream.close()
    return replace(wal, end=end)
