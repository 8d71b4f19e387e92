"""
Volumes: tar archives in which every part of a member is a zstd frame of its own, so that each can be read alone.

A member is its tar header, its content in frames of one extent each, and a frame of zeros up to the next tar block. The
header of a stream whose size is not known yet is a frame with one raw block: it has the same length for every size, and
is written over when the size is known. ``zstdcat volume-*.tar.zst | tar -xi`` unpacks all of them.

The normative description is ``docs/formats/vault.md``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from pathlib import Path

import zstandard
from blake3 import blake3

from pgkeep.errors import PgkeepError, VaultError
from pgkeep.streams.record import VolumeEntry
from pgkeep.streams.tar import END_OF_ARCHIVE
from pgkeep.vault.unnamed_file import write_all

STORED_DIGEST_BYTES = 16
"""Length of a member's stored digest: the first half of a BLAKE3."""

_GATHERED_BYTES = 1 << 20
_WRITEBACK_BYTES = 32 << 20

# RFC 8878, 3.1.1: magic; descriptor "single segment, 2 bytes of content size, no checksum"; the size minus 256.
_RAW_FRAME_START = (0xFD2FB528).to_bytes(4, "little") + b"\x60"
_RAW_SIZE_BASE = 256
_RAW_SIZE_MAX = 0xFFFF + _RAW_SIZE_BASE


def raw_frame(content: bytes) -> bytes:
    """Return a zstd frame that holds *content*, 256 to 65,791 bytes, as it is: as long as any other of that size."""
    assert _RAW_SIZE_BASE <= len(content) <= _RAW_SIZE_MAX
    size = (len(content) - _RAW_SIZE_BASE).to_bytes(2, "little")
    # Block header: last block, raw, size (RFC 8878, 3.1.1.2).
    block = (1 | len(content) << 3).to_bytes(3, "little")
    return _RAW_FRAME_START + size + block + content


@functools.lru_cache(maxsize=512)
def padding_frame(length: int) -> bytes:
    """Return the frame of *length* zeros, nothing for 0."""
    return zstandard.ZstdCompressor(level=1).compress(bytes(length)) if length else b""


END_FRAME = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(END_OF_ARCHIVE)
"""What every volume ends with."""


def write_error(path: Path, error: OSError) -> PgkeepError:
    """Return the error that says why *path* in the vault cannot be written, and how much room there is."""
    hint = ""
    room = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free space in the vault's file system, or expire old backups; nothing of this backup is kept"
        with contextlib.suppress(OSError):
            status = os.statvfs(path.parent)
            room = f", {status.f_bavail * status.f_frsize} bytes are free"
    return VaultError(f"cannot write {path}: {error.strerror}{room}", hint=hint)


class VolumeWriter:
    """
    One volume being written; used by one file at a time.

    Args:
        path: The file to make; its directory exists.
        number: Of the volume.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.offset = 0
        self._gathered: list[bytes | memoryview] = []
        self._gathered_bytes = 0
        self._written = 0
        self._writeback_from = 0
        self._members = blake3()
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise write_error(path, error) from error

    def append(self, stored: bytes | memoryview) -> None:
        """Append *stored*, which must not change afterwards; it may be written later, with what follows."""
        self._gathered.append(stored)
        self._gathered_bytes += len(stored)
        self.offset += len(stored)
        if self._gathered_bytes >= _GATHERED_BYTES:
            self._flush()

    def replace(self, offset: int, stored: bytes) -> None:
        """Write *stored* over what was appended at *offset*, of the same length."""
        self._flush()
        try:
            written = os.pwrite(self._fd, stored, offset)
        except OSError as error:
            raise write_error(self.path, error) from error
        assert written == len(stored)

    def take_back(self, offset: int) -> None:
        """Drop what was appended from *offset* on; it was not a member yet."""
        first_gathered = self.offset - self._gathered_bytes
        if offset < first_gathered:
            self._flush()
            try:
                os.ftruncate(self._fd, offset)
                os.lseek(self._fd, offset, os.SEEK_SET)
            except OSError as error:
                raise write_error(self.path, error) from error
            self._written = offset
            self._writeback_from = min(self._writeback_from, offset)
        while self.offset > offset and self._gathered:
            length = len(self._gathered.pop())
            self._gathered_bytes -= length
            self.offset -= length
        self.offset = offset

    def end_member(self, stored_digest: bytes) -> None:
        """Take note of a member's stored digest."""
        self._members.update(stored_digest)

    def finish(self) -> VolumeEntry:
        """Write the end of the archive and return when all is on disk."""
        self.append(END_FRAME)
        self._members.update(END_FRAME)
        self._flush()
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.path, error) from error
        return VolumeEntry(name=self.path.name, size=self.offset, digest=self._members.hexdigest())

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _flush(self) -> None:
        if not self._gathered:
            return
        content = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        try:
            write_all(self._fd, content)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._written += len(content)
        self._gathered.clear()
        self._gathered_bytes = 0
        if self._written - self._writeback_from >= _WRITEBACK_BYTES:
            start_writeback(self._fd, self._writeback_from, self._written - self._writeback_from)
            self._writeback_from = self._written


@functools.cache
def _sync_file_range() -> object:
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to disk, so that the sync at the end finds little left; only a hint."""
    function = _sync_file_range()
    if callable(function):
        function(fd, offset, length, 2)  # SYNC_FILE_RANGE_WRITE
