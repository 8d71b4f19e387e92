"""
Whole WAL segments, from wherever they can be had: an archive directory, the server's own pg_wal, the wire.

The contract of a supply:

- ``fetch`` returns when the segment is there as far as it is needed, or raises ``NotThere`` at the deadline.
- The content is read once, in order, before the next ``fetch``; every chunk is valid until the next is asked for.
- The content is exactly as long as a segment. The last one may end early: what is not yet written is zeros, and
  ``held_until`` says from where on. Such a segment is a partial one, and is called so by whoever stores it.
- Nothing of another cluster, another position or a later timeline is ever handed out: the header of every segment is
  checked, and for a file of pg_wal once more after it was read, since the server reuses its files.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pgkeep.errors import ArchiveError, FormatError, ServerError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.pg.wal import LONG_HEADER_BYTES, WalSegment, check_wal_header
from pgkeep.server.refusals import Refused
from pgkeep.server.replication import Replication
from pgkeep.server.wal_stream import WalChunk, WalStream
from pgkeep.streams.item import CHUNK_BYTES, Buffer

POLL_SECONDS = 0.1

# undefined_file: the server looked for a segment or a history file and did not find it.
# object_not_in_prerequisite_state: the slot was invalidated.
_WAL_IS_GONE = ("58P01", "55000")


class NotThere(ArchiveError):
    """A segment, or a part of it that is needed, cannot be had from a supply."""


@dataclass(frozen=True, slots=True)
class WalContent:
    """
    One segment, ready to be read.

    Attributes:
        segment: Which one.
        held_until: Bytes from here to the segment's end are zeros and mean nothing; the end of a complete segment.
        source: Where it comes from, for logs.
        chunks: Yields the content, ``segment.size`` bytes in all, at most 1 MiB at a time; to be called once.
    """

    segment: WalSegment
    held_until: Lsn
    source: str
    chunks: Callable[[], Iterator[Buffer]] = field(repr=False)

    @property
    def is_partial(self) -> bool:
        """Whether the segment ends before its file does."""
        return self.held_until < self.segment.end_lsn


class WalSupply(Protocol):
    """Somewhere that WAL can be had from."""

    @property
    def name(self) -> str:
        """For people: ``archive directory /wal``."""
        ...

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:
        """
        Return *segment*, held at least up to *through* or to its end, whichever comes first.

        Args:
            segment: Named by the newest timeline that holds it.
            through: The first byte that is not needed.
            deadline: By ``time.monotonic()``; one that has passed means: now or not at all.

        Raises:
            NotThere: It cannot be had, or not by the deadline; the hint says what would help.
            FormatError: Under its name is something else.
        """
        ...

    def history(self, timeline: Timeline) -> bytes | None:
        """Return the content of the history file of *timeline*; None when it is not there."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class ArchiveDirectory:
    """
    A directory into which the server's archiver, or somebody, copies segments under their own names.

    Args:
        directory: Path on this host.
        system_identifier: The cluster's.
        cancelled: Set by another thread to end a wait.
    """

    def __init__(
        self, directory: str, *, system_identifier: SystemIdentifier, cancelled: threading.Event | None = None
    ) -> None:
        self.name = f"archive directory {directory}"
        self._directory = directory
        self._system_identifier = system_identifier
        self._cancelled = cancelled or threading.Event()

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:  # noqa: ARG002 - archived is complete
        """Wait until the archiver has brought *segment*, whole; see the protocol."""
        path = os.path.join(self._directory, segment.name)
        # A copy that is under way has not its size yet, or, where the whole length was reserved first, no header.
        if not _wait(lambda: _size_of(path) == segment.size and _has_begun(path), deadline, self._cancelled):
            size = _size_of(path)
            found = "it is not there" if size is None else f"it is incomplete, {size} bytes of {segment.size}"
            raise NotThere(
                f"WAL segment {segment.name} cannot be had from {self.name}: {found}",
                hint="look for a failing archive_command in the server's log, or raise switch_wal_timeout",
            )
        return self._content(path, segment)

    def history(self, timeline: Timeline) -> bytes | None:
        """Return a history file; see the protocol."""
        return _read_if_there(os.path.join(self._directory, timeline.history_file_name))

    def close(self) -> None:
        """Hold nothing."""

    def _content(self, path: str, segment: WalSegment) -> WalContent:
        def chunks() -> Iterator[Buffer]:
            file = _open(path)
            if file is None:
                raise NotThere(f"WAL segment {segment.name} cannot be had from {self.name}: it has vanished")
            with file:
                yield from _file_chunks(file, segment, segment.size)

        file = _open(path)
        if file is None:
            raise NotThere(f"WAL segment {segment.name} cannot be had from {self.name}: it has vanished")
        with file:
            check_wal_header(file.read(LONG_HEADER_BYTES) or b"", segment, system_identifier=self._system_identifier)
        return WalContent(segment, segment.end_lsn, self.name, chunks)


