"""
Earlier backups as the Director knows them.

What a backup builds on is the job that the Director names, never just the newest on disk: that one may have failed
after the backend did its part, or have been deleted from the catalog.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from collections.abc import Callable, Iterator

from pgkeep.bacula.kept_manifest import read_manifest
from pgkeep.bacula.state import ClusterState, JobRecord
from pgkeep.errors import FormatError
from pgkeep.modes.contract import Say
from pgkeep.pg.data_directory import BACKUP_MANIFEST
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.settings.parameter import PHYSICAL_MODES
from pgkeep.streams.item import Buffer
from pgkeep.streams.record import FileEntry, Level, RecordHead, RecordTail, new_backup_id
from pgkeep.vault.file_index import FileIndex

CatalogHolds = Callable[[FileEntry], bool]
"""Tells whether the Director's catalog holds the file of an entry, with the size and time that the entry has."""


_TIME_OF_JOB = re.compile(r"\.\d{4}-\d\d-\d\d_\d\d\.\d\d\.\d\d_\d+$")
"""What the Director puts behind a job's name to make it unique."""


class JobBase:
    """The record of an earlier job, to build on."""

    def __init__(self, record: JobRecord, *, holds: CatalogHolds | None) -> None:
        self.record = record
        self.head: RecordHead = record.head
        self._holds = holds
        self._index: FileIndex | None = None

    def file(self, path: str) -> FileEntry | None:
        """Return what the record says of *path*, if the catalog agrees where it can be asked."""
        entry = self.entry(path)
        if entry is None or (self._holds is not None and not self._holds(entry)):
            return None
        return entry

    def entry(self, path: str) -> FileEntry | None:
        """Return what the record says of *path*."""
        if self._index is None:
            self._index = self.record.file_index()
        return self._index.get(path)

    def manifest(self) -> Iterator[Buffer]:
        """Yield the ``backup_manifest`` that PostgreSQL made with it; raise BackupUnusable when it is not kept."""
        record = self.record
        path = f"/{self.head.details.get('root', '')}/{self.head.backup_id}/{BACKUP_MANIFEST}"
        yield from read_manifest(record.path.parent, record.job, path=path)

    def close(self) -> None:
        """Drop the index."""
        if self._index is not None:
            self._index.close()
            self._index = None


