"""
Writing the extents of large files past the page cache.

A restore writes more than memory holds and reads none of it again, so the copy into the page cache, its bookkeeping and
the later writeback are work for nothing: it costs more than half of the CPU time of writing, and pushes out what other
programs of the host have cached. Extents go straight to the disk (``O_DIRECT``) where the file system allows it, from
where they are when that is the beginning of a page, or else from a thread's aligned buffer; small files, and file
systems that refuse, go through the page cache.
"""

from __future__ import annotations

import ctypes
import errno
import os

from pgkeep.datadir.durable import allocate, start_writeback
from pgkeep.streams.item import Buffer
from pgkeep.streams.thread_memory import ThreadMemory

DIRECT_BYTES = 1 << 20
"""Files smaller than this are left to the page cache, which collects them into better writes."""

WRITEBACK_BYTES = 256 << 10
"""Buffered pieces smaller than this are left to the barrier, for the same reason."""

_ALIGNMENT = 4096


class WrittenFile:
    """A file that is being written; *direct* is a second descriptor, -1 when there is none."""

    __slots__ = ("descriptor", "direct")

    def __init__(self, descriptor: int, direct: int) -> None:
        self.descriptor = descriptor
        self.direct = direct

    def close(self) -> None:
        """Close both descriptors."""
        direct, self.direct = self.direct, -1
        if direct >= 0:
            os.close(direct)
        os.close(self.descriptor)


class ExtentWriter:
    """Writes for one lay-down; every method may be called from any thread."""

    def __init__(self) -> None:
        self._memory = ThreadMemory()
        self._refused = False

    def begin(self, descriptor: int, size: int) -> WrittenFile:
        """
        Return the file behind *descriptor*, which it owns from now on, prepared for *size* bytes.

        Args:
            descriptor: Open for writing, of an empty file.
            size: Bytes to come, or negative when unknown.

        Raises:
            OSError: There is no room for it; *descriptor* is closed.
        """
        file = WrittenFile(descriptor, -1)
        if size < DIRECT_BYTES:
            return file
        try:
            # Room is taken at once: a full disk is known before the work, and direct writes need no lock to extend.
            allocate(descriptor, size)
        except BaseException:
            file.close()
            raise
        if size % _ALIGNMENT == 0 and not self._refused:
            try:
                file.direct = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT)
            except OSError:
                self._refused = True
        return file

    def write(self, file: WrittenFile, offset: int, buffer: Buffer) -> None:
        """Write *buffer*, at most an extent, at *offset*, and see that it is on its way to the disk."""
        length = len(buffer)
        done = 0
        if file.direct >= 0 and length % _ALIGNMENT == 0 and not self._refused:
            done = self._write_directly(file.direct, offset, buffer)
        if done == length:
            return
        view = memoryview(buffer)
        while done < length:
            done += os.pwrite(file.descriptor, view[done:], offset + done)
        if length >= WRITEBACK_BYTES:
            start_writeback(file.descriptor, offset, length)

    def _write_directly(self, descriptor: int, offset: int, buffer: Buffer) -> int:
        """Return how many bytes were written; the rest has to go through the page cache."""
        length, done = len(buffer), 0
        aligned = memoryview(buffer) if _is_aligned(buffer) else self._fill(buffer)
        try:
            while done < length:
                done += os.pwrite(descriptor, aligned[done:length], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # The file system wants another alignment, or took the flag and doesn't mean it.
            self._refused = True
        return done

    def _fill(self, buffer: Buffer) -> memoryview:
        aligned = self._memory.view(len(buffer))
        if isinstance(buffer, bytes):
            # Unlike an assignment to a slice, this lets other threads run meanwhile.
            ctypes.memmove(_address(aligned), buffer, len(buffer))
        else:
            aligned[:] = buffer
        return aligned


def _is_aligned(buffer: Buffer) -> bool:
    """Tell whether the kernel can take *buffer* from where it is; of ``bytes`` nobody tells where they are."""
    view = memoryview(buffer)
    return not view.readonly and _address(view) % _ALIGNMENT == 0


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
