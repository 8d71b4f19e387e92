"""
PostgreSQL's ``backup_manifest``: the files of a base backup and the WAL it needs, read and written as a stream.

The file is JSON, laid out in lines by ``src/backend/backup/backup_manifest.c``: one file per line, one WAL range per
line, and in the last line the SHA-256 of all lines before it. Reading takes one line at a time, so that a million files
need no memory; the checksum covers the layout too, so nothing but the server's own layout can carry a right one.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline

MANIFEST_VERSIONS = (1, 2)
MAX_LINE_BYTES = 1 << 20

_TIME = "%Y-%m-%d %H:%M:%S GMT"
_VERSION_LINE = re.compile(rb'\{ "PostgreSQL-Backup-Manifest-Version": ([0-9]{1,9}),')
_SYSTEM_LINE = re.compile(rb'"System-Identifier": ([0-9]{1,20}),')
_FILES_LINE = re.compile(rb'"Files": \[')
_RANGES_LINE = re.compile(rb'"WAL-Ranges": \[')
_CHECKSUM_LINE = re.compile(rb'"Manifest-Checksum": "([0-9a-f]{64})"\}')
_DIGEST_LENGTHS = {"NONE": 0, "CRC32C": 4, "SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64}


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """
    One file of a manifest.

    Attributes:
        path: Relative to the data directory; bytes that are not UTF-8 are surrogates, as ``os.fsdecode`` makes them.
        size: Bytes.
        modified: Aware, UTC, whole seconds; None when the manifest has none.
        algorithm: ``CRC32C``, ``SHA224`` to ``SHA512``, or ``NONE``.
        checksum: The digest; empty for ``NONE``. A CRC-32C lies in it as the server keeps it, low byte first.
    """

    path: str
    size: int
    modified: dt.datetime | None = None
    algorithm: str = "NONE"
    checksum: bytes = b""


@dataclass(frozen=True, slots=True)
class ManifestWalRange:
    """WAL that the backup needs: from *start_lsn* up to *end_lsn* of *timeline*."""

    timeline: Timeline
    start_lsn: Lsn
    end_lsn: Lsn


@dataclass(frozen=True, slots=True)
class ManifestEnd:
    """
    What is known of a manifest once all of it was read.

    Attributes:
        version: 1, or 2 from PostgreSQL 17 on.
        system_identifier: None in version 1.
        files: How many files it names.
        bytes: Sum of their sizes.
        wal_ranges: In the order of the manifest, newest timeline first.
        checksum: SHA-256 of all lines but the last, as hexadecimal digits.
    """

    version: int
    system_identifier: SystemIdentifier | None
    files: int
    bytes: int
    wal_ranges: tuple[ManifestWalRange, ...]
    checksum: str


class _FileLine(msgspec.Struct, frozen=True):
    size: int = msgspec.field(name="Size")
    path: str | None = msgspec.field(name="Path", default=None)
    encoded_path: str | None = msgspec.field(name="Encoded-Path", default=None)
    modified: str | None = msgspec.field(name="Last-Modified", default=None)
    algorithm: str = msgspec.field(name="Checksum-Algorithm", default="NONE")
    checksum: str = msgspec.field(name="Checksum", default="")


class _WalLine(msgspec.Struct, frozen=True):
    timeline: int = msgspec.field(name="Timeline")
    start_lsn: str = msgspec.field(name="Start-LSN")
    end_lsn: str = msgspec.field(name="End-LSN")


# Bytes that are not UTF-8 are a ValueError, a line of many brackets is a RecursionError.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_FILE_LINE = msgspec.json.Decoder(_FileLine)
_WAL_LINE = msgspec.json.Decoder(_WalLine)


class ManifestReader:
    """
    Reads a manifest that comes in pieces.

    Call ``feed`` with each piece in order, then ``finish``. What ``feed`` returns is proved only when ``finish`` has
    found the checksum right.
    """

    def __init__(self) -> None:
        self._take: Callable[[bytes], ManifestFile | None] = self._version_line
        self._rest = b""
        self._lines = 0
        self._digest = hashlib.sha256()
        self._version = 0
        self._system_identifier: SystemIdentifier | None = None
        self._files = 0
        self._bytes = 0
        self._wal_ranges: list[ManifestWalRange] = []
        self._checksum = ""

    def feed(self, piece: bytes | bytearray | memoryview) -> list[ManifestFile]:
        """Return the files whose lines end in *piece*; raise FormatError for what is no manifest."""
        *lines, self._rest = (self._rest + bytes(piece)).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise FormatError(f"backup manifest has a line of more than {MAX_LINE_BYTES} bytes")
        found = []
        for line in lines:
            self._lines += 1
            file = self._take(line)
            if file is not None:
                found.append(file)
        return found

    def finish(self) -> ManifestEnd:
        """Return what the manifest says as a whole; raise FormatError when it is cut off or its checksum is wrong."""
        if self._take != self._nothing or self._rest:
            raise FormatError(f"backup manifest is cut off after line {self._lines}")
        computed = self._digest.hexdigest()
        if computed != self._checksum:
            raise FormatError(f"backup manifest is damaged: its checksum is {self._checksum}, computed {computed}")
        return ManifestEnd(
            self._version,
            self._system_identifier,
            self._files,
            self._bytes,
            tuple(self._wal_ranges),
            self._checksum,
        )

    def _version_line(self, line: bytes) -> None:
        match = self._match(_VERSION_LINE, line, "the manifest's version")
        self._version = int(match[1])
        if self._version not in MANIFEST_VERSIONS:
            raise FormatError(f"backup manifest has version {self._version}, supported are 1 and 2")
        self._take = self._system_line if self._version >= 2 else self._files_line

    def _system_line(self, line: bytes) -> None:
        self._system_identifier = SystemIdentifier(int(self._match(_SYSTEM_LINE, line, "the system identifier")[1]))
        self._take = self._files_line

    def _files_line(self, line: bytes) -> None:
        self._match(_FILES_LINE, line, "the start of the files")
        self._take = self._file_line

    def _file_line(self, line: bytes) -> ManifestFile | None:
        self._digest.update(line + b"\n")
        if line == b"],":
            self._take = self._ranges_line
            return None
        try:
            found = _FILE_LINE.decode(line.removesuffix(b","))
            file = _file_from(found)
        except _UNREADABLE as error:
            raise self._unexpected("a file", line) from error
        self._files += 1
        self._bytes += file.size
        return file

    def _ranges_line(self, line: bytes) -> None:
        self._match(_RANGES_LINE, line, "the start of the WAL ranges")
        self._take = self._range_line

    def _range_line(self, line: bytes) -> None:
        self._digest.update(line + b"\n")
        if line == b"],":
            self._take = self._checksum_line
            return
        try:
            found = _WAL_LINE.decode(line.removesuffix(b","))
        except _UNREADABLE as error:
            raise self._unexpected("a WAL range", line) from error
        self._wal_ranges.append(
            ManifestWalRange(Timeline(found.timeline), Lsn.parse(found.start_lsn), Lsn.parse(found.end_lsn))
        )

    def _checksum_line(self, line: bytes) -> None:
        match = _CHECKSUM_LINE.fullmatch(line)
        if match is None:
            raise self._unexpected("the manifest's checksum", line)
        self._checksum = match[1].decode()
        self._take = self._nothing

    def _nothing(self, line: bytes) -> None:
        raise self._unexpected("the end", line)

    def _match(self, pattern: re.Pattern[bytes], line: bytes, what: str) -> re.Match[bytes]:
        self._digest.update(line + b"\n")
        match = pattern.fullmatch(line)
        if match is None:
            raise self._unexpected(what, line)
        return match

    def _unexpected(self, what: str, line: bytes) -> FormatError:
        found = line[:80].decode("utf-8", "backslashreplace")
        return FormatError(f'backup manifest line {self._lines}: expected {what}, found "{found}"')


def read_manifest(content: bytes) -> tuple[list[ManifestFile], ManifestEnd]:
    """Return the files of a whole, small manifest and its end; raise FormatError for a damaged one."""
    reader = ManifestReader()
    return reader.feed(content), reader.finish()


class ManifestWriter:
    """
    Writes a manifest as the server would: ``begin``, ``file`` for each file, ``end``; each returns the next bytes.

    Args:
        version: 1, or 2 from PostgreSQL 17 on.
        system_identifier: Needed by version 2.
    """

    def __init__(self, *, version: int, system_identifier: SystemIdentifier | None = None) -> None:
        self._version = version
        self._system_identifier = system_identifier
        self._digest = hashlib.sha256()
        self._separator = b"\n"

    def begin(self) -> bytes:
        """Return the first lines."""
        lines = f'{{ "PostgreSQL-Backup-Manifest-Version": {self._version},\n'
        if self._version >= 2:
            assert self._system_identifier is not None
            lines += f'"System-Identifier": {self._system_identifier},\n'
        return self._digested(lines.encode() + b'"Files": [')

    def file(self, file: ManifestFile) -> bytes:
        """Return the line of one file."""
        members: dict[str, str | int] = {}
        try:
            file.path.encode()
            members["Path"] = file.path
        except UnicodeEncodeError:
            members["Encoded-Path"] = file.path.encode("utf-8", "surrogateescape").hex()
        members["Size"] = file.size
        if file.modified is not None:
            members["Last-Modified"] = file.modified.astimezone(dt.UTC).strftime(_TIME)
        if file.algorithm != "NONE":
            members["Checksum-Algorithm"] = file.algorithm
            members["Checksum"] = file.checksum.hex()
        line = ", ".join(f'"{name}": {msgspec.json.encode(value).decode()}' for name, value in members.items())
        separator, self._separator = self._separator, b",\n"
        return self._digested(separator + f"{{ {line} }}".encode())

    def end(self, wal_ranges: Iterable[ManifestWalRange]) -> bytes:
        """Return the last lines, checksum included."""
        ranges = ",".join(
            f'\n{{ "Timeline": {found.timeline}, "Start-LSN": "{_server_form(found.start_lsn)}", '
            f'"End-LSN": "{_server_form(found.end_lsn)}" }}'
            for found in wal_ranges
        )
        lines = self._digested(f'\n],\n"WAL-Ranges": [{ranges}\n],\n'.encode())
        return lines + f'"Manifest-Checksum": "{self._digest.hexdigest()}"}}\n'.encode()

    def _digested(self, lines: bytes) -> bytes:
        self._digest.update(lines)
        return lines


def _file_from(line: _FileLine) -> ManifestFile:
    """Return the file that *line* names; raise ValueError when its members do not fit together."""
    if (line.path is None) == (line.encoded_path is None) or line.size < 0:
        raise ValueError
    path = line.path
    if path is None:
        assert line.encoded_path is not None
        path = bytes.fromhex(line.encoded_path).decode("utf-8", "surrogateescape")
    checksum = bytes.fromhex(line.checksum)
    if len(checksum) != _DIGEST_LENGTHS.get(line.algorithm, -1):
        raise ValueError
    modified = None
    if line.modified is not None:
        # strptime would take most of the time that a million lines need.
        moment, zone = line.modified[:19], line.modified[19:]
        if zone != " GMT" or len(moment) != len("2026-11-20 20:48:00"):
            raise ValueError
        modified = dt.datetime.fromisoformat(moment).replace(tzinfo=dt.UTC)
    return ManifestFile(path, line.size, modified, line.algorithm, checksum)


def _server_form(lsn: Lsn) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
