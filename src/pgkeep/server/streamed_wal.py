"""The supply of WAL that asks the server itself, by the replication protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from pgkeep.errors import ServerError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.wal import LONG_HEADER_BYTES, WalSegment, check_wal_header
from pgkeep.server.refusals import Refused
from pgkeep.server.replication import Replication
from pgkeep.server.wal_stream import WalChunk, WalStream
from pgkeep.server.wal_supply import FlushedWal, NotThere, WalContent, zeros
from pgkeep.streams.item import Buffer

# undefined_file: the server looked for a segment or a history file and did not find it.
# object_not_in_prerequisite_state: the slot was invalidated.
_WAL_IS_GONE = ("58P01", "55000")


class StreamedWal:
    """
    The replication protocol: needs no archive and no access to the server's files.

    A conversation is opened when the first segment is asked for, and goes on from segment to segment.

    Args:
        open_replication: Returns a new conversation.
        system_identifier: The cluster's.
        flushed: Returns up to where the server could send.
        where: The server's place.
        slot: A physical slot to stream from; empty for none.
        cancelled: Set by another thread to end a wait.
    """

    def __init__(
        self,
        open_replication: Callable[[], Replication],
        *,
        system_identifier: SystemIdentifier,
        flushed: Callable[[], Lsn],
        where: str,
        slot: str = "",
        cancelled: threading.Event | None = None,
    ) -> None:
        self.name = f"the WAL stream of {where}"
        self._open_replication = open_replication
        self._system_identifier = system_identifier
        self._flush = FlushedWal(self.name, flushed, cancelled or threading.Event())
        self._slot = slot
        self._replication: Replication | None = None
        self._chunks: Iterator[WalChunk] | None = None
        self._pending: WalChunk | None = None
        self._at: tuple[Timeline, Lsn] | None = None

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:
        """Wait until the server can send *segment* far enough; see the protocol."""
        held_until = self._flush.wait_for(segment, through=through, deadline=deadline)
        if self._chunks is None or self._at != (segment.timeline, segment.start_lsn):
            self._begin(segment)
        self._at = None
        try:
            first = self._next(segment)
        except Refused as error:
            self.close()
            if error.state not in _WAL_IS_GONE:
                raise
            raise NotThere(
                f"WAL segment {segment.name} cannot be had from {self.name}: {error.message}",
                hint="set archive_dir to where the server archives, or slot_name, so that WAL is kept between jobs",
            ) from error
        self._pending = first
        return WalContent(segment, held_until, self.name, lambda: self._content(segment, held_until))

    def history(self, timeline: Timeline) -> bytes | None:
        """Ask the server for a history file; see the protocol."""
        with self._open_replication() as replication:
            try:
                return replication.timeline_history(timeline).content
            except Refused as error:
                if error.state not in _WAL_IS_GONE:
                    raise
                return None

    def close(self) -> None:
        """End the conversation."""
        if self._replication is not None:
            self._replication.close()
        self._replication = self._chunks = self._pending = self._at = None

    def _begin(self, segment: WalSegment) -> None:
        self.close()
        self._replication = self._open_replication()
        stream = WalStream(
            self._replication,
            start=segment.start_lsn,
            timeline=segment.timeline,
            segment_size=segment.size,
            slot=self._slot,
        )
        self._chunks = (chunk for chunk in stream if isinstance(chunk, WalChunk))

    def _next(self, segment: WalSegment) -> WalChunk:
        chunk, self._pending = self._pending, None
        if chunk is None:
            assert self._chunks is not None
            chunk = next(self._chunks)
        if chunk.timeline != segment.timeline:
            raise ServerError(
                f"{self.name} went on to timeline {chunk.timeline} within segment {segment.name}, "
                f"which was expected on timeline {segment.timeline}"
            )
        return chunk

    def _content(self, segment: WalSegment, held_until: Lsn) -> Iterator[Buffer]:
        position = segment.start_lsn
        head = b""
        while position < held_until:
            chunk = self._next(segment)
            room = held_until - position
            data = chunk.data
            if len(data) > room:
                self._pending = WalChunk(chunk.timeline, held_until, data[room:])
                data = data[:room]
            if len(head) < LONG_HEADER_BYTES:
                head += bytes(data[: LONG_HEADER_BYTES - len(head)])
                if len(head) == LONG_HEADER_BYTES:
                    check_wal_header(head, segment, system_identifier=self._system_identifier)
            position = Lsn(position + len(data))
            yield data
        yield from zeros(segment.end_lsn - position)
        if held_until == segment.end_lsn:
            self._at = (segment.timeline, segment.end_lsn)
        else:
            # What comes next would be the rest of this segment, which nobody asks for again from its middle.
            self.close()
