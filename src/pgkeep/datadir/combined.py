"""
Laying down a chain of block-level backups by PostgreSQL's own program, for who prefers it to rolling forward in place.

The backups are laid down side by side in a *staging* directory beside the target, the program makes one directory of
them there, and that is laid down in the target, where it is held against the manifest that the program wrote. So there
is room needed for all of them, and twice for the cluster. The staging directory goes when the work ends, however it
ends; what a killed restore has left of it goes when the next one begins.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pgkeep.datadir.beneath import safe_parts
from pgkeep.datadir.lay_down import LaidDown, LayDown
from pgkeep.datadir.roll_forward import RollForward
from pgkeep.datadir.staging import STAGING_MARKER, remove_staging, staging_directory
from pgkeep.datadir.target import Target
from pgkeep.errors import BackupUnusable, FormatError, PgkeepError
from pgkeep.pg import data_directory as names
from pgkeep.streams.item import Buffer, DetachedItem, ItemHeader, ItemKind, StreamedItem, content_of

Combine = Callable[[Sequence[Path], Path], object]
"""Makes one directory of several, the Full first."""

_BESIDE = frozenset({names.BACKUP_LABEL, names.TABLESPACE_MAP, names.BACKUP_MANIFEST})


class CombinedLayDown:
    """
    One lay-down of a chain; used as ``LayDown`` is.

    Args:
        target: Where; it has the tablespaces of the newest backup.
        root: What stands before the backups' ids in virtual paths, ``@postgresql/pitr_block``.
        chain: Ids of the backups, the Full first, each built on the one before it.
        workers: As for ``LayDown``.
        expected_bytes: As for ``LayDown``.
        combine: Runs the program.
    """

    def __init__(
        self,
        target: Target,
        *,
        root: str,
        chain: Sequence[str],
        workers: int,
        expected_bytes: int,
        combine: Combine,
    ) -> None:
        self._root = root
        self._chain = chain
        self._workers = workers
        self._combine = combine
        self._next = 0
        self._member: _Member | None = None
        self._resources = ExitStack()
        self._staging = staging_directory(target.data_directory)
        remove_staging(target.data_directory)
        try:
            self._resources.callback(remove_staging, target.data_directory)
            self._staging.mkdir(mode=0o700)
            (self._staging / STAGING_MARKER).touch()
            final = RollForward(
                target,
                root=root,
                chain=chain[-1:],
                workers=workers,
                expected_bytes=expected_bytes,
            )
            self._final = self._resources.enter_context(final)
        except OSError as error:
            with suppress(PgkeepError):
                self._resources.close()
            raise PgkeepError(f"cannot make {error.filename or self._staging}: {error.strerror}") from error
        except BaseException:
            self._resources.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._member is not None:
            self._member.__exit__(kind, error, trace)
        self._resources.close()

    def accept(self, item: DetachedItem | StreamedItem) -> None:
        """
        Take over *item*: WAL, or something of the backup that is being laid down or of the next one.

        Raises:
            BackupUnusable: It is not of either.
            FormatError: As ``LayDown.accept``.
        """
        path = item.header.path
        if path.startswith(f"{self._root}/wal/"):
            self._final.accept(item)
            return
        backup_id, _, inside = path.removeprefix(f"{self._root}/").partition("/")
        if self._next == 0 or backup_id != self._chain[self._next - 1]:
            self._go_on_to(backup_id)
        if not inside:
            return
        if not inside.startswith(("pgdata/", "tblspc/")) and inside not in _BESIDE:
            # Configuration from outside the data directory, which the program knows nothing of.
            if backup_id == self._chain[-1]:
                self._final.accept(item)
            else:
                for _ in content_of(item):
                    pass
            return
        assert self._member is not None
        self._member.accept(item)

    def finish(self, settle: Callable[[], object] | None = None) -> LaidDown:
        """Combine what has come, lay it down in the target, and return when everything is on disk."""
        self._end_member()
        if self._next < len(self._chain):
            raise BackupUnusable(f"the files of backup {self._chain[self._next]} did not come", hint="restore again")
        combined = self._staging / "combined"
        members = [self._staging / one for one in self._chain]
        self._combine(members, combined)
        try:
            for member in members:
                shutil.rmtree(member)
        except OSError as error:
            raise PgkeepError(f"cannot remove {self._staging}: {error.strerror}") from error
        for item in self._items(combined):
            self._final.accept(item)
        return self._final.finish(settle)

    def _go_on_to(self, backup_id: str) -> None:
        self._end_member()
        if self._next == len(self._chain) or backup_id != self._chain[self._next]:
            raise BackupUnusable(
                f"files of backup {backup_id} came, expected those of {', '.join(self._chain[self._next :]) or 'none'}",
                hint="restore again",
            )
        self._next += 1
        directory = self._staging / backup_id
        try:
            directory.mkdir(mode=0o700)
        except OSError as error:
            raise PgkeepError(f"cannot make {directory}: {error.strerror}") from error
        self._member = _Member(
            Target(data_directory=directory, version_directory=""),
            root=f"{self._root}/{backup_id}",
            workers=self._workers,
        )

    def _end_member(self) -> None:
        if self._member is not None:
            self._member.drain()
            self._member.__exit__(None, None, None)
            self._member = None

    def _items(self, combined: Path) -> Iterator[DetachedItem]:
        """Yield what the program made as items of the newest backup."""
        for directory, directories, files in os.walk(combined):
            inside = os.path.relpath(directory, combined)
            for name in (*sorted(directories), *sorted(files)):
                path = _item_path(name if inside == "." else f"{inside}/{name}")
                if path:
                    yield _DiskItem.of(f"{self._root}/{self._chain[-1]}/{path}", f"{directory}/{name}")


class _Member(LayDown):
    """One backup of the chain, laid down as ``pg_combinebackup`` wants it: its tablespaces within."""

    def drain(self) -> None:
        """Wait for all writes; nothing of this must survive a crash."""
        self._pool.drain()

    def _place(self, header: ItemHeader) -> tuple[Path, str]:
        top, *rest = safe_parts(header.path.removeprefix(self._prefix))
        if top == "tblspc":
            return self._target.data_directory, "/".join([names.TABLESPACES, *rest])
        return self._target.data_directory, "/".join(rest) if top == "pgdata" else top


@dataclass(frozen=True, eq=False, slots=True)
class _DiskItem:
    """A file of the combined backup, as a detached item."""

    header: ItemHeader
    place: str

    @classmethod
    def of(cls, path: str, place: str) -> _DiskItem:
        """Return the item of what is at *place*; raise FormatError when the program made something odd."""
        status = os.lstat(place)
        if stat.S_ISLNK(status.st_mode):
            return cls(ItemHeader(path, kind=ItemKind.SYMLINK, link=os.readlink(place)), place)
        file_mode, mtime_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        if stat.S_ISDIR(status.st_mode):
            return cls(ItemHeader(path, kind=ItemKind.DIRECTORY, file_mode=file_mode, mtime_ns=mtime_ns), place)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{place} is no file, directory or link")
        return cls(ItemHeader(path, size=status.st_size, file_mode=file_mode, mtime_ns=mtime_ns), place)

    def read_extent(self, offset: int, length: int) -> Buffer:
        """Return what is there."""
        with open(self.place, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), length, offset)
        if len(content) != length:
            raise PgkeepError(f"cannot read {self.place}: {len(content)} of {length} bytes at {offset}")
        return content

    def close(self) -> None:
        """Nothing stays open."""


def _item_path(inside: str) -> str:
    """Return where what is at *inside* of a combined backup is among a backup's items; empty for what is none."""
    if inside in _BESIDE:
        return inside
    top, _, below = inside.partition("/")
    if top == names.TABLESPACES and below:
        # The place of a tablespace is made by who knows where it is.
        return f"tblspc/{below}" if "/" in below else ""
    return f"pgdata/{inside}"
