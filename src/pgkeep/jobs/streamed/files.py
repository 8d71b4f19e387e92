"""
Files of a stream as plain files beneath a directory: dumps, or a part of a cluster.

Every file is written under a name that says that it is not finished. They all get their own names at the end, when the
records have come that say what each of them must be; one that is not as its record says does not get it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from pgkeep.datadir.beneath import Beneath, safe_parts
from pgkeep.datadir.durable import Barrier
from pgkeep.errors import BackupUnusable, FormatError, RestoreRefused
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.streamed.arrivals import Arrivals
from pgkeep.jobs.streamed.restore import ArrivingItem, ItemFailed, read_record, record_of
from pgkeep.streams.item import Buffer, ItemHeader, ItemKind
from pgkeep.streams.scripts import is_script

_SAID = 5


def restore_files(
    arriving: Iterable[ArrivingItem],
    directory: Path,
    *,
    root: str,
    replace: str,
    expected: int | None,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """
    Write *arriving* beneath *directory*, each file under its virtual path.

    Args:
        arriving: The stream.
        directory: Absolute; made when it is absent.
        root: Virtual path of the mode's directory.
        replace: What becomes of a file that is there: ``a`` it is replaced, ``n`` it is left, ``w`` it is replaced by a
            newer one, ``o`` by an older one.
        expected: How many files the daemon announced; None when it did not.
        say: Takes one line for the log.
        warn: Takes one warning.

    Raises:
        BackupUnusable: Some files did not come whole; the others are restored.
        RestoreRefused: *directory* cannot be written to.
        FormatError: A name or a link leads out of it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RestoreRefused(f"cannot make {directory}: {error.strerror}") from error
    files = _Files(directory, root, replace, warn)
    try:
        for item in arriving:
            files.take(item)
        files.finish(expected, say)
    finally:
        files.close()


class _Files:
    def __init__(self, directory: Path, root: str, replace: str, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._root = root
        self._replace = replace
        self._warn = warn
        self._arrivals = Arrivals()
        self._barrier = Barrier([directory])
        self._beneath = Beneath(directory)
        self._failed: list[str] = []
        self._seen = 0
        self._left = 0
        self._bytes = 0
        self._is_complete = False
        self._has_record = False

    def take(self, item: ArrivingItem) -> None:
        """Write one item."""
        try:
            self._take(item)
        except OSError as error:
            raise RestoreRefused(f"cannot write {self._directory / item.header.path}: {error.strerror}") from error

    def finish(self, expected: int | None, say: Callable[[str], None]) -> None:
        """Give the files their names, but for those that are not what their record says."""
        try:
            self._finish(expected, say)
        except OSError as error:
            raise RestoreRefused(f"cannot write beneath {self._directory}: {error.strerror}") from error

    def _take(self, item: ArrivingItem) -> None:
        header = item.header
        safe_parts(header.path)
        if header.path != self._root:
            # The directory of the mode itself is announced nowhere.
            self._seen += 1
        if header.kind is ItemKind.DIRECTORY:
            # One that is there may be somebody else's.
            if not os.path.lexists(self._directory / header.path):
                self._beneath.make_directory(header.path, file_mode=(header.file_mode & 0o777) | 0o700)
        elif not self._is_wanted(header):
            self._left += 1
            item.skip()
        elif header.kind is ItemKind.SYMLINK:
            _check_link(header)
            self._beneath.make_link(header.path, header.link)
            self._arrivals.note(header, 0, "")
        else:
            self._take_file(item)

    def _finish(self, expected: int | None, say: Callable[[str], None]) -> None:
        if expected is not None and self._seen < expected:
            self._failed.append(f"{expected - self._seen} of {expected} files did not arrive")
        wrong = dict(self._arrivals.different())
        self._barrier.sync()
        restored = 0
        for path in self._arrivals.files():
            temporary = _temporary(path)
            if path in wrong:
                self._beneath.remove_tree(temporary)
                self._failed.append(f"{path} did not arrive as it was backed up: it {wrong[path]}")
                continue
            self._beneath.rename(temporary, path.rpartition("/")[2])
            restored += 1
        self._barrier.sync()
        self._is_complete = True
        say(f"{restored} files, {size_text(self._bytes)}, are in {self._directory}")
        if self._left:
            say(f"{self._left} files were there already and were left as they are (Replace)")
        unnamed = self._arrivals.unnamed_files()
        if unnamed and restored:
            self._warn(f"{unnamed} files could not be checked: no record that names them was restored with them")
        if self._failed:
            more = f"; and {len(self._failed) - _SAID} more" if len(self._failed) > _SAID else ""
            raise BackupUnusable("; ".join(self._failed[:_SAID]) + more, hint="restore again, or use another backup")

    def close(self) -> None:
        """Remove what got no name."""
        if not self._is_complete:
            for path in self._arrivals.files():
                self._beneath.remove_tree(_temporary(path))
        self._beneath.close()
        self._barrier.close()
        self._arrivals.close()

    def _take_file(self, item: ArrivingItem) -> None:
        header = item.header
        temporary = _temporary(header.path)
        descriptor = self._beneath.create_file(temporary)
        digest, size = blake3(), 0

        def content() -> Iterator[Buffer]:
            nonlocal size
            for chunk in item.chunks():
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        backup_id = record_of(header.path, self._root)
        pieces = _Pieces(header, content())
        is_kept = False
        try:
            if backup_id:
                read_record(pieces, backup_id, self._arrivals)
            for _ in pieces.rest:
                pass
            _give_attributes(descriptor, item)
            is_kept = True
        except ItemFailed as failure:
            self._failed.append(failure.message)
        finally:
            os.close(descriptor)
            if not is_kept:
                self._beneath.remove_tree(temporary)
        if is_kept:
            self._bytes += size
            self._arrivals.note(header, size, digest.hexdigest())
            if backup_id or is_script(header.path, self._root):
                self._arrivals.name_itself(header.path, size, digest.hexdigest())

    def _is_wanted(self, header: ItemHeader) -> bool:
        try:
            there = os.lstat(self._directory / header.path)
        except OSError:
            return True
        if self._replace == "w":
            return header.mtime_ns > there.st_mtime_ns
        if self._replace == "o":
            return header.mtime_ns < there.st_mtime_ns
        return self._replace != "n"


class _Pieces:
    """A record that is read as it is written down."""

    def __init__(self, header: ItemHeader, content: Iterator[Buffer]) -> None:
        self.header = header
        self.rest = content

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content."""
        return self.rest


def _give_attributes(descriptor: int, item: ArrivingItem) -> None:
    os.fchmod(descriptor, item.header.file_mode & 0o777)
    if os.geteuid() == 0:
        os.fchown(descriptor, *item.owner)
    os.utime(descriptor, ns=(item.header.mtime_ns, item.header.mtime_ns))


def _temporary(path: str) -> str:
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}.{name}.pgkeep"


def _check_link(header: ItemHeader) -> None:
    above = safe_parts(header.path)[:-1]
    for part in header.link.split("/"):
        if header.link.startswith("/") or (part == ".." and not above):
            raise FormatError(f'link in the backup leads out of its place: "{header.path}" to "{header.link}"')
        if part == "..":
            above.pop()
        elif part not in ("", "."):
            above.append(part)