class LocalWal:
    """
    The server's own pg_wal, on this host.

    Only WAL that a slot or a backup keeps is safe from being recycled while it is read; what was recycled is noticed.

    Args:
        directory: Path of pg_wal, following the link if it is one.
        system_identifier: The cluster's.
        flushed: Returns up to where WAL is on disk; beyond that a file holds what is left of an older segment.
        cancelled: Set by another thread to end a wait.
    """

    def __init__(
        self,
        directory: str,
        *,
        system_identifier: SystemIdentifier,
        flushed: Callable[[], Lsn],
        cancelled: threading.Event | None = None,
    ) -> None:
        self.name = f"WAL directory {directory}"
        self._directory = directory
        self._system_identifier = system_identifier
        self._flush = _Flush(self.name, flushed, cancelled or threading.Event())

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:
        """Wait until *segment* is flushed far enough; see the protocol."""
        held_until = self._flush.wait_for(segment, through=through, deadline=deadline)
        path = os.path.join(self._directory, segment.name)
        file = _open(path)
        if file is None:
            raise self._gone(segment)
        with file:
            check_wal_header(file.read(LONG_HEADER_BYTES) or b"", segment, system_identifier=self._system_identifier)
        return WalContent(segment, held_until, self.name, lambda: self._chunks(path, segment, held_until))

    def history(self, timeline: Timeline) -> bytes | None:
        """Return a history file; see the protocol."""
        return _read_if_there(os.path.join(self._directory, timeline.history_file_name))

    def close(self) -> None:
        """Hold nothing."""

    def _chunks(self, path: str, segment: WalSegment, held_until: Lsn) -> Iterator[Buffer]:
        file = _open(path)
        if file is None:
            raise self._gone(segment)
        with file:
            yield from _file_chunks(file, segment, held_until - segment.start_lsn)
            # The server renames a file that it needs no more and writes it anew from its beginning.
            first = os.pread(file.fileno(), LONG_HEADER_BYTES, 0)
            try:
                check_wal_header(first, segment, system_identifier=self._system_identifier)
            except FormatError:
                raise self._gone(segment) from None

    def _gone(self, segment: WalSegment) -> NotThere:
        return NotThere(
            f"WAL segment {segment.name} cannot be had from {self.name}: the server has recycled it",
            hint="set archive_dir to where the server archives, or slot_name, so that WAL is kept between jobs",
        )


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
        self._flush = _Flush(self.name, flushed, cancelled or threading.Event())
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
        yield from _zeros(segment.end_lsn - position)
        if held_until == segment.end_lsn:
            self._at = (segment.timeline, segment.end_lsn)
        else:
            # What comes next would be the rest of this segment, which nobody asks for again from its middle.
            self.close()


class FirstOf:
    """Several supplies, asked in order for every segment until one has it."""

    def __init__(self, supplies: Sequence[WalSupply], *, cancelled: threading.Event | None = None) -> None:
        self._supplies = list(supplies)
        self._cancelled = cancelled or threading.Event()
        self.name = ", ".join(supply.name for supply in supplies)

    def fetch(self, segment: WalSegment, *, through: Lsn, deadline: float) -> WalContent:
        """Return *segment* from the first supply that has it; see the protocol."""
        missing: list[NotThere] = []
        found: list[WalContent] = []

        def ask_all() -> bool:
            missing.clear()
            for supply in self._supplies:
                try:
                    found.append(supply.fetch(segment, through=through, deadline=0.0))
                    return True
                except NotThere as error:
                    missing.append(error)
            return False

        if _wait(ask_all, deadline, self._cancelled):
            return found[0]
        reasons = "; ".join(error.message.partition(" cannot be had from ")[2] for error in missing)
        hint = next((error.hint for error in missing if error.hint), "")
        raise NotThere(f"WAL segment {segment.name} cannot be had from {reasons or 'anywhere'}", hint=hint)

    def history(self, timeline: Timeline) -> bytes | None:
        """Return a history file from the first supply that has it."""
        for supply in self._supplies:
            if (content := supply.history(timeline)) is not None:
                return content
        return None

    def close(self) -> None:
        """Close all of them."""
        for supply in self._supplies:
            supply.close()


