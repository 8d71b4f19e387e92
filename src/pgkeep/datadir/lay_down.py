"""
Laying down a backup: items become files beneath the target, durable before the next step begins.

Extents are written by a pool of threads as they arrive, and are on their way to the disk at once, so that the one
barrier at the end, before ``finish`` returns, finds little left to do. Nothing is a cluster until
``Target.complete`` says so.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from blake3 import blake3

from pgkeep.datadir.beneath import Beneath, safe_parts
from pgkeep.datadir.durable import Barrier
from pgkeep.datadir.extent_writer import ExtentWriter, WrittenFile
from pgkeep.datadir.target import Target
from pgkeep.errors import FormatError, PgkeepError
from pgkeep.pg import data_directory as names
from pgkeep.streams.extents import ExtentPool, HasHeader
from pgkeep.streams.item import Buffer, DetachedItem, ItemHeader, ItemKind, StreamedItem

THREADS_PER_WORKER = 2
"""A direct write returns when the disk has it: about half of the time of an extent, in which another one is read."""


@dataclass(frozen=True, slots=True)
class LaidDown:
    """What a lay-down wrote: number of files, and the sum of their sizes in bytes."""

    files: int
    bytes: int


Note = Callable[[ItemHeader, int, str], object]
"""Takes a header, the true size and the BLAKE3 of the content, empty for what is not a file; called in any thread."""


class OpenFile:
    """An item and the file that it becomes."""

    __slots__ = ("digest", "header", "place", "size", "written")

    def __init__(self, header: ItemHeader, place: str, written: WrittenFile) -> None:
        """Take charge of *written*, which is at *place*."""
        self.header = header
        self.place = place
        self.written = written
        self.size = 0
        self.digest = blake3()


class LayDown:
    """
    One lay-down; ``accept`` and ``finish`` belong to one thread.

    Use it as a context manager: leaving it without ``finish`` stops the work and leaves the target marked.

    Args:
        target: Where; ``begin`` has been called.
        root: What the virtual paths begin with, ``@postgresql/pitr``.
        workers: How many threads shall be busy; there are more, which wait for the disk.
        expected_bytes: Sum of the sizes to come, for the message when the disk is full; 0 when unknown.
        note: Takes note of everything that was laid down, for a supply whose content nobody has checked yet; None for
            one that checks itself.
    """

    file_class: type[OpenFile] = OpenFile
    """What is kept of a file that is being written."""

    def __init__(
        self, target: Target, *, root: str, workers: int, expected_bytes: int = 0, note: Note | None = None
    ) -> None:
        self.files = 0
        self.bytes = 0
        self._target = target
        self._prefix = f"{root}/"
        self._expected_bytes = expected_bytes
        self._note = note
        self._on_the_way: set[str] = set()
        self._lock = threading.Lock()
        self._open: set[OpenFile] = set()
        self._root_mode = 0o700
        self._places: dict[Path, Beneath] = {}
        self._writer = ExtentWriter()
        self._barrier = Barrier(target.directories)
        try:
            for directory in target.directories:
                self._places[directory] = Beneath(directory, owner=target.owner)
        except BaseException:
            self._close_places()
            raise
        self._pool: ExtentPool[OpenFile, Buffer] = ExtentPool(THREADS_PER_WORKER * workers, self, name="lay-down")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
        for file in self._open:
            file.written.close()
        self._open.clear()
        self._close_places()

    def accept(self, item: DetachedItem | StreamedItem) -> None:
        """
        Take over *item*; see ``streams/item.py`` for the contract.

        Raises:
            FormatError: Its path has no place in a data directory, or a link leads out of it.
            RestoreRefused: Its tablespace has no directory, or something is in its way.
            PgkeepError: It, or one accepted before it, cannot be written; the disk is full.
        """
        header = item.header
        if header.barrier or self._is_on_the_way(header):
            self._pool.drain()
        if header.kind is ItemKind.DIRECTORY:
            self._make_directory(header)
        elif header.kind is ItemKind.SYMLINK:
            self._make_link(header)
        elif hasattr(item, "read_extent"):
            self._pool.submit_detached(cast("DetachedItem", item))
        else:
            self._pool.submit_streamed(item)
        if header.barrier:
            self._pool.drain()

    def finish(self, settle: Callable[[], object] | None = None) -> LaidDown:
        """
        Wait for all writes, make what a server needs beside the files, and return when everything is on disk.

        *settle* is called when all is written and nothing is certain to be on disk yet: it may remove files.
        """
        self._pool.drain()
        if settle is not None:
            settle()
        try:
            data_directory = self._places[self._target.data_directory]
            for path in names.REQUIRED_DIRECTORIES:
                if not (self._target.data_directory / path).is_dir():
                    data_directory.make_directory(path)
            for oid, directory in self._target.outside.items():
                data_directory.make_link(f"{names.TABLESPACES}/{oid}", str(directory))
            # A server takes the bits for all new files from its data directory (SetDataDirectoryCreatePerm).
            self._target.data_directory.chmod(self._root_mode)
            self._barrier.sync()
        except OSError as error:
            raise self._write_error(str(self._target.data_directory), error) from error
        return LaidDown(self.files, self.bytes)

    # What the pool calls, in its threads.

    def begin(self, item: HasHeader) -> OpenFile:
        """Make the file."""
        directory, inside = self._place(item.header)
        # Not a Path: joining one costs as much as half of the system calls of a small file.
        place = f"{directory}/{inside}"
        try:
            written = self._open_file(item.header, self._places[directory], inside)
        except OSError as error:
            raise self._write_error(place, error) from error
        file = self.file_class(item.header, place, written)
        with self._lock:
            self._open.add(file)
        return file

    def extent(self, file: OpenFile, offset: int, buffer: Buffer) -> Buffer:
        """Write one extent."""
        try:
            self._writer.write(file.written, offset, buffer)
        except OSError as error:
            raise self._write_error(file.place, error) from error
        with self._lock:
            self.bytes += len(buffer)
        return buffer

    def ordered(self, file: OpenFile, result: Buffer) -> None:
        """Digest the content where somebody wants to know: nothing else of a file needs an order."""
        if self._note is not None:
            file.size += len(result)
            file.digest.update(result)

    def end(self, file: OpenFile) -> None:
        """Give the file its times and bits, and close it."""
        header, descriptor = file.header, file.written.descriptor
        try:
            file_mode = (header.file_mode & 0o777) | 0o600
            if file_mode != 0o600:
                os.fchmod(descriptor, file_mode)
            os.utime(descriptor, ns=(header.mtime_ns, header.mtime_ns))
            if self._barrier.per_file:
                os.fsync(descriptor)
        except OSError as error:
            raise self._write_error(file.place, error) from error
        if self._note is not None:
            self._note(header, file.size, file.digest.hexdigest())
        with self._lock:
            self._open.discard(file)
            self._on_the_way.discard(header.path)
            self.files += 1
        file.written.close()

    def _open_file(self, header: ItemHeader, beneath: Beneath, inside: str) -> WrittenFile:
        """Make the file at *inside*, in place of one that is there."""
        return self._writer.begin(beneath.create_file(inside), header.size)

    def _is_on_the_way(self, header: ItemHeader) -> bool:
        """Tell whether a file of the same path is still being written: the later one must win, not the slower one."""
        if self._note is None or header.kind is not ItemKind.FILE:
            return False
        with self._lock:
            is_there = header.path in self._on_the_way
            self._on_the_way.add(header.path)
        return is_there

    def _place(self, header: ItemHeader) -> tuple[Path, str]:
        if not header.path.startswith(self._prefix):
            raise FormatError(f'item has no place in a data directory: "{header.path}"')
        return self._target.place(header.path.removeprefix(self._prefix))

    def _make_directory(self, header: ItemHeader) -> None:
        directory, inside = self._place(header)
        file_mode = (header.file_mode & 0o777) | 0o700
        if inside == "global" and directory == self._target.data_directory:
            self._root_mode = file_mode
        try:
            self._places[directory].make_directory(inside, file_mode=file_mode)
        except OSError as error:
            raise self._write_error(str(directory / inside), error) from error
        if self._note is not None:
            self._note(header, 0, "")

    def _make_link(self, header: ItemHeader) -> None:
        directory, inside = self._place(header)
        above = safe_parts(inside)[:-1]
        # Component by component: base/../../etc is lexically deep enough at its end but not on its way.
        for part in header.link.split("/"):
            if header.link.startswith("/") or (part == ".." and not above):
                raise FormatError(f'link in the backup leads out of its place: "{header.path}" to "{header.link}"')
            if part == "..":
                above.pop()
            elif part not in ("", "."):
                above.append(part)
        try:
            self._places[directory].make_link(inside, header.link)
        except OSError as error:
            raise self._write_error(str(directory / inside), error) from error
        if self._note is not None:
            self._note(header, 0, "")

    def _write_error(self, place: str, error: OSError) -> PgkeepError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return PgkeepError(f"cannot write {place}: {error.strerror}")
        needed = max(0, self._expected_bytes - self.bytes)
        needs = f"; {needed} bytes are still to be written" if needed else ""
        return PgkeepError(f"cannot write {place}: {error.strerror}{needs}", hint="make room and run the restore again")

    def _close_places(self) -> None:
        self._barrier.close()
        for beneath in self._places.values():
            beneath.close()
