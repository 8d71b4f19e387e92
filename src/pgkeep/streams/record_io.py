"""
Records as lines: written head first and tail last, read without holding the list of files.

The layout is in ``streams/record.py``. A record is whole when its tail is there and counts the lines that were read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec

from pgkeep.errors import FormatError
from pgkeep.streams.record import RECORD_FORMAT, FileEntry, RecordHead, RecordTail

_HEAD_START = b'{"head": '
_FILES_START = b',\n"files": [\n'
_FILES_END = b"\n],\n"
_TAIL_START = b'"tail": '
_RECORD_END = b"}\n"

MAX_LINE_BYTES = 256 << 20
"""A line longer than this is damage: the longest is a file's of 32 TiB with its list of frames."""

_encoder = msgspec.json.Encoder()
_head_decoder = msgspec.json.Decoder(RecordHead)
_tail_decoder = msgspec.json.Decoder(RecordTail)
_file_decoder = msgspec.json.Decoder(FileEntry)


def render_head(head: RecordHead) -> bytes:
    """Return the record up to the start of its file list."""
    return _HEAD_START + _encode(head) + _FILES_START


def render_file(entry: FileEntry, *, is_first: bool) -> bytes:
    """Return the line of one file, with the separator from the line before."""
    return _encode(entry) if is_first else b",\n" + _encode(entry)


def render_tail(tail: RecordTail) -> bytes:
    """Return the record from the end of its file list on."""
    return _FILES_END + _TAIL_START + _encode(tail) + _RECORD_END


def parse_file(line: bytes) -> FileEntry:
    """Return the entry on one line of the file list, with or without its comma."""
    try:
        return _file_decoder.decode(line[:-1] if line.endswith(b",") else line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"a line of the record's file list is not a file entry: {error}") from error


def parse_head(first_bytes: bytes) -> RecordHead:
    """Return the head from a record's first bytes, which must hold its whole first line."""
    line, newline, _rest = first_bytes.partition(b"\n")
    if not newline:
        raise FormatError("the record ends within its head")
    return _parse_head_line(line)


class RecordWriter:
    """
    Write a record into *write*, line by line.

    Args:
        write: Takes the next bytes.
        head: The record's head, complete.
    """

    def __init__(self, write: Callable[[bytes], object], head: RecordHead) -> None:
        self._write = write
        self._is_first = True
        write(render_head(head))

    def add(self, entry: FileEntry) -> None:
        """Append one file."""
        self._write(render_file(entry, is_first=self._is_first))
        self._is_first = False

    def finish(self, tail: RecordTail) -> None:
        """Append the tail; now it is a record."""
        self._write(render_tail(tail))


class RecordReader:
    """
    Read a record from *pieces* of its bytes.

    ``head`` is there at once, ``tail`` after ``files`` or ``lines`` has been consumed.

    Args:
        pieces: The record's bytes, cut anywhere.
        name: What messages call the record.

    Raises:
        FormatError: It is not a record, or not of a format that this version reads.
    """

    def __init__(self, pieces: Iterable[bytes], *, name: str) -> None:
        self._name = name
        self._lines = _lines(pieces, name)
        try:
            self.head = _parse_head_line(next(self._lines, b""))
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from error
        self._tail: RecordTail | None = None

    @property
    def tail(self) -> RecordTail:
        """The record's tail; raise FormatError when the file list was not read to its end."""
        if self._tail is None:
            raise FormatError(f"{self._name} has not been read to its tail")
        return self._tail

    def files(self) -> Iterator[FileEntry]:
        """Yield the file list; raise FormatError when the record is cut short or miscounted."""
        for line in self.lines():
            try:
                yield parse_file(line)
            except FormatError as error:
                raise FormatError(f"{self._name}: {error}") from error

    def lines(self) -> Iterator[bytes]:
        """Yield the file list undecoded, one JSON object each, some with a comma after it."""
        if next(self._lines, b"") != b'"files": [':
            raise FormatError(f"{self._name} is truncated or damaged: no file list follows its head")
        count = 0
        for line in self._lines:
            if line == b"],":
                break
            if line:
                count += 1
                yield line
        else:
            raise FormatError(f"{self._name} is truncated: its file list has no end")
        self._tail = self._read_tail()
        if self._tail.files != count:
            raise FormatError(
                f"{self._name} is damaged: its tail counts {self._tail.files} files, its list has {count}"
            )

    def _read_tail(self) -> RecordTail:
        line = next(self._lines, b"")
        if not line.startswith(_TAIL_START) or not line.endswith(b"}}"):
            raise FormatError(f"{self._name} is truncated: it has no tail")
        if next(self._lines, None) is not None:
            raise FormatError(f"{self._name} is damaged: something follows its tail")
        try:
            return _tail_decoder.decode(line[len(_TAIL_START) : -1])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FormatError(f"{self._name} has a damaged tail: {error}") from error


def _parse_head_line(line: bytes) -> RecordHead:
    if not line.startswith(_HEAD_START) or not line.endswith(b","):
        raise FormatError("not a record: it does not begin with a head")
    try:
        head = _head_decoder.decode(line[len(_HEAD_START) : -1])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"the record's head is damaged: {error}") from error
    if head.format != RECORD_FORMAT:
        raise FormatError(f"the record has format {head.format}, this version reads {RECORD_FORMAT}")
    return head


def _encode(value: RecordHead | RecordTail | FileEntry) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:
        raise FormatError(f"a name in the record is not UTF-8: {error.object!r}") from error


def _lines(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, last = piece.split(b"\n")
        if lines:
            lines[0] = rest + lines[0]
            yield from lines
            rest = last
        else:
            rest += last
        if len(rest) > MAX_LINE_BYTES:
            raise FormatError(f"{name} is damaged: a line is longer than {MAX_LINE_BYTES} bytes")
    if rest:
        yield rest
