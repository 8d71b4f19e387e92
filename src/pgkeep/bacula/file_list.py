"""The file list of a record to be: compressed in a file without a name until the head is known."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import zstandard

from pgkeep.errors import BridgeError
from pgkeep.streams.record import FileEntry
from pgkeep.streams.record_io import render_file

_LINES_BYTES = 1 << 20


class FileList:
    """
    Lines of a file list, appended one by one and read once or twice.

    Args:
        directory: Where the file without a name lives; None for the system's temporary directory.

    Attributes:
        files: Lines.
        bytes: Sum of their sizes.
    """

    def __init__(self, directory: str | None) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by ``close``
        except OSError as error:
            raise BridgeError(f"cannot write in {directory or tempfile.gettempdir()}: {error.strerror}") from error
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        self._lines = bytearray()
        self.files = 0
        self.bytes = 0

    def add(self, entry: FileEntry) -> None:
        """Append *entry*."""
        self._lines += render_file(entry, is_first=not self.files)
        self.files += 1
        self.bytes += entry.size
        if len(self._lines) >= _LINES_BYTES:
            self._flush()

    def frames(self) -> Iterator[bytes]:
        """Yield the stored bytes, zstd frames."""
        self._flush()
        offset = 0
        while piece := os.pread(self._file.fileno(), _LINES_BYTES, offset):
            offset += len(piece)
            yield piece

    def lines(self) -> Iterator[bytes]:
        """Yield the lines as they stand in a record, cut anywhere."""
        self._flush()
        self._file.seek(0)
        reader = zstandard.ZstdDecompressor().stream_reader(self._file, read_across_frames=True, closefd=False)
        while piece := reader.read(_LINES_BYTES):
            yield piece

    def close(self) -> None:
        """Drop it."""
        self._file.close()

    def _flush(self) -> None:
        if not self._lines:
            return
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(self._compressor.compress(self._lines))
            self._file.flush()
        except OSError as error:
            raise BridgeError(f"cannot keep the list of files: {error.strerror}") from error
        self._lines.clear()
