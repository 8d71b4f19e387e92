"""Mode pitr, local transport: one backup being read from the server's data directory on this host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pgkeep.datadir.owner import Owner
from pgkeep.datadir.read import PageCheck, PageReport
from pgkeep.datadir.scan import Scan, listed_tablespaces
from pgkeep.errors import ServerError
from pgkeep.modes.physical_base import known_tablespaces
from pgkeep.modes.pitr import PitrPlan, host_name
from pgkeep.modes.pitr_local import LocalFiles, UnchangedRule, is_same_place
from pgkeep.modes.pitr_source import PitrSource, iso, label_items
from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.server import queries
from pgkeep.server.backup_session import BackupSession
from pgkeep.server.connection import Server
from pgkeep.streams.item import Item
from pgkeep.streams.record import RecordHead

_START_ATTEMPTS = 5


class LocalSource(PitrSource):
    """A base backup from the server's data directory on this host."""

    def __init__(self, plan: PitrPlan, server: Server) -> None:
        super().__init__(plan, server)
        self._session = BackupSession(server)
        self._files: LocalFiles | None = None

    def close(self) -> None:
        """Leave backup mode, whether the backup was stopped or not."""
        self._session.close()
        super().close()

    def items(self) -> Iterator[Item]:
        """Yield the files, then what ``pg_backup_stop`` says, then the WAL."""
        plan, request = self._plan, self._plan.request
        # The later of two clocks' readings would call a file unchanged that was written between them.
        before_start = queries.server_time(self._server)
        start_lsn, scan = self._start()
        request.say(f"pg_backup_start label='{plan.label}' LSN={start_lsn}")
        checkpoint_time = min(before_start, queries.last_checkpoint(self._server).time)
        self._head = msgspec.structs.replace(
            self._head, start_time=iso(before_start), checkpoint_time=iso(checkpoint_time)
        )
        self._note_tablespaces({tablespace.oid: tablespace.location for tablespace in scan.tablespaces})
        self._files = files = self._open_files(scan, start_lsn)
        yield from files.items()
        self._session.check()
        self._note_oldest_transaction()
        stop = self._session.stop(
            wait_for_archive=plan.options.wal.wait_for_archive, timeout_seconds=plan.options.wal.timeout_seconds
        )
        self._note_stop(stop)
        files.pages.settle(stop.stop_lsn)
        self._say_walk(files)
        request.say(f"pg_backup_stop LSN={stop.stop_lsn}")
        yield from label_items(request.root, stop)
        yield from self._configuration_items()
        yield from self._wal.items(
            start=WalPosition(stop.timeline, stop.start_lsn), stop=WalPosition(stop.stop_timeline, stop.stop_lsn)
        )
        self._head = msgspec.structs.replace(
            self._head, pages_checked=files.pages.checked, pages_after_start=files.pages.after_start
        )
        self._note_damage(files.pages.damaged())

    def finish(self) -> RecordHead:
        """Return the record's head."""
        return self._finish()

    def _start(self) -> tuple[Lsn, Scan]:
        """
        Enter backup mode and look at the tablespaces: they must be those that the server saw when it did.

        It looks into ``pg_tblspc`` while it starts, and says at the stop what it found. A tablespace that is made later
        comes from replay, at the place that WAL names; the walk must not take it for one of the backup's.
        """
        plan, data_directory = self._plan, Path(self._plan.facts.files.data_directory)
        for _ in range(_START_ATTEMPTS):
            before = listed_tablespaces(data_directory)
            start_lsn = self._session.start(plan.label, fast=plan.options.start_fast)
            scan = Scan(
                data_directory,
                root=plan.request.root,
                version_directory=str(self._head.details["tablespace_directory"]),
                required_tablespaces={t.oid for t in known_tablespaces(self._server)} - plan.left_out,
                left_out=plan.left_out,
                warn=self._warn,
            )
            if scan.listed == before:
                return start_lsn, scan
            plan.request.say("tablespaces were made or dropped while the backup began: it begins again")
            self._session.close()
            self._session = BackupSession(self._server)
        raise ServerError("tablespaces were made or dropped each time the backup began", hint="run the backup again")

    def _open_files(self, scan: Scan, start_lsn: Lsn) -> LocalFiles:
        plan, facts = self._plan, self._plan.facts
        data_directory = Path(facts.files.data_directory)
        check = None
        if facts.has_checksums and plan.options.verify_checksum:
            block_size = int(facts.settings["block_size"])
            check = PageCheck(
                start_lsn,
                PageReport(),
                block_size=block_size,
                blocks_per_segment=_segment_bytes(facts.settings["segment_size"]) // block_size,
            )
        rule = None
        base = plan.base
        if base is not None:
            if is_same_place(base.head, host=host_name(), data_directory=facts.files.data_directory):
                rule = UnchangedRule(base)
            else:
                self._warn(
                    f"every file is sent: backup {base.head.backup_id} was read from {base.head.data_directory} on "
                    f"{base.head.host} by transport {base.head.transport}, so its modification times mean nothing here"
                )
        self._head.details["owner"] = Owner.of(data_directory).user_name
        return LocalFiles(scan, check=check, rule=rule)

    def _say_walk(self, files: LocalFiles) -> None:
        unchanged = f", {files.unchanged_files:,} unchanged" if files.unchanged_files else ""
        self._plan.request.say(
            f"PGDATA walk: {files.sent_files:,} files, {files.sent_bytes / (1 << 20):,.1f} MiB{unchanged} "
            "(excluded pg_wal, postmaster.pid)"
        )


def _segment_bytes(text: str) -> int:
    """Return the bytes of ``SHOW segment_size``, which the server prints as ``1GB``."""
    units = {"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
    return int(text[:-2]) * units[text[-2:]]
