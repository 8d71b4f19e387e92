"""
What a mode is: how one kind of backup is planned, read and recorded.

The order of calls, held by the backup job for every mode and both doors::

    plan   = mode.plan(request, server=server, history=history)   # refuses here, before the first byte
    source = mode.open(plan, server=server)                       # a context manager; leaving it ends what it began
    for item in source.items(): sink.accept(item)                 # the contract of streams/item.py
    head   = source.finish()                                      # everything that the head names has been accepted
    (the sink records the backup: only now is there one)
    source.confirm()                                              # what was held on the server for it may go

An error anywhere leaves no backup, and nothing running on the server: a session in backup mode ends with its
connection, a temporary slot with its session.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.streams.item import Buffer, Item, ItemHeader
from pgkeep.streams.record import FileEntry, Level, RecordHead

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """
    What a door asks for.

    Attributes:
        cluster: Name of the cluster in the vault, or ``cluster_id``.
        prefix: Virtual path above the mode's directory: ``@postgresql`` or ``@postgresql/cluster_<id>``.
        mode: Name of the mode.
        level: The level asked for; a plan may choose a Full instead and then says why.
        begin: When the job began; aware.
        options: The mode's own options, a frozen dataclass of the mode's module.
        say: Takes one line for the job log.
        warn: Takes one warning; it also goes into the record.
        track_replication_state: Record slots, subscriptions and standby settings with the backup.
        standby_hosts: Further servers of the cluster to ask for that.
    """

    cluster: str
    prefix: str
    mode: str
    level: Level
    begin: dt.datetime
    options: Any
    say: Say
    warn: Say
    track_replication_state: bool = False
    standby_hosts: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """Virtual path of the mode's directory: ``@postgresql/pitr``."""
        return f"{self.prefix}/{self.mode}"


class Base(Protocol):
    """An earlier backup that a new one may build on."""

    @property
    def head(self) -> RecordHead:
        """Its record's head."""
        ...

    def file(self, path: str) -> FileEntry | None:
        """Return what its record says of the file at virtual *path*; None when it names no such file."""
        ...

    def manifest(self) -> Iterator[Buffer]:
        """
        Yield the ``backup_manifest`` that PostgreSQL made with it; may be called again.

        Raises:
            BackupUnusable: It is not kept, or cannot be read.
        """
        ...


class History(Protocol):
    """What a sink knows of the cluster's earlier, successful backups."""

    def new_backup_id(self, begin: dt.datetime, level: Level) -> str:
        """Return the id of a backup that begins at *begin* (aware): one that sorts after those of all earlier ones."""
        ...

    def newest(self, *, mode: str, levels: frozenset[Level], with_files: bool = False) -> Base | None:
        """Return the newest backup of *mode* and one of *levels*; *with_files*: one with a file list of its own."""
        ...

    def has(self, backup_id: str) -> bool:
        """Tell whether the backup *backup_id* is still known."""
        ...

    def wal_held(self) -> WalPosition | None:
        """Return up to where WAL is held from the newest physical backup on; None when there is none."""
        ...

    def last_record(self, held: WalPosition) -> Lsn | None:
        """Return where the last record of the WAL *held* up to a segment's end begins; None when nobody knows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What a job is about to do; a mode adds its own in a subclass.

    Attributes:
        request: What was asked for.
        level: The level that will be made; differs from the request's when a Full is due.
        backup_id: The id of the backup to be.
        base: What it builds on; None for a Full.
        reason: Why the level differs from the one asked for; empty when it doesn't.
    """

    request: BackupRequest
    level: Level
    backup_id: str
    base: Base | None = None
    reason: str = ""

    @property
    def compares_files(self) -> bool:
        """Whether files of the base that have not changed are not sent again."""
        return False

    def lines(self) -> Iterator[str]:
        """Yield the plan for people."""
        base = f" upon {self.base.head.backup_id}" if self.base is not None else ""
        yield f"{self.level.word} {self.backup_id} in mode {self.request.mode}{base}"


class Source(Protocol):
    """One backup being read."""

    def items(self) -> Iterator[Item]:
        """Yield every item but the record; called once."""
        ...

    def finish(self) -> RecordHead:
        """Return the record's head, complete; called once, after the last item was accepted."""
        ...

    def confirm(self) -> None:
        """Take note that the backup is recorded, and release what was held on the server for it."""
        ...


class Mode(Protocol):
    """One of the ways to back up."""

    name: str
    levels: frozenset[Level]
    """Levels that it makes; another one is made as a Full, which the log says."""
    needs_server: bool
    """Whether nothing is possible when the server does not answer; otherwise *server*, a Server, may be None then."""

    def options(self, value_of: Callable[[str], Any]) -> Any:
        """Return the mode's options; *value_of* gives the value of a parameter by its canonical name."""
        ...

    def plan(self, request: BackupRequest, *, server: Any, history: History) -> Plan:
        """Return what will be done, or refuse with the reason and what to do about it."""
        ...

    def foresee(self, plan: Any, *, server: Any) -> Iterator[ItemHeader]:
        """Yield the headers of what ``open`` would send, but for the record; read no content and begin nothing."""
        ...

    def open(self, plan: Any, *, server: Any) -> AbstractContextManager[Source]:
        """Begin the backup that *plan* describes."""
        ...
