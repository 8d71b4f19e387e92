"""
WAL as a server streams it: START_REPLICATION, status updates, and the way from one timeline to the next.

The stream starts at the beginning of a segment and, after a timeline switch, again at the beginning of the segment in
which the switch lies: the new timeline's segment holds a copy of what came before, so every segment arrives whole.

Source:
    PostgreSQL manual, "Streaming Replication Protocol", messages ``w``, ``k`` and ``r``.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from psycopg.pq import ExecStatus

from pgkeep.errors import ServerError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import check_segment_size
from pgkeep.server.replication import AnswerRow, EndOfCopy, HistoryFile, Replication, answer_rows, quoted_name

_WAL_DATA = struct.Struct(">qqq")
_KEEPALIVE = struct.Struct(">qqB")
_STATUS = struct.Struct(">cqqqqB")
_WAL_HEADER_BYTES = 1 + _WAL_DATA.size
# Microseconds from 1970-01-01 to 2000-01-01, where PostgreSQL's clock begins.
_EPOCH_MICROSECONDS = 946_684_800_000_000

Stop = Callable[[Lsn], bool]


@dataclass(frozen=True, slots=True)
class WalChunk:
    """
    Consecutive bytes of WAL.

    Attributes:
        timeline: The timeline they are streamed from; names the segment they belong to.
        lsn: Of the first byte.
        data: At most 128 KiB; may cross a segment's end.
    """

    timeline: Timeline
    lsn: Lsn
    data: memoryview

    @property
    def end_lsn(self) -> Lsn:
        """The first byte after these."""
        return Lsn(self.lsn + len(self.data))


class WalStream:
    """
    WAL from *start* on, timeline after timeline, as an iterator of chunks and of the history files on the way.

    The iterator waits for WAL that is yet to come, until *stop* says that it is enough or the job is cancelled. It must
    be asked again within the server's ``wal_sender_timeout``. The conversation can be used again after its end.

    Args:
        replication: A conversation; IDENTIFY_SYSTEM is asked first, which PostgreSQL 12 needs on a standby.
        start: Rounded down to the beginning of its segment.
        timeline: The timeline that holds *start*.
        segment_size: The server's, in bytes.
        slot: A physical slot to use; empty for none.
        stop: An LSN that must be reached, or a function that is told the position after each chunk and each
            quarter of a second; None goes on without end.
        status_interval_seconds: How often the position is reported to the server.
        silence_seconds: A server that says nothing at all for so long, although asked to, counts as gone.
        idle: Called when all that has arrived was yielded, before waiting for more; it may ``confirm``.

    Attributes:
        timeline: Of *position*.
        position: Behind what was yielded.
        server_end: End of the server's WAL, as it said last.
        sent_ns: When it sent the last chunk, by its clock, in nanoseconds of the epoch; 0 before the first.

    Raises:
        ServerError: While iterating: WAL is gone, the server shuts down, the line is cut, the job is cancelled.
    """

    def __init__(
        self,
        replication: Replication,
        *,
        start: Lsn,
        timeline: Timeline,
        segment_size: int,
        slot: str = "",
        stop: Lsn | Stop | None = None,
        status_interval_seconds: float = 10,
        silence_seconds: float = 120,
        idle: Callable[[], None] | None = None,
    ) -> None:
        self._replication = replication
        self._segment_size = check_segment_size(segment_size)
        self._slot = slot
        self._stop = _stop_function(stop)
        self._status_interval = status_interval_seconds
        self._silence = silence_seconds
        self._idle = idle
        self._confirmed = Lsn(0)
        self._reported = Lsn(0)
        self._unheard: ServerError | None = None
        self._status_at = 0.0
        self._heard_at = 0.0
        self._asked = False
        self.timeline = timeline
        self.position = self._segment_start(start)
        self.server_end = self.position
        self.sent_ns = 0

    def confirm(self, lsn: Lsn) -> None:
        """
        Say that WAL before *lsn* is safe: the server may forget it, and a synchronous commit may return.

        Without any call no position is confirmed, so that this receiver is never taken for a synchronous standby.
        The server hears of it before anything else is waited for.
        """
        self._confirmed = max(self._confirmed, lsn)

    def __iter__(self) -> Iterator[WalChunk | HistoryFile]:
        """Yield what arrives; see the class."""
        self._replication.identify()
        while True:
            slot = f"SLOT {quoted_name(self._slot)} " if self._slot else ""
            position = f"{self.position >> 32:X}/{self.position & 0xFFFFFFFF:X}"
            self._replication.send(f"START_REPLICATION {slot}PHYSICAL {position} TIMELINE {int(self.timeline)}")
            answer = self._replication.result()
            rows: list[AnswerRow] = []
            if answer is not None and answer.status == ExecStatus.COPY_BOTH:
                ended_by_server = yield from self._timeline_chunks()
                if not ended_by_server:
                    return
                rows = self._end_copy()
            elif answer is not None:
                # Nothing to send: the timeline ended where the stream was to start.
                rows = answer_rows(answer) + self._replication.drain()
            if not rows:
                raise ServerError(
                    f"PostgreSQL at {self._replication.where} ended the WAL stream at {self.position}: it shuts down"
                )
            self.timeline = Timeline(int(bytes(rows[0][0] or b"")))
            switch = Lsn.parse(bytes(rows[0][1] or b"").decode())
            history = self._replication.timeline_history(self.timeline)
            self.position = self._segment_start(switch)
            yield history

    def _timeline_chunks(self) -> Generator[WalChunk, None, bool]:
        """Yield one timeline's chunks; return whether the server ended them, else all was read that was wanted."""
        receive = self._replication.copy_message
        idle = None if self._idle is None else self._tell_idle
        self._heard_at = time.monotonic()
        self._send_status()
        while not self._stop(self.position):
            try:
                message = receive(idle=idle)
            except EndOfCopy:
                return True
            if message is None and self._unheard is not None:
                raise self._unheard
            self._keep_alive(heard=message is not None)
            if message is None:
                continue
            if message[0] == 0x77:
                yield self._take(message)
            elif message[0] == 0x6B:
                end, _time, reply_requested = _KEEPALIVE.unpack_from(message, 1)
                self.server_end = Lsn(end)
                if reply_requested:
                    self._send_status()
        self._send_status()
        self._replication.end_copy()
        for _message in self._replication.copy_messages():
            # What was under way is read and dropped.
            pass
        self._replication.drain()
        return False

    def _take(self, message: memoryview) -> WalChunk:
        lsn, end, sent = _WAL_DATA.unpack_from(message, 1)
        if lsn != self.position:
            raise ServerError(
                f"PostgreSQL at {self._replication.where} streamed WAL from {Lsn(lsn)}, expected {self.position}"
            )
        self.server_end = Lsn(end)
        self.sent_ns = (sent + _EPOCH_MICROSECONDS) * 1000
        chunk = WalChunk(self.timeline, self.position, message[_WAL_HEADER_BYTES:])
        self.position = chunk.end_lsn
        return chunk

    def _end_copy(self) -> list[AnswerRow]:
        """Answer the server's end of the COPY with ours; return the row that names the next timeline, if any."""
        first = self._replication.result()
        if first is None or first.status != ExecStatus.COPY_IN:
            # A server that shuts down completes the command and closes the line without another word.
            return []
        self._replication.end_copy()
        return self._replication.drain()

    def _keep_alive(self, *, heard: bool) -> None:
        now = time.monotonic()
        if heard:
            self._heard_at = now
            self._asked = False
        elif now - self._heard_at > self._silence:
            raise ServerError(
                f"PostgreSQL at {self._replication.where} has been silent for {self._silence:g} seconds "
                f"in the WAL stream at {self.position}"
            )
        elif now - self._heard_at > self._silence / 2 and not self._asked:
            self._asked = True
            self._send_status(ask=True)
        if now - self._status_at >= self._status_interval or self._confirmed != self._reported:
            self._send_status()

    def _tell_idle(self) -> None:
        assert self._idle is not None
        self._idle()
        if self._confirmed != self._reported:
            self._send_status()

    def _send_status(self, *, ask: bool = False) -> None:
        now = time.time_ns() // 1000 - _EPOCH_MICROSECONDS
        # The last position, "applied", is for standbys that replay: zero says that there is none.
        message = _STATUS.pack(b"r", self.position, self._confirmed, 0, now, ask)
        try:
            self._replication.copy_out_message(message)
        except ServerError as error:
            # A server that has ended the stream closes the line; what it said before is still to be read.
            self._unheard = error
        self._status_at = time.monotonic()
        self._reported = self._confirmed

    def _segment_start(self, lsn: Lsn) -> Lsn:
        return Lsn(lsn - lsn % self._segment_size)


def _stop_function(stop: Lsn | Stop | None) -> Stop:
    if stop is None:
        return lambda _position: False
    if isinstance(stop, Lsn):
        return lambda position: position >= stop
    return stop
