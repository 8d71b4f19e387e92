"""
The replication protocol: commands, their answers, and the COPY streams inside them.

What is said is here, how to wait is in ``waiting``. Only the calls of libpq that neither block nor keep the interpreter
lock are used: in psycopg's binary build a blocking ``get_copy_data`` stops every other thread.

Source:
    PostgreSQL manual, "Streaming Replication Protocol"; ``src/backend/replication/walsender.c``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus

from pgkeep.errors import ServerError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.server.plain_line import PlainLine, is_plain
from pgkeep.server.refusals import Refused, refusal
from pgkeep.server.waiting import SocketWait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

AnswerRow = tuple[bytes | None, ...]

_COPY_IN_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """
    The answer to IDENTIFY_SYSTEM.

    Attributes:
        system_identifier: The cluster's.
        timeline: The current one; on a standby the one being replayed.
        lsn: The end of what is flushed; on a standby of what is replayed.
    """

    system_identifier: SystemIdentifier
    timeline: Timeline
    lsn: Lsn


@dataclass(frozen=True, slots=True)
class HistoryFile:
    """A timeline history file as the server keeps it."""

    timeline: Timeline
    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class SlotPosition:
    """The answer to READ_REPLICATION_SLOT: where a physical slot stands, None before it reserved anything."""

    restart_lsn: Lsn | None
    timeline: Timeline | None


class Replication:
    """
    One conversation in the replication protocol; it owns *session* and closes it.

    Commands follow one another; a COPY is read to its end, or the conversation is closed. Any error ends the
    conversation's use, but for the refusal of a command, after which another may be sent.

    Args:
        session: Opened with ``replication=true``.
        where: The server's place, for messages.
        cancelled: Set by another thread to end what waits.
    """

    def __init__(
        self, session: psycopg.Connection[Any], *, where: str, cancelled: threading.Event | None = None
    ) -> None:
        self.where = where
        self.version = session.info.server_version
        self._session = session
        self._libpq = session.pgconn
        self._libpq.nonblocking = 1
        self._wait = SocketWait(self._libpq.socket, where=where, cancelled=cancelled)
        self._is_lent = False

    def __enter__(self) -> Replication:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and with it whatever the server still does for it."""
        self._session.close()

    def on_notice(self, handler: Callable[[psycopg.errors.Diagnostic], None]) -> None:
        """Call *handler* for each notice or warning that the server sends from now on."""
        self._session.add_notice_handler(handler)

    # Commands that answer with rows.

    def identify(self) -> SystemIdentity:
        """Ask who the server is and how far its WAL reaches."""
        row = self.only_row("IDENTIFY_SYSTEM")
        return SystemIdentity(
            SystemIdentifier(int(_text(row[0]))), Timeline(int(_text(row[1]))), Lsn.parse(_text(row[2]))
        )

    def setting(self, name: str) -> str:
        """Return a setting as ``SHOW`` prints it."""
        return _text(self.only_row(f"SHOW {name}")[0])

    def timeline_history(self, timeline: Timeline) -> HistoryFile:
        """Return the history file of *timeline*; timeline 1 has none, and asking for it is refused."""
        row = self.only_row(f"TIMELINE_HISTORY {int(timeline)}")
        return HistoryFile(timeline, _text(row[0]), bytes(row[1] or b""))

    def read_slot(self, name: str) -> SlotPosition | None:
        """Return where the physical slot *name* stands, None when there is none; for PostgreSQL 15 and later."""
        kind, lsn, timeline = self.only_row(f"READ_REPLICATION_SLOT {quoted_name(name)}")
        if kind is None:
            return None
        return SlotPosition(
            Lsn.parse(_text(lsn)) if lsn else None, Timeline(int(_text(timeline))) if timeline else None
        )

    def create_slot(self, name: str, *, temporary: bool = True) -> None:
        """Make a physical slot that keeps WAL from the last checkpoint on; a temporary one ends with the session."""
        kind = " TEMPORARY" if temporary else ""
        # The form without parentheses is the only one up to 14 and is still understood by 18.
        self.rows(f"CREATE_REPLICATION_SLOT {quoted_name(name)}{kind} PHYSICAL RESERVE_WAL")

    def drop_slot(self, name: str) -> None:
        """Drop the slot *name*; one that somebody uses is refused."""
        self.rows(f"DROP_REPLICATION_SLOT {quoted_name(name)}")

    def only_row(self, command: str) -> AnswerRow:
        """Return the only row that *command* answers."""
        rows = self.rows(command)
        if len(rows) != 1:
            raise ServerError(f"PostgreSQL at {self.where} answered {command} with {len(rows)} rows, expected 1")
        return rows[0]

    def rows(self, command: str) -> list[AnswerRow]:
        """Send *command* and return the rows of its answer, none for one that has no rows."""
        self.send(command)
        rows: list[AnswerRow] = []
        while (result := self.result()) is not None:
            rows += answer_rows(result)
        return rows

    # The steps of a command that streams.

    def send(self, command: str) -> None:
        """Send *command*; its answers are read with ``result``, and a COPY's content with ``copy_messages``."""
        self._check_idle()
        try:
            self._libpq.send_query(command.encode())
        except psycopg.Error as error:
            raise self._lost(error) from error
        self.flush()

    def result(self) -> PGresult | None:
        """Return the next part of the answer, None at its end; raise Refused when it is an error."""
        result = self._next_result()
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            error = self.refused(result)
            # Nothing of interest follows an error, but libpq takes no command before the answer's end is read.
            while error.state is not None and self._next_result() is not None:
                pass
            raise error
        return result

    def expect(self, status: ExecStatus, *, doing: str) -> PGresult:
        """Return the next part of the answer, which must be of *status*."""
        result = self.result()
        found = "the end of its answer" if result is None else ExecStatus(result.status).name
        if result is None or result.status != status:
            raise ServerError(
                f"PostgreSQL at {self.where} broke the protocol in {doing}: expected {status.name}, found {found}"
            )
        return result

    def drain(self) -> list[AnswerRow]:
        """Read the answer to its end and return the rows in what was left."""
        rows: list[AnswerRow] = []
        while (result := self.result()) is not None:
            rows += answer_rows(result)
        return rows

    def copy_messages(self) -> Iterator[memoryview]:
        """Yield the messages of the COPY that has begun, each as long-lived as its reader likes, until it ends."""
        get_copy_data, consume_input = self._libpq.get_copy_data, self._libpq.consume_input
        wait_until_readable = self._wait.readable
        try:
            is_dry = False
            while True:
                length, message = get_copy_data(1)
                if length > 0:
                    yield message
                    is_dry = False
                elif length == 0:
                    # More is mostly there already: look before waiting.
                    if is_dry:
                        wait_until_readable()
                    consume_input()
                    is_dry = True
                else:
                    return
        except psycopg.Error as error:
            raise self._lost(error) from error

    def copy_message(self, *, idle: Callable[[], None] | None = None) -> memoryview | None:
        """
        Return the next message of a COPY; None when none arrived within a tick, a quarter of a second.

        Args:
            idle: Called before waiting, when all that has arrived was taken.

        Raises:
            EndOfCopy: The server ended the COPY.
        """
        try:
            length, message = self._libpq.get_copy_data(1)
            if length == 0 and idle is not None:
                self._libpq.consume_input()
                length, message = self._libpq.get_copy_data(1)
                if length == 0:
                    idle()
            if length == 0:
                self._wait.readable()
                self._libpq.consume_input()
                length, message = self._libpq.get_copy_data(1)
        except psycopg.Error as error:
            raise self._lost(error) from error
        if length < 0:
            raise EndOfCopy
        return message if length > 0 else None

    def copy_in(self, content: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send *content* as the COPY that the server asked for, and end it."""
        for piece in content:
            view = memoryview(piece).cast("B")
            for offset in range(0, len(view), _COPY_IN_BYTES):
                self.copy_out_message(view[offset : offset + _COPY_IN_BYTES])
        self.end_copy()

    def copy_out_message(self, message: bytes | memoryview) -> None:
        """Send one message within a COPY."""
        try:
            while not self._libpq.put_copy_data(message):
                self._make_room()
        except psycopg.Error as error:
            raise self._lost(error) from error
        self.flush()

    def end_copy(self) -> None:
        """Say that our side of a COPY is over."""
        try:
            while not self._libpq.put_copy_end():
                self._make_room()
        except psycopg.Error as error:
            raise self._lost(error) from error
        self.flush()

    def flush(self) -> None:
        """Wait until all that was said has left; what arrives meanwhile is taken, or both sides would wait forever."""
        try:
            while self._libpq.flush():
                self._make_room()
        except psycopg.Error as error:
            raise self._lost(error) from error

    # Past libpq.

    def lend(self) -> PlainLine | None:
        """
        Lend the socket for a command and its whole answer; None when somebody encrypts what goes through it.

        Until ``take_back`` the conversation takes no command.
        """
        self._check_idle()
        try:
            # It takes what the server may have said of its own accord.
            is_busy = self._libpq.is_busy()
        except psycopg.Error as error:
            raise self._lost(error) from error
        if is_busy or not is_plain(self._libpq):
            return None
        self._is_lent = True
        return PlainLine(self._libpq.socket, where=self.where, wait=self._wait)

    def take_back(self) -> None:
        """Say that the answer was read to where the server is ready for the next command."""
        self._is_lent = False

    def check(self) -> None:
        """Raise ServerError when the job was cancelled."""
        self._wait.check()

    def refused(self, result: PGresult) -> Refused:
        """Return the error that *result* carries."""
        state = _field(result, DiagnosticField.SQLSTATE) or None
        message = _field(result, DiagnosticField.MESSAGE_PRIMARY) or result.error_message.decode(errors="replace")
        return Refused(
            refusal(state, message, where=self.where, hint=_field(result, DiagnosticField.MESSAGE_HINT)), state
        )

    def _next_result(self) -> PGresult | None:
        try:
            while self._libpq.is_busy():
                self._wait.readable()
                self._libpq.consume_input()
            return self._libpq.get_result()
        except psycopg.Error as error:
            raise self._lost(error) from error

    def _check_idle(self) -> None:
        if self._is_lent:
            raise ServerError(f"a conversation with PostgreSQL at {self.where} was left in the middle of an answer")

    def _make_room(self) -> None:
        self._wait.writable()
        self._libpq.consume_input()

    def _lost(self, error: psycopg.Error) -> ServerError:
        return refusal(None, str(error), where=self.where)


class EndOfCopy(Exception):
    """The server ended a COPY."""


def answer_rows(result: PGresult) -> list[AnswerRow]:
    """Return the rows of one part of an answer; none when it carries none."""
    return [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]


def quoted_name(name: str) -> str:
    """Return *name* as the protocol's grammar takes a name: in double quotes, those inside doubled."""
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """Return *text* as the protocol's grammar takes a string: in single quotes, those inside doubled."""
    return "'" + text.replace("'", "''") + "'"


def _text(value: bytes | None) -> str:
    return "" if value is None else bytes(value).decode()


def _field(result: PGresult, field: DiagnosticField) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")
