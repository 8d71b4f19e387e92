"""Mode pitr, local transport: the files of a data directory on this host, read by several workers at once."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pgkeep.datadir.read import PageCheck, PageReport, ReadReport, open_file
from pgkeep.datadir.scan import Scan, ScannedFile
from pgkeep.errors import FormatError, ServerError
from pgkeep.modes.contract import Base
from pgkeep.pg.control_file import ControlFile, parse_control_file
from pgkeep.streams.item import Buffer, BytesItem, Item, ItemHeader, UnchangedItem
from pgkeep.streams.record import RecordHead

CLOCK_MARGIN_NS = 2_000_000_000
"""
By how much a file must be older than the base's checkpoint to count as unchanged, in nanoseconds.

The checkpoint's time has whole seconds, and a file system may keep times in steps of up to two (FAT; ext4 and XFS keep
a clock tick). A file that is written twice within one step keeps its time.
"""

_CONTROL_FILE_ATTEMPTS = 20
_CONTROL_FILE_PAUSE_SECONDS = 0.05


class UnchangedRule:
    """
    Tells which files a base already holds.

    A file is unchanged only if size and modification time are those in the base's record and the modification time is
    older than the base's checkpoint by more than the clock's step. Whatever is written after that checkpoint has a
    later time, whatever the base copied earlier is older, so a file cannot have changed behind an equal time.
    """

    def __init__(self, base: Base) -> None:
        checkpoint = dt.datetime.fromisoformat(base.head.checkpoint_time)
        self._base = base
        self._horizon_ns = int(checkpoint.timestamp()) * 1_000_000_000 - CLOCK_MARGIN_NS
        # A page that was bad then may be good now, and must be looked at again in either case.
        self._damaged = frozenset(damaged.path for damaged in base.head.damaged)

    def is_unchanged(self, found: ScannedFile) -> bool:
        """Tell whether the base's content of *found* still stands."""
        status = found.status
        if status.st_mtime_ns >= self._horizon_ns or found.path in self._damaged:
            return False
        entry = self._base.file(found.path)
        return (
            entry is not None
            and entry.kind == "file"
            and entry.size == status.st_size
            and entry.mtime_ns == status.st_mtime_ns
        )

    @property
    def backup_id(self) -> str:
        """The base's id."""
        return self._base.head.backup_id


def is_same_place(base: RecordHead, *, host: str, data_directory: str) -> bool:
    """Tell whether modification times in *base* mean anything: it was read on this host, from this directory."""
    return base.transport == "local" and base.host == host and base.data_directory == data_directory


class LocalFiles:
    """
    The files of one base backup, as items.

    Attributes:
        pages: What the page checks found.
        reads: Files that vanished or shrank under the reader.
        sent_files: Files whose content passes.
        sent_bytes: Their bytes.
        unchanged_files: Files that the base already holds.
        control: The control file, once it was read.
    """

    def __init__(self, scan: Scan, *, check: PageCheck | None, rule: UnchangedRule | None) -> None:
        self.pages = check.report if check is not None else PageReport()
        self.reads = ReadReport()
        self.sent_files = 0
        self.sent_bytes = 0
        self.unchanged_files = 0
        self.control: ControlFile | None = None
        self._scan = scan
        self._check = check
        self._rule = rule

    def items(self) -> Iterator[Item]:
        """Yield everything, ``global/pg_control`` last: once it is accepted, all files have been read."""
        for found in self._scan.files():
            if found.is_directory:
                yield BytesItem(found.header(), b"")
            elif self._rule is not None and self._rule.is_unchanged(found):
                self.unchanged_files += 1
                yield UnchangedItem(found.header(), held_by=self._rule.backup_id)
            else:
                file = open_file(found, report=self.reads, pages=self._check)
                if file is not None:
                    self.sent_files += 1
                    self.sent_bytes += file.header.size
                    yield file
        yield self._control_item()

    def _control_item(self) -> Item:
        found = self._scan.control_file()
        self.sent_files += 1
        self.sent_bytes += found.status.st_size
        return _ControlItem(replace(found.header(), barrier=True), self._control_content)

    def _control_content(self) -> Iterator[Buffer]:
        """Yield pg_control as it is when the sink asks: by the barrier's contract, when all other files were read."""
        # The server writes it in place, one disk sector, while others read: a torn copy fails its CRC.
        for _ in range(_CONTROL_FILE_ATTEMPTS):
            found = self._scan.control_file()
            content = Path(found.real_path).read_bytes()
            try:
                self.control = parse_control_file(content)
            except FormatError as error:
                problem = error
                threading.Event().wait(_CONTROL_FILE_PAUSE_SECONDS)
                continue
            yield content
            return
        raise ServerError(f"cannot read {found.real_path}: {problem}")


@dataclass(frozen=True, slots=True)
class _ControlItem:
    """``global/pg_control``, read when its content is asked for."""

    header: ItemHeader
    chunks: Callable[[], Iterator[Buffer]]
