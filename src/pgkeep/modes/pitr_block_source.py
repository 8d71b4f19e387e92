"""Mode pitr_block, a backup being read: BASE_BACKUP, incremental where there is a base, its files as items."""

from __future__ import annotations

from pgkeep.errors import ServerError
from pgkeep.modes.pitr import PitrPlan
from pgkeep.modes.pitr_stream_source import StreamSource
from pgkeep.pg import data_directory as names
from pgkeep.server.base_backup import BaseBackup, BaseBackupStart, ReceivedFile
from pgkeep.server.connection import Server
from pgkeep.server.refusals import Refused
from pgkeep.streams.item import ItemRole


class PitrBlockSource(StreamSource):
    """A base backup over the replication protocol that builds on an earlier one's manifest."""

    def __init__(self, plan: PitrPlan, server: Server) -> None:
        super().__init__(plan, server)
        if plan.base is not None:
            head = plan.base.head
            # All that it is restored from, the Full first.
            self._head.details["chain"] = [*head.details.get("chain", ()), head.backup_id]
            damaged = [*head.details.get("damaged_below", ()), *([head.backup_id] if head.is_damaged else [])]
            if damaged:
                # The server checks what it sends, and that is not the page that nobody has written since.
                self._head.details["damaged_below"] = damaged
                self._warn(
                    f"backup {', '.join(damaged)}, which this one builds on, holds damaged pages: what was not written "
                    "since is restored damaged"
                )

    def _start(self, backup: BaseBackup) -> BaseBackupStart:
        base = self._plan.base
        if base is None:
            return backup.start()
        self._plan.request.say(f"building on backup {base.head.backup_id}, which starts at {base.head.start_lsn}")
        try:
            return backup.start(incremental_from=base.manifest())
        except Refused as error:
            # The gate sees which summaries there are; whether they can be read only the server finds out, each time.
            if error.ends_session or error.hint:
                raise
            raise ServerError(error.message, hint="make a Full, for which the server reads no WAL summaries") from error

    def _role_of(self, file: ReceivedFile) -> ItemRole:
        return ItemRole.MANIFEST if file.path == names.BACKUP_MANIFEST else ItemRole.DATA

    def _virtual_path(self, path: str) -> str:
        if path == names.BACKUP_MANIFEST:
            return f"{self._plan.files_root}/{path}"
        return super()._virtual_path(path)