class JobHistory:
    """
    The records of earlier jobs; see ``History`` in ``modes/contract.py``.

    Args:
        state: Where they are.
        job: Unique name of the job that is being made.
        previous: Unique name of the job that the Director says to build on; empty for a Full, or when it did not say.
        holds: Asks the catalog; None when it cannot be asked.
        continues: Whether the backup is the next link of the chain that *previous* ends, an Incremental: what was made
            beside that job does not count.
        warn: Takes what the user should know.
        reserves: Whether ids are for a backup, which no other job may take, and not for an estimate.
    """

    def __init__(
        self,
        state: ClusterState,
        *,
        job: str,
        previous: str,
        continues: bool,
        holds: CatalogHolds | None,
        warn: Say,
        reserves: bool = True,
    ) -> None:
        self._job = job
        self._name = _name_of(job)
        self._continues = continues
        self._reserves = reserves
        self._state = state
        self._previous = previous
        self._holds = holds
        self._warn = warn
        self._bases: dict[str, JobBase] = {}

    def close(self) -> None:
        """Drop the indexes."""
        for base in self._bases.values():
            base.close()
        self._bases.clear()

    def new_backup_id(self, begin: dt.datetime, level: Level) -> str:
        """Return the id of a backup that begins at *begin*: it sorts after every id that is remembered."""
        backup_id = new_backup_id(begin, level, newest=self._state.newest_id())
        while self._reserves and not self._state.reserve_id(backup_id):
            backup_id = new_backup_id(begin, level, newest=backup_id)
        return backup_id

    def newest(self, *, mode: str, levels: frozenset[Level], with_files: bool = False) -> JobBase | None:
        """Return the backup to build on: the named job's, or with *with_files* the one whose files stand with it."""
        record = self._state.record(self._previous) if self._previous else None
        if record is None:
            return None
        if with_files and not record.head.has_files:
            record = next((one for one in self._state.records() if one.head.backup_id == record.head.files_from), None)
        if record is None or record.head.mode != mode or record.head.level not in levels:
            return None
        return self._base(record, with_files=with_files)

    def below(self, head: RecordHead) -> Iterator[tuple[RecordHead, RecordTail]]:
        """Yield head and tail of each backup with files that the one of *head* builds on, the newest first."""
        records = {one.head.backup_id: one for one in self._state.records()} if head.base else {}
        backup_id = head.base
        while (one := records.pop(backup_id, None)) is not None:
            if one.head.has_files:
                try:
                    yield one.head, one.tail()
                except (FormatError, OSError):
                    # The restore object can do without; a job that builds on the record says what is wrong with it.
                    return
            backup_id = one.head.base

    def has(self, backup_id: str) -> bool:
        """Tell whether the record of the backup *backup_id* is still remembered."""
        return any(one.head.backup_id == backup_id for one in self._state.records())

    def named_before(self) -> JobRecord | None:
        """Return the record of the last job of the same name that its Director began before this one."""
        # One that goes on keeps its name, so the order is that of unique names, which hold the time.
        found = [one for one in self._state.records() if _name_of(one.job) == self._name and one.job < self._job]
        return max(found, key=lambda one: one.job, default=None)

    def wal_held(self) -> WalPosition | None:
        """
        Return up to where WAL is held: by the job that the Director named, or by a newer one that surely succeeded.

        An Incremental continues the job that was named and no other. A Full has none named, and a Differential only the
        Full, though Incrementals after that hold more. Jobs of another name are other chains.
        """
        record = self._state.record(self._previous) if self._previous else None
        if not self._continues:
            for one in self._state.records():
                is_newer = record is None or one.head.backup_id > record.head.backup_id
                if one.is_confirmed and is_newer and _name_of(one.job) == self._name:
                    record = one
        if record is None or record.head.wal is None:
            return None
        return WalPosition(Timeline(record.head.wal.timeline), Lsn.parse(record.head.wal.stop))

    def last_record(self, held: WalPosition) -> Lsn | None:
        """Return where the last record of the WAL *held* up to a segment's end begins; None when nobody knows."""
        for one in self._state.records():
            wal = one.head.wal
            if wal is not None and wal.last_record and (wal.timeline, wal.stop) == (int(held.timeline), str(held.lsn)):
                return Lsn.parse(wal.last_record)
        return None

    def confirmed(self) -> list[RecordHead]:
        """Return the heads of the backups of this mode that are known to have succeeded."""
        return [one.head for one in self._state.records() if one.is_confirmed]

    def recovery_base(self) -> RecordHead | None:
        """
        Return the head of the newest base backup of the cluster that is known to have succeeded.

        Where none is known to, it is the oldest of all: what came after it is needed, whichever of them did.
        """
        found = [
            one
            for mode in PHYSICAL_MODES
            for one in self._state.beside(mode).records()
            if one.head.has_files and one.head.wal is not None
        ]
        found.sort(key=lambda one: one.head.backup_id)
        confirmed = [one for one in found if one.is_confirmed]
        return confirmed[-1].head if confirmed else found[0].head if found else None

    def base_of(self, backup_id: str) -> JobBase | None:
        """Return the base with that id, if it was given out."""
        return self._bases.get(backup_id)

    def _base(self, record: JobRecord, *, with_files: bool) -> JobBase | None:
        backup_id = record.head.backup_id
        if backup_id not in self._bases:
            base = JobBase(record, holds=self._holds)
            if with_files:
                # The whole record is checked before it is built on: a damaged one is none.
                try:
                    base.entry("")
                except (FormatError, OSError) as error:
                    with contextlib.suppress(OSError):
                        base.close()
                    self._warn(f"the record of job {record.job} cannot be used: {error}")
                    return None
            self._bases[backup_id] = base
        return self._bases[backup_id]


def _name_of(job: str) -> str:
    """Return the name that the job has in the Director's configuration."""
    return _TIME_OF_JOB.sub("", job)