def supply_range(
    supply: WalSupply,
    history: TimelineHistory,
    *,
    start: Lsn,
    start_timeline: Timeline,
    end: Lsn,
    segment_size: int,
    timeout_seconds: float,
) -> Iterator[WalContent]:
    """
    Yield, oldest first and without a hole, the segments that hold the WAL from *start* up to *end*.

    Args:
        supply: Where they come from.
        history: Of the timeline at *end*; a segment in which it changes timelines is named by the newest.
        start: The first byte that is needed.
        start_timeline: The timeline of *start*.
        end: The first byte that is not needed.
        segment_size: The server's, in bytes.
        timeout_seconds: How long to wait for each segment.

    Raises:
        NotThere: One of them cannot be had.
        FormatError: *start* is not on *history*, or a segment is not what its name says.
    """
    for segment in history.segments(start, start_timeline=start_timeline, end=end, size=segment_size):
        yield supply.fetch(segment, through=end, deadline=time.monotonic() + timeout_seconds)


class _Flush:
    """Up to where the server has WAL on its disk; asked again only when the last answer is not enough."""

    def __init__(self, name: str, flushed: Callable[[], Lsn], cancelled: threading.Event) -> None:
        self._name = name
        self._flushed = flushed
        self._cancelled = cancelled
        self._seen = Lsn(0)

    def wait_for(self, segment: WalSegment, *, through: Lsn, deadline: float) -> Lsn:
        """Wait until what is needed of *segment* is flushed; return up to where all of it is, or its end."""
        needed = min(through, segment.end_lsn)
        if not _wait(lambda: self._reaches(needed), deadline, self._cancelled):
            raise NotThere(
                f"WAL segment {segment.name} cannot be had from {self._name}: "
                f"WAL is flushed up to {self._seen}, needed up to {needed}",
                hint="a standby must have received and replayed the WAL: look at its lag",
            )
        return min(self._seen, segment.end_lsn)

    def _reaches(self, needed: Lsn) -> bool:
        if self._seen < needed:
            self._seen = self._flushed()
        return self._seen >= needed


def _wait(condition: Callable[[], bool], deadline: float, cancelled: threading.Event) -> bool:
    """Return whether *condition* came to hold before *deadline*; it is looked at once in any case."""
    while not condition():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if cancelled.wait(min(POLL_SECONDS, left)):
            raise ServerError("cancelled while waiting for WAL")
    return True


def _open(path: str) -> io.FileIO | None:
    """Return the file at *path*, None when it is not there; raise ArchiveError when it may not be read."""
    try:
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}") from error


def _size_of(path: str) -> int | None:
    file = _open(path)
    if file is None:
        return None
    with file:
        return os.fstat(file.fileno()).st_size


def _has_begun(path: str) -> bool:
    file = _open(path)
    if file is None:
        return False
    with file:
        return any(file.read(LONG_HEADER_BYTES) or b"")


def _read_if_there(path: str) -> bytes | None:
    file = _open(path)
    if file is None:
        return None
    with file:
        return file.readall()


def _file_chunks(file: io.FileIO, segment: WalSegment, held_bytes: int) -> Iterator[Buffer]:
    """Yield the first *held_bytes* of a file, and zeros up to the segment's size."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, segment.size)))
    offset = 0
    while offset < held_bytes:
        length = os.preadv(file.fileno(), [buffer[: held_bytes - offset]], offset)
        if not length:
            raise NotThere(f"WAL segment {segment.name} was cut to {offset} bytes while it was read")
        yield buffer[:length]
        offset += length
    yield from _zeros(segment.size - offset)


def _zeros(length: int) -> Iterator[Buffer]:
    if length:
        zeros = memoryview(bytes(min(CHUNK_BYTES, length)))
        for offset in range(0, length, CHUNK_BYTES):
            yield zeros[: length - offset]
