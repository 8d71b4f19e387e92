"""
Receive WAL as the server writes it, into a spool.

One thread does this and nothing else: it takes what the server sends, writes it, makes it durable whenever nothing more
has arrived, and only then tells the server so. What ships the spool is another thread, for which it never waits. Where
the connection breaks it begins again, for ever; where the spool is full it stops until there is room, and how much the
server keeps meanwhile is bounded there, by ``max_slot_wal_keep_size``.
"""

from __future__ import annotations

import datetime as dt
import threading
import time

from pgkeep.errors import ServerError, VaultError
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.receiving.completeness import Completeness
from pgkeep.jobs.receiving.ears import Ears
from pgkeep.jobs.receiving.source import Source, SourceOptions, opened_source
from pgkeep.jobs.receiving.start import check_not_behind, held_end, known_history, resume_after
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.pg.wal import WalSegment
from pgkeep.server.refusals import Refused
from pgkeep.server.replication import HistoryFile
from pgkeep.server.wal_stream import WalChunk, WalStream
from pgkeep.spool.directory import Spool
from pgkeep.spool.proof import Proof
from pgkeep.spool.segment_file import SegmentFile
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import held_through
from pgkeep.vault.wal_holes import WalHole

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 30.0

_BEHIND_SEGMENTS = 2
_WAL_IS_GONE = "58P01"
# A server that never pauses must not keep those waiting who have committed.
_LONGEST_UNFLUSHED_SECONDS = 0.2
_ROOM_SECONDS = 1.0
_WARN_AT_PERCENT = (70, 90)


