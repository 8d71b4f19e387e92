"""
A restore: the daemon says what it will restore, then restores it, file by file, through us.

::

    RestoreStart                                                       ->  F
    [RESTOREOBJ:<name>, RESTOREOBJ_LEN:<n>, RESTOREOBJ_JOB:<id>, D, F  ->  OK]...
    [EXPECT, D..., F                                                   ->  OK]         extended only
    files                                                              see restore_supply.py
    FINISH                                                             ->  F

Phase 1 runs when the list of files has come, or the first file where no list comes: a refusal is said before a byte is
asked for. An error is the job's end: what arrived until then is marked as unfinished, or removed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pgkeep.bacula.announced import Announced
from pgkeep.bacula.channel import Channel
from pgkeep.bacula.restore_options import restore_settings
from pgkeep.bacula.restore_supply import RestoreStream
from pgkeep.bacula.session import Session
from pgkeep.bacula.where import Where, parse_where
from pgkeep.errors import (
    BackupUnusable,
    ChannelClosed,
    FormatError,
    JobCancelled,
    PgkeepError,
    RestoreRefused,
    UsageError,
    WireError,
)
from pgkeep.jobs.recovery.promised_wal import CDP_MODE
from pgkeep.jobs.restoring.settings import audit_file, check_allowed
from pgkeep.jobs.streamed.beside import WalBeside
from pgkeep.jobs.streamed.files import restore_files
from pgkeep.jobs.streamed.plan import prepare_stream
from pgkeep.jobs.streamed.proved_times import last_wal_file
from pgkeep.jobs.streamed.restore import ArrivingItem, TakeBeside, restore_stream
from pgkeep.jobs.streamed.selection import PartialSelection
from pgkeep.settings import Rank, Resolved
from pgkeep.settings.parameter import PHYSICAL_MODES
from pgkeep.streams.record import RecordHead

Work = Callable[[Iterable[ArrivingItem]], object]
"""Phases 2 and later."""


def run(session: Session) -> None:
    """Restore what comes for one Plugin line."""
    channel = session.channel
    try:
        _Restore(session).run()
    except (ChannelClosed, JobCancelled):
        raise
    except PgkeepError as error:
        # An E would be the error of one file only.
        channel.fatal(f"{error.message}\n{error.hint}" if error.hint else error.message)
        channel.abandon()
        raise


@dataclass(frozen=True, slots=True)
class _Names:
    """From a restored name to a virtual path, for the files of one line."""

    where: Where
    root: str

    def path_of(self, name: str) -> str | None:
        """Return the virtual path of *name*; None for one that is not of this line's."""
        path = self.where.strip(name).lstrip("/").removesuffix("/")
        if path != self.root and not path.startswith(f"{self.root}/"):
            return None
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise FormatError(f"the name of a restored file is not UTF-8: {path!r}") from error
        return path


