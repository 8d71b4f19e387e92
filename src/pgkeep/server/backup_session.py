"""
A session in backup mode: ``pg_backup_start``, the copy, ``pg_backup_stop``.

The server ties a non-exclusive backup to its session. So the session is the backup's life: when it ends, by a crash of
pgkeep, of the server or of the line between them, the server leaves backup mode by itself, and the copy is worthless.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import psycopg

from pgkeep.errors import FormatError, ServerError
from pgkeep.pg.backup_label import BackupLabel, parse_backup_label
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.server.connection import Row, Server, fetch
from pgkeep.server.refusals import QUERY_CANCELED


@dataclass(frozen=True, slots=True)
class BackupStop:
    """
    What the server says of a backup that was stopped.

    Attributes:
        start_lsn: Where replay starts: the redo position of the backup's checkpoint.
        stop_lsn: Replay must reach this; exclusive, the end of a record.
        timeline: The timeline at the start.
        stop_timeline: The timeline at the stop; another one when a standby followed its primary to it meanwhile.
        label: What ``backup_label`` says.
        backup_label: Its text, to be laid down as it is.
        tablespace_map: Text of ``tablespace_map``; empty when there is no tablespace outside the data directory.
        notices: What the server remarked, in order; may be empty.
    """

    start_lsn: Lsn
    stop_lsn: Lsn
    timeline: Timeline
    stop_timeline: Timeline
    label: BackupLabel
    backup_label: str
    tablespace_map: str
    notices: tuple[str, ...]


class BackupSession:
    """
    A session of its own that brings the server into backup mode and out of it.

    As a context manager it closes the session; left before ``stop``, the backup is abandoned and the server cleans up.
    """

    def __init__(self, server: Server) -> None:
        """Open the session on *server*; nothing is started."""
        self._where = server.where
        self._capabilities = server.capabilities
        self._notices: list[str] = []
        self._started: Lsn | None = None
        self._stopped = False
        self._session = server.session()
        self._session.add_notice_handler(lambda notice: self._notices.append(notice.message_primary or ""))

    def __enter__(self) -> BackupSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and with it a backup that was not stopped."""
        self._session.close()

    @property
    def backend_pid(self) -> int:
        """Process id of the session at the server."""
        return self._session.info.backend_pid

    def start(self, label: str, *, fast: bool) -> Lsn:
        """
        Enter backup mode and return the start LSN; from now on files may be read.

        Args:
            label: The backup's name in ``backup_label``, at most 1,024 bytes.
            fast: Make the checkpoint at once; otherwise it is spread over time and this waits for it, for minutes.

        Raises:
            ServerError: The right is missing, ``wal_level`` is minimal, or the server refuses for another reason.
        """
        if self._started is not None:
            raise ServerError(f"the backup at PostgreSQL at {self._where} was already started at {self._started}")
        [(start_lsn,)] = self._ask(f"SELECT ({self._capabilities.start_backup_sql})::text", [label, fast])
        self._started = Lsn.parse(start_lsn)
        return self._started

    def stop(self, *, wait_for_archive: bool = False, timeout_seconds: float = 0) -> BackupStop:
        """
        Leave backup mode; all files must have been read.

        Args:
            wait_for_archive: Return only when the server has archived the backup's WAL. Where WAL is not archived the
                server says so in a notice and does not wait; on a standby it waits only with ``archive_mode=always``.
            timeout_seconds: How long to wait for that; 0 waits without end. The backup is lost when it passes.

        Raises:
            ServerError: The session has died, the standby was promoted, ``full_page_writes`` was off on the primary of
                a standby, or the wait was in vain: there is no backup.
        """
        if self._started is None or self._stopped:
            state = "was already stopped" if self._stopped else "was not started"
            raise ServerError(f"the backup at PostgreSQL at {self._where} {state}")
        if timeout_seconds:
            self._ask("SELECT set_config('statement_timeout', %s, false)", [f"{max(1, int(timeout_seconds * 1000))}ms"])
        try:
            [(stop_lsn, label_text, map_text)] = self._ask(self._capabilities.stop_backup_sql, [wait_for_archive])
        except ServerError as error:
            cause = error.__cause__
            if timeout_seconds and isinstance(cause, psycopg.Error) and cause.sqlstate == QUERY_CANCELED:
                raise ServerError(
                    f"PostgreSQL at {self._where} did not archive the backup's WAL within {timeout_seconds:g} seconds",
                    hint="look for a failing archive_command in the server's log, or do not wait for the archive",
                ) from cause
            raise
        self._stopped = True
        try:
            label = parse_backup_label(label_text)
        except FormatError as error:
            raise ServerError(f"PostgreSQL at {self._where} gave a label that cannot be read: {error}") from error
        return BackupStop(
            start_lsn=self._started,
            stop_lsn=Lsn.parse(stop_lsn),
            timeline=label.start_timeline,
            stop_timeline=self._stop_timeline(label),
            label=label,
            backup_label=label_text,
            tablespace_map=map_text or "",
            notices=tuple(self._notices),
        )

    def check(self) -> None:
        """Raise ServerError when the session has ended, and the backup with it; for long copies, now and then."""
        self._ask("SELECT 1")

    def is_alive(self) -> bool:
        """Whether the session still stands."""
        try:
            self.check()
        except ServerError:
            return False
        return True

    def _stop_timeline(self, label: BackupLabel) -> Timeline:
        if not label.is_from_standby:
            # A primary does not change its timeline while it runs.
            return label.start_timeline
        [(timeline,)] = self._ask("SELECT min_recovery_end_timeline FROM pg_control_recovery()")
        return Timeline(timeline or label.start_timeline)

    def _ask(self, query: str, parameters: list[object] | None = None) -> list[Row]:
        try:
            return fetch(self._session, query, parameters or (), where=self._where)
        except ServerError as error:
            if not self._session.closed or self._started is None:
                raise
            raise ServerError(f"the backup is lost, for {error.message}", hint=error.hint) from error.__cause__