class Receiver:
    """
    Receives the WAL of one cluster.

    Args:
        spool: Where to.
        archive: Of the cluster: where its WAL ends tells where to begin when the spool is empty; None for no vault.
        options: Which server.
        ears: Who hears of it.
        stop: Ends it in order: what was received is made durable, and the server hears of it.
        cancelled: Ends it at once.

    Attributes:
        trouble: Why nothing is received, as one line; empty while the server streams. For any thread.
    """

    def __init__(
        self,
        spool: Spool,
        archive: WalArchive | None,
        options: SourceOptions,
        ears: Ears,
        *,
        stop: threading.Event,
        cancelled: threading.Event,
    ) -> None:
        self._spool = spool
        self._archive = archive
        self._options = options
        self._ears = ears
        self._stop = stop
        self._cancelled = cancelled
        self._file: SegmentFile | None = None
        self._stream: WalStream | None = None
        self._durable: tuple[WalSegment, int] | None = None
        self._received: WalPosition | None = None
        self._flushed_at = 0.0
        self._is_streaming = False
        self._has_received = False
        self._behind_hole: WalPosition | None = None
        self._warned_percent = 0
        self._cannot_write = False
        self._said: set[str] = set()
        self._completeness = Completeness(spool.path)
        self.trouble = ""

    @property
    def is_streaming(self) -> bool:
        """Whether the server sends; for any thread."""
        return self._is_streaming

    @property
    def server_end(self) -> Lsn | None:
        """The end of the server's WAL, as it said last; None while it does not send. For any thread."""
        stream = self._stream
        return stream.server_end if stream is not None and self._is_streaming else None

    def received(self) -> WalPosition | None:
        """Return up to where WAL is durable in the spool, or was held before; for any thread."""
        return self._received

    def is_behind(self) -> bool:
        """Tell whether the server has some segments that were not received; for any thread."""
        end, received = self.server_end, self._received
        behind = end - received.lsn if end is not None and received is not None else 0
        return behind > _BEHIND_SEGMENTS * self._spool.segment_size

    def proof(self) -> Proof | None:
        """Return until when all commits have been received; for any thread, which asks before it looks at the WAL."""
        return self._completeness.proof

    def durable(self) -> tuple[WalSegment, int] | None:
        """Return the segment that is received now and how many bytes of it are durable; for any thread."""
        return self._durable

    def run(self) -> None:
        """
        Receive until *stop* is set.

        Raises:
            PgkeepError: Going on would mix the WAL of two clusters or histories, or a setting forbids it.
        """
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            self._has_received = False
            try:
                self._receive()
                continue
            except _SpoolIsFull:
                self._wait_for_room()
                continue
            except (ServerError, VaultError) as error:
                trouble = error.message
            except OSError as error:
                trouble = f"cannot write in the spool {self._spool.path}: {error.strerror}"
                self._cannot_write = True
            finally:
                self._is_streaming = False
                self._leave()
            if self._stop.is_set():
                break
            if self._has_received and not self._cannot_write:
                pause = FIRST_PAUSE_SECONDS
            if trouble not in self._said:
                # Each is said once; that they are over, streaming says.
                self._said.add(trouble)
                self._ears.warn(f"{trouble}; trying again in {pause:g} s")
            self.trouble = trouble
            self._stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _receive(self) -> None:
        with opened_source(self._options, self._cancelled) as source:
            if source.lost_slot:
                self._ears.warn(f'slot "{self._options.slot}" had lost the WAL that it should have kept: made anew')
            self._take_histories(source)
            held, position = self._start(source)
            try:
                self._follow(source, position)
            except Refused as error:
                if error.state != _WAL_IS_GONE or self._has_received:
                    raise
                self._pass_hole(source, held, position, error)

    def _take_histories(self, source: Source) -> None:
        for timeline in source.history.timelines[1:]:
            if self._spool.history(timeline) is None:
                file = source.history_file(timeline)
                if file is not None:
                    self._spool.put_history(file.name, file.content)
                    self._ears.arrived()

    def _start(self, source: Source) -> tuple[Lsn, WalPosition]:
        """Return the end of what is held, and where to go on."""
        held = held_end(self._spool, self._archive, source.history)
        if held is not None and held.where == "spool" and self._received is None:
            self._received = held.end
        if held is None:
            position = self._behind_hole or WalPosition(source.history.timeline_at(source.kept), source.kept)
            return position.lsn, position
        history = known_history(held, source.history, self._spool, self._archive)
        resume = resume_after(held, history, source.history)
        check_not_behind(held, source.history, source.end, is_standby=source.is_standby)
        if resume.branch is not None:
            self._ears.warn(
                f"timeline {resume.branch.timeline} was received up to {resume.branch.lsn}, but the server's timeline "
                f"{source.history.timeline} left it at {_left_at(source, resume.branch.timeline, resume.position)}: "
                "what lies behind is kept as a branch of its own"
            )
        if self._behind_hole is not None and self._behind_hole.lsn > resume.position.lsn:
            return held.end.lsn, self._behind_hole
        self._behind_hole = None
        return min(held.end.lsn, resume.position.lsn) if resume.branch is not None else held.end.lsn, resume.position

    def _follow(self, source: Source, position: WalPosition) -> None:
        self._is_streaming = False
        self._stream = stream = WalStream(
            source.replication,
            start=position.lsn,
            timeline=position.timeline,
            segment_size=self._spool.segment_size,
            slot=self._options.slot,
            stop=self._must_stop,
            idle=self._idle,
        )
        self._completeness.begin()
        for item in stream:
            if isinstance(item, HistoryFile):
                self._switch(item, stream.position)
            else:
                self._take(item, stream)
            self._has_received = True

    def _take(self, chunk: WalChunk, stream: WalStream) -> None:
        self._say_streaming()
        data, lsn = chunk.data, chunk.lsn
        self._completeness.hear(chunk, stream)
        while data:
            if self._file is None:
                segment = WalSegment.containing(lsn, timeline=chunk.timeline, size=self._spool.segment_size)
                self._file = self._begin(segment)
            file = self._file
            piece = data[: file.segment.size - file.written]
            file.write(piece)
            data, lsn = data[len(piece) :], Lsn(lsn + len(piece))
            if file.written == file.segment.size:
                file.flush()
                file.date(self._completeness.reach(file.segment.timeline, file.position))
                file.complete()
                self._file = None
                self._note(file)
                stream.confirm(file.segment.end_lsn)
                self._ears.arrived()
        self._say_streaming()
        if time.monotonic() - self._flushed_at > _LONGEST_UNFLUSHED_SECONDS:
            self._flush()

    def _begin(self, segment: WalSegment) -> SegmentFile:
        spool = self._spool
        if not spool.has_room(segment):
            raise _SpoolIsFull
        percent = 100 * (spool.used_bytes + segment.size) // spool.max_bytes
        reached = max((level for level in _WARN_AT_PERCENT if percent >= level), default=0)
        if reached > self._warned_percent:
            self._ears.warn(f"the spool is {percent} % full: {size_text(spool.max_bytes)} at most, in {spool.path}")
        self._warned_percent = reached
        return spool.begin(segment)

    def _idle(self) -> None:
        self._say_streaming()
        self._flush()

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        file = self._file
        if file is not None and file.flush():
            self._note(file)
            self._completeness.reach(file.segment.timeline, file.position)
            if self._stream is not None:
                self._stream.confirm(file.position)

    def _note(self, file: SegmentFile) -> None:
        """Remember for the other thread how much is durable: more than before, when a segment is received again."""
        before = self._durable
        if before is None or before[0] != file.segment or before[1] < file.durable:
            self._durable = (file.segment, file.durable)
        received, end = self._received, Lsn(file.segment.start_lsn + file.durable)
        if received is None or received.timeline != file.segment.timeline or received.lsn < end:
            self._received = WalPosition(file.segment.timeline, end)
            # Not before: what was there already is received once more without any room.
            self._cannot_write = False

    def _must_stop(self, _position: Lsn) -> bool:
        self._completeness.publish()
        if self._stop.is_set():
            self._flush()
            return True
        return False

    def _switch(self, history: HistoryFile, position: Lsn) -> None:
        """Leave the old timeline's last segment as far as it goes, and hold the history of the new timeline."""
        self._leave()
        self._spool.put_history(history.name, history.content)
        self._ears.arrived()
        self._ears.say(f"the timeline ended: following timeline {history.timeline} from {position}")

    def _leave(self) -> None:
        """Close the segment that is received, durably."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.flush()
                self._note(file)
                file.date(self._completeness.reach(file.segment.timeline, file.position))
            finally:
                file.close()
        self._completeness.publish(at_once=True)

    def _pass_hole(self, source: Source, held: Lsn, position: WalPosition, error: Refused) -> None:
        """Write down that WAL is gone, and go on with the oldest that the slot keeps; raise *error* if that is none."""
        kept = Lsn(source.kept - source.kept % self._spool.segment_size)
        if kept <= position.lsn:
            raise error
        timeline = source.history.timeline_at(kept)
        if self._archive is not None and held_through(self._archive, timeline, held) >= kept:
            self._ears.say(f"the vault has the WAL from {held} to {kept}, which the server has no more")
            self._behind_hole = WalPosition(timeline, kept)
            return
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        hole = WalHole(timeline=int(timeline), start=str(held), stop=str(kept), time=now, reason=error.message)
        self._ears.record_hole(hole)
        self._ears.warn(
            f"HOLE: the WAL from {held} to {kept} was not received, and the server has it no more: no recovery passes "
            f"it, make a new base backup now ({error.message})"
        )
        self._behind_hole = WalPosition(timeline, kept)

    def _wait_for_room(self) -> None:
        spool = self._spool
        self._is_streaming = False
        self._leave()
        self.trouble = (
            f"the spool is full: {size_text(spool.used_bytes)} of {size_text(spool.max_bytes)} in {spool.path}: "
            "receiving stops until WAL is shipped from there"
        )
        self._ears.warn(self.trouble)
        next_segment = spool.segments()[-1].segment.next()
        while not spool.has_room(next_segment):
            if self._stop.wait(_ROOM_SECONDS):
                return
        self._ears.say("the spool has room again: receiving goes on")

    def _say_streaming(self) -> None:
        # A server that sends is of no use to a disk that takes nothing.
        if not self._is_streaming and self._stream is not None and not self._cannot_write:
            self._is_streaming = True
            self._said.clear()
            self.trouble = ""
            stream = self._stream
            self._ears.say(f"streaming from {stream.position} on timeline {stream.timeline}")
            self._ears.streams()


def _left_at(source: Source, timeline: Timeline, position: WalPosition) -> Lsn:
    fork = source.history.fork_of(timeline)
    return position.lsn if fork is None else fork


class _SpoolIsFull(Exception):
    """The next segment has no room in the spool."""
