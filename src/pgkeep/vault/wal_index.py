"""
The indexes of archived WAL segments: made when somebody asks, and kept beside the archive.

::

    <cluster>/wal-index/0000000100000002.jsonl.zst      for the segments of wal/00000001/0000000100000002

The directory is a cache, and may be removed at any time. Each file is sealed, and JSON by lines: a head, then for each
segment its name, the seal of the stored segment that was read, and the index::

    {"format":1,"system_identifier":"7312345678901234567","segment_size":16777216}
    {"name":"0000000100000002000000A4","seal":"0f…","index":{…}}

A file that is damaged, of another format, or of another cluster counts as absent, and so does a line whose seal is not
that of the stored segment: what it says is read from the segment again. A vault that may not be written is no error.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from typing import Any

import msgspec

from pgkeep.errors import ArchiveError, FormatError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.segment_index import SegmentIndex, close_index, index_segment, transaction_ends
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment
from pgkeep.pg.wal_record import TransactionEnd
from pgkeep.vault.sealed import seal, unseal
from pgkeep.vault.unnamed_file import UnnamedFile, inherit_owner, write_all
from pgkeep.vault.wal_archive import WalArchive
from pgkeep.vault.wal_holdings import timelines

INDEX_DIRECTORY = "wal-index"
INDEX_FORMAT = 1

_SUFFIX = ".jsonl.zst"
_MAX_FILE_BYTES = 64 << 20
# Files of indexes in memory at once, and new indexes before they are written.
_OPEN_FILES = 4
_UNWRITTEN_LINES = 64
_TELL_SECONDS = 10.0


class _Head(msgspec.Struct, frozen=True):
    format: int
    system_identifier: str
    segment_size: int


class _Line(msgspec.Struct, frozen=True):
    name: str
    seal: str
    index: msgspec.Raw


def _plain(value: Any) -> Any:
    return str(value)


def _typed(kind: type, value: Any) -> Any:
    if kind is Lsn:
        return Lsn.parse(value)
    if kind is Timeline:
        return Timeline(int(value))
    raise TypeError(f"expected an Lsn or a Timeline, found {kind.__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_head_decoder = msgspec.json.Decoder(_Head)
_line_decoder = msgspec.json.Decoder(_Line)
_index_decoder = msgspec.json.Decoder(SegmentIndex, dec_hook=_typed)


class _Lines:
    """The lines of one file."""

    def __init__(self, lines: dict[str, _Line]) -> None:
        self.lines = lines
        self.unwritten = 0


class WalIndex:
    """
    The indexes of the segments of one archive; may be used from several threads. Leave it by ``close``, or with it.

    Args:
        archive: Whose segments.
        tell: Takes a line now and then while segments are read, so that nobody takes it for a hang.
    """

    def __init__(self, archive: WalArchive, *, tell: Callable[[str], None] | None = None) -> None:
        self.archive = archive
        self._tell = tell
        self._next_line = time.monotonic() + _TELL_SECONDS
        self._directory = archive.root.parent / INDEX_DIRECTORY
        self._files: OrderedDict[str, _Lines] = OrderedDict()
        self._lock = threading.RLock()

    def __enter__(self) -> WalIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def segment(self, segment: WalSegment, *, is_partial: bool = False) -> SegmentIndex | None:
        """
        Return the index of *segment*; None when it is proved absent from the archive.

        Args:
            segment: Which one.
            is_partial: Ask for what is held of a segment that is not complete.

        Raises:
            ArchiveError: It is there, but damaged, or not what its name says.
        """
        name = _name(segment, is_partial=is_partial)
        with self._lock:
            stored_seal = self.archive.seal(name)
            if stored_seal is None:
                return None
            file = self._file(name[:16])
            line = file.lines.get(name)
            index = _read_index(line) if line is not None and line.seal == stored_seal.hex() else None
            if index is not None and not index.needs_next:
                return index
            closed = self._close_index(index or self._read(segment, name), segment)
            if closed != index:
                self._keep(file, name, stored_seal, closed)
            return closed

    def part(
        self, segment: WalSegment, *, begin: Lsn, end: Lsn | None, is_partial: bool = False
    ) -> SegmentIndex | None:
        """Return the index of the records of *segment* from *begin* up to *end*; None and errors as ``segment``."""
        whole = self.segment(segment, is_partial=is_partial)
        if whole is None or _is_within(whole, begin, end):
            return whole
        index = self._read(segment, _name(segment, is_partial=is_partial), begin=begin, end=end)
        return self._close_index(index, segment, end=end)

    def transaction_ends(self, segment: WalSegment, *, is_partial: bool = False) -> Iterator[TransactionEnd]:
        """Yield every commit and abort of *segment*, which is held, in order; errors as ``segment``."""
        name = _name(segment, is_partial=is_partial)
        following = ((next_segment, self._pieces(other)) for next_segment, other in self._following(segment))
        with _archive_errors(name):
            yield from transaction_ends(segment, self._pieces(name), following)

    def close(self) -> None:
        """Keep what is new."""
        with self._lock:
            for directory, file in self._files.items():
                self._write(directory, file)
            self._files.clear()

    def _read(
        self, segment: WalSegment, name: str, *, begin: Lsn | None = None, end: Lsn | None = None
    ) -> SegmentIndex:
        if self._tell is not None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _TELL_SECONDS
            self._tell(f"looking into the WAL, which is done once: at {name}")
        with _archive_errors(name):
            return index_segment(segment, self._pieces(name), begin=begin, end=end)

    def _close_index(self, index: SegmentIndex, segment: WalSegment, *, end: Lsn | None = None) -> SegmentIndex:
        """Return *index* with its last record read to its end, if the archive has that."""
        if not index.needs_next:
            return index
        for next_segment, name in self._following(segment):
            with contextlib.closing(self._pieces(name)) as pieces, contextlib.suppress(FormatError, ArchiveError):
                closed = close_index(index, next_segment, pieces, end=end)
                if closed is not index:
                    return closed
        return index

    def _following(self, segment: WalSegment) -> Iterator[tuple[WalSegment, str]]:
        """Yield what may continue *segment*, the likely ones first: its own timeline's files, then later timelines'."""
        own = segment.next()
        for next_segment in [own, *(own.on(other) for other in timelines(self.archive) if other > own.timeline)]:
            for name in (next_segment.name, next_segment.name + PARTIAL_SUFFIX):
                if self.archive.has(name):
                    yield next_segment, name

    def _pieces(self, name: str) -> Generator[bytes, None, None]:
        for piece in self.archive.read(name):
            yield bytes(piece)

    def _file(self, directory: str) -> _Lines:
        """Return the lines for the segments in *directory*."""
        file = self._files.get(directory)
        if file is None:
            while len(self._files) >= _OPEN_FILES:
                self._write(*self._files.popitem(last=False))
            file = self._files[directory] = _Lines(self._load(directory))
        self._files.move_to_end(directory)
        return file

    def _keep(self, file: _Lines, name: str, stored_seal: bytes, index: SegmentIndex) -> None:
        # A path that is not UTF-8 has no place in JSON; such a segment is read each time.
        with contextlib.suppress(UnicodeEncodeError):
            file.lines[name] = _Line(name, stored_seal.hex(), msgspec.Raw(_encoder.encode(index)))
            file.unwritten += 1
            if file.unwritten >= _UNWRITTEN_LINES:
                self._write(name[:16], file)

    def _load(self, directory: str) -> dict[str, _Line]:
        path = self._directory / (directory + _SUFFIX)
        try:
            head, *lines = unseal(path.read_bytes(), name=path.name, max_size=_MAX_FILE_BYTES).splitlines()
            if _head_decoder.decode(head) != self._head():
                return {}
            return {line.name: line for line in map(_line_decoder.decode, lines)}
        except (OSError, ValueError, FormatError, msgspec.MsgspecError):
            return {}

    def _write(self, directory: str, file: _Lines) -> None:
        if not file.unwritten:
            return
        file.unwritten = 0
        content = b"\n".join(map(_encoder.encode, (self._head(), *file.lines.values())))
        # It can always be made again: no reason to fail, nor to wait for the disk.
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._inherit_owner(fd)
                with UnnamedFile(fd) as unnamed:
                    inherit_owner(unnamed.fd, fd)
                    write_all(unnamed.fd, seal(content))
                    unnamed.publish_over(directory + _SUFFIX)
                self._remove_orphans()
            finally:
                os.close(fd)

    def _inherit_owner(self, fd: int) -> None:
        with self.archive.opened_root() as root:
            inherit_owner(fd, root)

    def _remove_orphans(self) -> None:
        """Remove the indexes of segments that have all expired."""
        for path in self._directory.glob("*" + _SUFFIX):
            directory = path.name.removesuffix(_SUFFIX)
            if not (self.archive.root / directory[:8] / directory).is_dir():
                path.unlink(missing_ok=True)

    def _head(self) -> _Head:
        return _Head(INDEX_FORMAT, str(int(self.archive.system_identifier)), self.archive.segment_size)


def _name(segment: WalSegment, *, is_partial: bool) -> str:
    return segment.name + (PARTIAL_SUFFIX if is_partial else "")


def _read_index(line: _Line) -> SegmentIndex | None:
    try:
        return _index_decoder.decode(line.index)
    except (ValueError, FormatError, msgspec.MsgspecError):
        return None


def _is_within(index: SegmentIndex, begin: Lsn, end: Lsn | None) -> bool:
    """Tell whether all records of *index* lie from *begin* up to *end*."""
    if index.first is None:
        return True
    last = index.open.lsn if index.open is not None else index.last or index.first
    return index.first >= begin and (end is None or last < end)


@contextlib.contextmanager
def _archive_errors(name: str) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise ArchiveError(f"the archive's copy of {name} cannot be used: {error.message}") from error
