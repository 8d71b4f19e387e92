"""
The answer to a command that sends rows, then gigabytes of COPY, then rows: read past libpq where that is possible.

The parts are asked for in the order in which the server sends them. An answer is read to its end, or to the error in
it; otherwise the conversation is over.

Source: PostgreSQL manual, "Streaming Replication Protocol"; ``src/interfaces/libpq/fe-protocol3.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from psycopg.pq import ExecStatus

from pgkeep.errors import FormatError, ServerError
from pgkeep.pg import server_message as messages
from pgkeep.server.plain_line import PlainLine
from pgkeep.server.refusals import Refused, refusal
from pgkeep.server.replication import AnswerRow, Replication, answer_rows

Part = TypeVar("Part")

# What a server may say at any time; it is no part of the answer.
_ASIDES = frozenset({messages.NOTICE, messages.PARAMETER_STATUS, messages.NOTIFICATION})
_NAMES = {
    messages.COMMAND_COMPLETE: "CommandComplete",
    messages.COPY_DATA: "CopyData",
    messages.COPY_DONE: "CopyDone",
    messages.COPY_OUT: "CopyOutResponse",
    messages.DATA_ROW: "DataRow",
    messages.READY_FOR_QUERY: "ReadyForQuery",
    messages.ROW_DESCRIPTION: "RowDescription",
}


class CopyAnswer(Protocol):
    """One answer; every part raises ServerError when another comes, Refused when it is an error."""

    def rows(self) -> list[AnswerRow]:
        """Return the rows that must come next."""
        ...

    def begin_copy(self) -> None:
        """Take the beginning of the COPY that must come next."""
        ...

    def copy_data(self) -> Iterator[memoryview]:
        """Yield the messages of the COPY that has begun, to its end; each is valid until the next is asked for."""
        ...

    def copy_into(self, destination: memoryview, *, prefix: bytes, unit: int) -> int:
        """
        Fill *destination* from messages of the COPY that are *prefix* and *unit* bytes; called between two messages.

        Returns:
            Bytes taken, a multiple of *unit*; 0 when the next message must be asked for.
        """
        ...

    def last_rows(self) -> Iterator[list[AnswerRow]]:
        """Yield the rows of each part that is left."""
        ...


def ask(replication: Replication, command: str, *, notice: Callable[[messages.ServerReport], None]) -> CopyAnswer:
    """
    Send *command* and return its answer.

    Args:
        replication: A conversation between two commands.
        command: In the protocol's grammar.
        notice: Called for each notice that the conversation's own handlers do not see.
    """
    doing = command.partition(" ")[0]
    line = replication.lend()
    if line is None:
        replication.send(command)
        return LibpqAnswer(replication, doing=doing)
    line.send(messages.render_query(command))
    return PlainAnswer(line, doing=doing, notice=notice, give_back=replication.take_back)


class LibpqAnswer:
    """An answer that libpq reads, because the line is encrypted; notices go to the conversation's handlers."""

    def __init__(self, replication: Replication, *, doing: str) -> None:
        self._replication = replication
        self._doing = doing

    def rows(self) -> list[AnswerRow]:
        """Return the rows that must come next."""
        return answer_rows(self._replication.expect(ExecStatus.TUPLES_OK, doing=self._doing))

    def begin_copy(self) -> None:
        """Take the beginning of the COPY that must come next."""
        self._replication.expect(ExecStatus.COPY_OUT, doing=self._doing)

    def copy_data(self) -> Iterator[memoryview]:
        """Yield the messages of the COPY that has begun, to its end."""
        return self._replication.copy_messages()

    def copy_into(self, destination: memoryview, *, prefix: bytes, unit: int) -> int:  # noqa: ARG002 - the protocol's
        """Take nothing: libpq gives one message at a time."""
        return 0

    def last_rows(self) -> Iterator[list[AnswerRow]]:
        """Yield the rows of each part that is left."""
        while (result := self._replication.result()) is not None:
            yield answer_rows(result)


class PlainAnswer:
    """An answer that is read from the socket itself, up to where the server is ready again."""

    def __init__(
        self,
        line: PlainLine,
        *,
        doing: str,
        notice: Callable[[messages.ServerReport], None],
        give_back: Callable[[], None],
    ) -> None:
        self._line = line
        self._doing = doing
        self._notice = notice
        self._give_back = give_back

    def rows(self) -> list[AnswerRow]:
        """Return the rows that must come next."""
        self._expect(messages.ROW_DESCRIPTION)
        return self._rows()

    def begin_copy(self) -> None:
        """Take the beginning of the COPY that must come next."""
        self._expect(messages.COPY_OUT)

    def copy_data(self) -> Iterator[memoryview]:
        """Yield the messages of the COPY that has begun, to its end."""
        while True:
            yield from self._line.copy_data()
            kind, body = self._next()
            if kind == messages.COPY_DONE:
                return
            if kind != messages.COPY_DATA:
                raise self._broken("CopyData", kind)
            # It came behind an aside.
            yield body

    def copy_into(self, destination: memoryview, *, prefix: bytes, unit: int) -> int:
        """Fill *destination* from messages of that form."""
        return self._line.copy_into(destination, prefix=prefix, unit=unit)

    def last_rows(self) -> Iterator[list[AnswerRow]]:
        """Yield the rows of each part that is left."""
        while True:
            kind, _ = self._next()
            if kind == messages.ROW_DESCRIPTION:
                yield self._rows()
            elif kind == messages.READY_FOR_QUERY:
                self._give_back()
                return
            elif kind != messages.COMMAND_COMPLETE:
                raise self._broken("rows or the end", kind)

    def _rows(self) -> list[AnswerRow]:
        rows: list[AnswerRow] = []
        while True:
            kind, body = self._next()
            if kind == messages.COMMAND_COMPLETE:
                return rows
            if kind != messages.DATA_ROW:
                raise self._broken("DataRow", kind)
            rows.append(self._read(messages.parse_data_row, body))

    def _expect(self, kind: int) -> None:
        found, _ = self._next()
        if found != kind:
            raise self._broken(_NAMES[kind], found)

    def _next(self) -> tuple[int, memoryview]:
        """Return the next message that belongs to the answer; raise Refused when it is an error."""
        while True:
            kind, body = self._line.message()
            if kind == messages.ERROR:
                raise self._refused(self._read(messages.parse_report, body))
            if kind not in _ASIDES:
                return kind, body
            if kind == messages.NOTICE:
                self._notice(self._read(messages.parse_report, body))

    def _refused(self, report: messages.ServerReport) -> Refused:
        where = self._line.where
        message = report.message_primary or ""
        error = Refused(refusal(report.state, message, where=where, hint=report.message_hint or ""), report.state)
        try:
            # Nothing of interest follows an error, but the conversation goes on behind the answer's end.
            while self._line.message()[0] != messages.READY_FOR_QUERY:
                pass
            self._give_back()
        except ServerError:
            # A server that ends says why, and closes.
            pass
        return error

    def _read(self, parse: Callable[[memoryview], Part], body: memoryview) -> Part:
        try:
            return parse(body)
        except FormatError as error:
            raise ServerError(
                f"PostgreSQL at {self._line.where} broke the protocol in {self._doing}: {error.message}"
            ) from error

    def _broken(self, expected: str, kind: int) -> ServerError:
        found = _NAMES.get(kind) or f"a message of type {bytes((kind,))!r}"
        return ServerError(
            f"PostgreSQL at {self._line.where} broke the protocol in {self._doing}: expected {expected}, found {found}"
        )
