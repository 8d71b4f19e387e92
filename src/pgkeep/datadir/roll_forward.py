"""
Laying down a chain of block-level backups in place: the files of a Full, then what each later backup changes in them.

There is never a second copy of a file: the blocks of an increment are written into the file that is there, while they
arrive. For each backup of the chain, oldest first:

1. Files that come whole take the place of what is there; increments are applied to it.
2. When all of it has come, sizes and checksums are held against the backup's own manifest, which names every file.
3. What it does not name is removed.

All that is made durable at the end, and on the way at most every ``SYNC_SECONDS``: the work waits for the disk then.
Whatever ends it in the middle, it goes on behind the last backup that is known to be durable. To do the later ones
again from their first files gives the same result, whatever was written of them before: a block that none of them
brings is one that none of them has touched, and a file that one of them has removed is brought whole by a later one or
by none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, cast

from blake3 import blake3

from pgkeep.datadir.beneath import Beneath
from pgkeep.datadir.extent_writer import WrittenFile
from pgkeep.datadir.lay_down import LaidDown, LayDown, Note, OpenFile
from pgkeep.datadir.manifest_check import ManifestCheck
from pgkeep.datadir.target import Target
from pgkeep.datadir.unlisted import remove_unlisted
from pgkeep.errors import BackupUnusable, FormatError
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.data_directory import BACKUP_MANIFEST
from pgkeep.pg.incremental_file import IncrementalHeader, is_increment, parse_header, relation_path
from pgkeep.streams.item import Buffer, DetachedItem, ItemHeader, ItemKind, StreamedItem, content_of

SYNC_SECONDS = 30.0
"""A kill costs about so much work, and a chain of quick increments waits for the disk once."""

Applied = Callable[[str], object]
"""Takes the id of a backup that is applied and checked."""

Lasting = Callable[[int], object]
"""Takes how many backups of the chain are durable."""


class _Skippable(Protocol):
    def skip(self) -> None: ...


class _ChangedFile(WrittenFile):
    """A file that was there, which an increment changes."""

    __slots__ = ()


class _RolledFile(OpenFile):
    """A file that is written or rolled forward, and the checksum of what came for it."""

    __slots__ = ("crc", "increment", "is_increment", "position")

    def __init__(self, header: ItemHeader, place: str, written: WrittenFile) -> None:
        super().__init__(header, place, written)
        self.crc = 0
        self.position = 0
        self.increment: IncrementalHeader | None = None
        self.is_increment = isinstance(written, _ChangedFile)

    def apply(self, piece: Buffer) -> None:
        """Write the next *piece* of an increment to where it belongs; raise FormatError when it is none."""
        descriptor, view, start = self.written.descriptor, memoryview(piece).cast("B"), self.position
        if self.increment is None:
            self.increment = parse_header(view, size=self.header.size)
            os.ftruncate(descriptor, self.increment.kept_bytes)
        for run in self.increment.runs(max(start, self.increment.header_bytes), start + len(view)):
            rest, offset = view[run.source_offset - start :][: run.length], run.target_offset
            while rest:
                done = os.pwrite(descriptor, rest, offset)
                rest, offset = rest[done:], offset + done

    def check_length(self) -> None:
        """Raise FormatError unless the file is as long as the increment says."""
        if self.increment is None:
            raise FormatError("incremental file has 0 bytes, expected at least 12")
        size = os.fstat(self.written.descriptor).st_size
        if size != self.increment.result_bytes:
            raise FormatError(f"rolled forward, the file has {size} bytes, expected {self.increment.result_bytes}")


class RollForward(LayDown):
    """
    One lay-down of a chain; used as ``LayDown`` is.

    Args:
        target: Where; it has the tablespaces of the newest backup.
        root: What stands before the backups' ids in virtual paths, ``@postgresql/pitr_block``.
        chain: Ids of the backups, the Full first, each built on the one before it.
        workers: As for ``LayDown``.
        expected_bytes: As for ``LayDown``.
        note: As for ``LayDown``.
        done: How many of the chain an earlier run has made durable; items of those don't come.
        applied: Is told of each backup that is applied.
        lasting: Is told of each time that all that is applied became durable.
    """

    file_class = _RolledFile

    def __init__(
        self,
        target: Target,
        *,
        root: str,
        chain: Sequence[str],
        workers: int,
        expected_bytes: int = 0,
        note: Note | None = None,
        done: int = 0,
        applied: Applied = lambda _: None,
        lasting: Lasting = lambda _: None,
    ) -> None:
        super().__init__(target, root=root, workers=workers, expected_bytes=expected_bytes, note=note)
        self._root = root
        self._wal_prefix = f"{root}/wal/"
        self._chain = chain
        self._next = done
        self._backup_id = ""
        self._applied = applied
        self._lasting = lasting
        self._synced_at = time.monotonic()
        self._is_again = done > 0
        # Of files that an earlier run may have removed: an increment's path, by that of its file.
        self._lacking: dict[str, str] = {}
        self._check = ManifestCheck(self._is_dropped)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._check.close()

    def accept(self, item: DetachedItem | StreamedItem) -> None:
        """
        Take over *item*: WAL, or something of the backup that is being applied or of the next one.

        Raises:
            BackupUnusable: It is not of either, or the backup before it is not what its manifest says.
            FormatError: As ``LayDown.accept``; or it is no increment although its name says so.
        """
        if item.header.path.startswith(self._wal_prefix):
            super().accept(item)
            return
        backup_id, _, inside = item.header.path.removeprefix(f"{self._root}/").partition("/")
        if backup_id != self._backup_id:
            self._go_on_to(backup_id)
        if not inside or self._is_dropped(inside):
            _skip(item)
        elif inside == BACKUP_MANIFEST:
            self._take_manifest(item)
        else:
            super().accept(item)
            if item.header.kind is not ItemKind.FILE:
                self._check.note(inside, 0, None)

    def finish(self, settle: Callable[[], object] | None = None) -> LaidDown:
        """Do as ``LayDown.finish`` does, when the last backup of the chain is what its manifest says."""
        self._pool.drain()
        if self._next < len(self._chain):
            raise self._not_come(self._chain[self._next])
        self._end_backup()
        if self._lacking:
            raise _lacks(next(iter(self._lacking.values())))
        laid = super().finish(settle)
        self._lasting(self._next)
        return laid

    # What the pool calls, in its threads.

    def ordered(self, file: OpenFile, result: Buffer) -> None:
        """Compute the checksum, and apply what is an increment."""
        super().ordered(file, result)
        rolled = cast("_RolledFile", file)
        rolled.crc = crc32c(result, rolled.crc)
        if rolled.is_increment:
            try:
                rolled.apply(result)
            except FormatError as error:
                raise _wrong(file.header, error) from error
            except OSError as error:
                raise self._write_error(file.place, error) from error
        rolled.position += len(result)

    def extent(self, file: OpenFile, offset: int, buffer: Buffer) -> Buffer:
        """Write one extent of a file that came whole; where an increment's blocks belong its beginning says."""
        if not cast("_RolledFile", file).is_increment:
            return super().extent(file, offset, buffer)
        with self._lock:
            self.bytes += len(buffer)
        return buffer

    def end(self, file: OpenFile) -> None:
        """Complete the file, and take note of what came for it."""
        rolled = cast("_RolledFile", file)
        if rolled.is_increment:
            try:
                rolled.check_length()
            except FormatError as error:
                raise _wrong(file.header, error) from error
        super().end(file)
        if file.header.path.startswith(self._prefix):
            self._check.note(file.header.path.removeprefix(self._prefix), rolled.position, rolled.crc)

    def _open_file(self, header: ItemHeader, beneath: Beneath, inside: str) -> WrittenFile:
        path = header.path.removeprefix(self._prefix)
        if not self._is_increment(header.path):
            if self._lacking:
                with self._lock:
                    self._lacking.pop(path, None)
            return super()._open_file(header, beneath, inside)
        place = relation_path(inside)
        try:
            return _ChangedFile(beneath.open_file(place), -1)
        except FileNotFoundError as error:
            if not self._is_again:
                raise _lacks(header.path) from error
        with self._lock:
            self._lacking[relation_path(path)] = header.path
        return _ChangedFile(beneath.create_file(place), -1)

    def _place(self, header: ItemHeader) -> tuple[Path, str]:
        if header.path.startswith(self._wal_prefix):
            return self._target.place(header.path.removeprefix(f"{self._root}/"))
        return super()._place(header)

    def _is_increment(self, path: str) -> bool:
        # In a Full the name means nothing: anybody may call a file so.
        return self._backup_id != self._chain[0] and is_increment(path.removeprefix(self._prefix))

    def _is_dropped(self, inside: str) -> bool:
        """Tell whether *inside* is in a tablespace that the newest backup does not have any more."""
        top, _, rest = inside.partition("/")
        oid = rest.partition("/")[0]
        return top == "tblspc" and oid.isascii() and oid.isdigit() and int(oid) not in self._target.tablespaces

    def _go_on_to(self, backup_id: str) -> None:
        self._pool.drain()
        if backup_id not in self._chain:
            raise FormatError(f"item is of none of the backups {', '.join(self._chain)}: found {backup_id}")
        index = self._chain.index(backup_id)
        if index < self._next:
            raise BackupUnusable(
                f"files of backup {backup_id} came after those of {self._backup_id or self._chain[self._next - 1]}, "
                "expected the files of older backups first",
                hint="restore again, with the volumes in the order in which they were written",
            )
        if index > self._next:
            raise self._not_come(self._chain[self._next])
        self._end_backup()
        self._check.begin()
        self._next = index + 1
        self._backup_id = backup_id
        self._prefix = f"{self._root}/{backup_id}/"

    def _end_backup(self) -> None:
        if not self._backup_id:
            return
        self._check.compare(self._backup_id)
        remove_unlisted(self._target, self._listed(), root=self._root)
        for beneath in self._places.values():
            beneath.forget()
        self._lacking = {path: increment for path, increment in self._lacking.items() if self._is_there(path)}
        self._applied(self._backup_id)
        is_last = self._next == len(self._chain)
        if is_last or self._lacking or time.monotonic() < self._synced_at + SYNC_SECONDS:
            return
        try:
            self._barrier.sync()
        except OSError as error:
            raise self._write_error(str(self._target.data_directory), error) from error
        self._lasting(self._next)
        self._synced_at = time.monotonic()

    def _is_there(self, path: str) -> bool:
        directory, inside = self._target.place(path)
        return (directory / inside).exists()

    def _listed(self) -> Iterator[str]:
        """Yield the paths of what stays."""
        for path in self._check.paths():
            yield relation_path(path) if self._is_increment(f"{self._prefix}{path}") else path

    def _not_come(self, backup_id: str) -> BackupUnusable:
        return BackupUnusable(
            f"the files of backup {backup_id} did not come", hint="restore again with every job of the chain selected"
        )

    def _take_manifest(self, item: DetachedItem | StreamedItem) -> None:
        digest, size = blake3(), 0
        for piece in content_of(item):
            self._check.feed(piece)
            digest.update(piece)
            size += len(piece)
        if self._note is not None:
            self._note(item.header, size, digest.hexdigest())


def _skip(item: DetachedItem | StreamedItem) -> None:
    if hasattr(item, "read_extent"):
        cast("DetachedItem", item).close()
    elif hasattr(item, "skip"):
        cast("_Skippable", item).skip()


def _lacks(increment: str) -> BackupUnusable:
    return BackupUnusable(
        f"{increment} changes a file that none of the backups before it holds",
        hint="use another backup; a full one needs no other",
    )


def _wrong(header: ItemHeader, error: FormatError) -> FormatError:
    return FormatError(f"{header.path}: {error.message}")