class _Restore:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._channel: Channel = session.channel
        self._where = parse_where(session.job.where)
        self._settings: Resolved = restore_settings(session, self._where)
        cluster_id = self._settings.text("cluster_id")
        self._mode = str(self._settings.get("mode"))
        prefix = f"@postgresql/cluster_{cluster_id}" if cluster_id else "@postgresql"
        self._root = f"{prefix}/{self._mode}"
        self._announced = Announced(session.channel)
        self._now = dt.datetime.now(dt.UTC)
        restore_id = str(session.job.job_id or f"{self._now:%Y%m%dT%H%M%SZ}")
        self._audit = audit_file(self._settings, restore_id, say=self._say, warn=self._channel.warn)

    def run(self) -> None:
        """Hold the conversation from RestoreStart to FINISH."""
        try:
            self._converse()
        except BaseException:
            if self._mode == CDP_MODE:
                self._wal_beside.give_up()
            raise
        finally:
            if self._cdp_heads() and self._mode != CDP_MODE:
                # Whatever became of this one: the other line need not keep WAL for it.
                self._wal_beside.end()

    def _converse(self) -> None:
        channel = self._channel
        with self._audit.kept():
            check_allowed(self._settings)
        if not self._settings.is_given("timeout"):
            # An operator may look for a tape for hours; the end of the daemon is noticed anyway.
            channel.limit_silence(0)
        channel.end()
        work: Work | None = None
        command = channel.expect_command()
        while not command.startswith("FNAME:") and command != "FINISH":
            if command.startswith("RESTOREOBJ:"):
                self._announced.take_object(command.removeprefix("RESTOREOBJ:"))
            elif command == "EXPECT" and channel.is_extended:
                self._take_root()
                self._announced.take_expected(root=self._root, prefix=self._prefix)
                work = self._prepare()
            else:
                raise WireError(f'expected a restore object, FNAME or FINISH, found "{command[:80]}"')
            channel.command("OK")
            command = channel.expect_command()
        if work is None and command != "FINISH":
            self._take_root()
            work = self._prepare()
        names = _Names(self._where, self._root)
        stream = RestoreStream(channel, names.path_of)
        items = stream.items(command)
        if work is None:
            work = _skip
        work(items)
        if stream.foreign and not stream.own:
            raise BackupUnusable(
                f"nothing was restored: {stream.foreign} files came, and none of them lies beneath {self._root}",
                hint="set mode and cluster_id as they were when the backup was made",
            )
        channel.end()

    def _take_root(self) -> None:
        """Restore what the backups say they hold: the host that made them may have had other settings than this one."""
        heads = self._announced.heads
        roots = {str(head.details.get("root", "")) for head, _ in heads}
        if not heads or (self._root in roots and not self._channel.is_extended):
            return
        newest, _ = max(heads, key=lambda one: one[0].backup_id)
        root = str(newest.details.get("root", self._root))
        if root != self._root:
            self._say(f"the backup is one of {root}, these settings would make one of {self._root}")
        self._root, self._mode = root, newest.mode
        self._announced.leave_only(root)

    def _prepare(self) -> Work:
        """Phase 1."""
        selection = self._announced.selection
        if selection is not None and not selection.files and not selection.records:
            return _skip
        if self._is_for_another_mode():
            self._say(f"restore_mode is not {self._mode}: nothing of {self._root} is restored")
            return _skip
        if self._settings.get("restore_mode") == "files":
            return self._prepare_files("")
        if self._mode == CDP_MODE:
            return self._prepare_wal()
        if self._mode.endswith("dump"):
            return self._prepare_dump()
        return self._prepare_cluster()

    def _is_for_another_mode(self) -> bool:
        wanted = self._settings.get("restore_mode")
        if self._mode == CDP_MODE and wanted in PHYSICAL_MODES:
            # Its WAL belongs to a base backup.
            return False
        if wanted in ("auto", "files", self._mode):
            return False
        if self._settings.origin("restore_mode").rank is Rank.WHERE:
            # where= is for all lines of the job, the menu's options are for this one.
            return True
        raise UsageError(f"restore_mode is {wanted}, the backup is of mode {self._mode}")

    def _prepare_cluster(self) -> Work:
        if self._session.job.regex_where:
            raise RestoreRefused(
                "a cluster cannot be restored under names that a regular expression makes",
                hint="restore with where=/ or where=/directory",
            )
        partial, prepared = "", None
        is_dry = self._settings.flag("dry_run_restore")
        # Who asks afterwards why nothing was restored looks there, and not only into the job's log.
        with contextlib.nullcontext() if is_dry else self._audit.kept():
            try:
                prepared = prepare_stream(
                    self._announced.heads,
                    self._announced.selection,
                    settings=self._settings,
                    place=self._where.place,
                    now=self._now,
                    audit=self._audit,
                    beside=self._cdp_heads(),
                    wal_beside=self._announced.beside.wal if self._announced.beside is not None else (),
                    beside_directory=self._wal_beside.directory,
                )
            except PartialSelection as found:
                if self._where.place is None:
                    raise
                partial = found.message
        if prepared is None:
            return self._prepare_files(f"{partial}: the files are restored as they are, not as a cluster")
        if is_dry:
            return self._plan_only(list(prepared.prepared.lines()))
        take_beside = self._taking_beside()
        for line in prepared.prepared.lines():
            self._audit.say(line)

        def work(items: Iterable[ArrivingItem]) -> None:
            restore_stream(
                prepared.prepared,
                prepared.wal,
                self._until_finish(items),
                old=prepared.old,
                say=self._say,
                take_beside=take_beside,
            )

        return work

    def _taking_beside(self) -> TakeBeside:
        """Begin to wait for WAL of mode cdp, if any belongs to this restore; return what takes it over."""
        heads, beside = self._cdp_heads(), self._wal_beside
        if not heads:
            return lambda _wal: None
        beside.begin()
        # Where nothing is announced, whole jobs come.
        expected = (
            [name for name, _ in self._announced.beside.wal]
            if self._announced.beside is not None and self._announced.selection is not None
            else [name for name in map(last_wal_file, heads) if name]
        )
        return lambda wal: self._say(f"WAL of mode cdp: {beside.hand_over(expected, wal)} files")

    def _prepare_dump(self) -> Work:
        if self._where.place is not None or self._session.job.regex_where:
            return self._prepare_files("")
        from pgkeep.jobs.streamed.dump import prepare_dump

        announced = self._announced
        plan = prepare_dump(
            announced.heads, announced.selection, root=self._root, settings=self._settings, warn=self._channel.warn
        )
        if self._settings.flag("dry_run_restore"):
            plan.close()
            return self._plan_only(list(plan.lines()))
        for line in plan.lines():
            self._say(line)
        return lambda items: plan.restore(self._until_finish(items), say=self._say, warn=self._channel.warn)

    def _prepare_wal(self) -> Work:
        """Prepare to take WAL for the base backup that another Plugin line restores."""
        bases = [head for head in self._announced.others if head.has_files and self._is_near(head)]
        if not bases or not (self._announced.has_base or self._announced.selection is None):
            if self._where.place is not None:
                return self._prepare_files("no base backup of the cluster comes with this WAL")
            raise RestoreRefused(
                f"this is WAL of mode cdp, and no base backup of {self._prefix} is among the restored jobs",
                hint="restore the newest base backup with it: restore jobid=<base>,<cdp>,...; or give where=/directory",
            )
        beside = self._wal_beside
        beside.begin()

        def work(items: Iterable[ArrivingItem]) -> None:
            count = beside.keep(items, root=self._root)
            self._say(f"{count} WAL files go to the restore of {bases[-1].details.get('root', 'the base backup')}")

        return work

    @cached_property
    def _wal_beside(self) -> WalBeside:
        """Where the processes of two lines meet; asked for when the root is known."""
        job = self._session.job
        restore = f"{job.job_id}.{job.name}".replace("/", "_")
        return WalBeside(Path(self._settings.require("state_dir")), restore=restore, cluster=self._prefix)

    def _cdp_heads(self) -> list[RecordHead]:
        """Return the heads of the jobs of mode cdp whose WAL belongs to the backups of this line."""
        ours = {head.system_identifier for head, _ in self._announced.heads}
        return [
            head
            for head in self._announced.others
            if head.mode == CDP_MODE and head.system_identifier in ours and self._is_near(head)
        ]

    @property
    def _prefix(self) -> str:
        """Virtual path above the modes."""
        return self._root.rpartition("/")[0]

    def _is_near(self, head: RecordHead) -> bool:
        return str(head.details.get("root", "")).rpartition("/")[0] == self._prefix

    def _prepare_files(self, reason: str) -> Work:
        place = self._where.place
        if self._session.job.regex_where and place is None:
            raise UsageError(
                "a restore under names that a regular expression makes is not supported", hint="use where=/directory"
            )
        if place is None:
            raise UsageError("restore_mode=files needs a directory to restore into", hint="give where=/directory")
        if self._settings.flag("dry_run_restore"):
            return self._plan_only([f"files: into {place}"])
        if reason:
            self._channel.warn(reason)
        selection = self._announced.selection
        expected = selection.files + len(selection.records) if selection is not None else None

        def work(items: Iterable[ArrivingItem]) -> None:
            restore_files(
                items,
                place,
                root=self._root,
                replace=self._session.job.replace or "a",
                expected=expected,
                say=self._say,
                warn=self._channel.warn,
            )

        return work

    def _plan_only(self, lines: list[str]) -> Work:
        for line in lines:
            self._say(line)
        self._say("dry_run_restore: nothing is touched, and what comes now is dropped")
        return _skip

    def _until_finish(self, items: Iterable[ArrivingItem]) -> Iterable[ArrivingItem]:
        """Yield *items*; after them the replay may take its time without a word from the daemon."""
        yield from items
        self._channel.limit_silence(0)

    def _say(self, text: str) -> None:
        self._channel.say(text)


def _skip(items: Iterable[ArrivingItem]) -> None:
    for item in items:
        item.skip()
