"""
Messages of a server: what frames them, and the rows and reports that they carry.

A message is a type of one byte, four bytes with the length of themselves and the body, and the body.

Source: PostgreSQL manual, "Message Formats" and "Error and Notice Message Fields".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pgkeep.errors import FormatError

FRAME = struct.Struct(">BI")
"""Type and length; the length counts its own four bytes, but not the type."""

LENGTH_BYTES = 4

COMMAND_COMPLETE = ord("C")
COPY_DATA = ord("d")
COPY_DONE = ord("c")
COPY_OUT = ord("H")
DATA_ROW = ord("D")
ERROR = ord("E")
NOTICE = ord("N")
NOTIFICATION = ord("A")
PARAMETER_STATUS = ord("S")
READY_FOR_QUERY = ord("Z")
ROW_DESCRIPTION = ord("T")

_SHORT = struct.Struct(">H")
_LONG = struct.Struct(">i")


@dataclass(frozen=True, slots=True)
class ServerReport:
    """
    An error or a notice.

    Attributes:
        state: SQLSTATE; None when the report has none.
        message_primary: What happened, mostly one line; None when it is not said.
        message_hint: Advice; None when there is none.
        source_file: The file of the server's source that it is from.
    """

    state: str | None = None
    message_primary: str | None = None
    message_hint: str | None = None
    source_file: str | None = None


def render_query(command: str) -> bytes:
    """Return the message that asks for *command*, which has no zero byte."""
    body = command.encode() + b"\0"
    return b"Q" + _LONG.pack(LENGTH_BYTES + len(body)) + body


def parse_data_row(body: bytes | memoryview) -> tuple[bytes | None, ...]:
    """
    Return the values of a row, None for SQL's null.

    Raises:
        FormatError: The lengths in it do not add up to it.
    """
    try:
        (count,) = _SHORT.unpack_from(body)
        values: list[bytes | None] = []
        offset = _SHORT.size
        for _ in range(count):
            (length,) = _LONG.unpack_from(body, offset)
            offset += _LONG.size
            values.append(None if length == -1 else bytes(body[offset : offset + length]))
            if length < -1:
                raise FormatError(f"a row's value has the length {length}")
            offset += max(length, 0)
    except struct.error as error:
        raise FormatError(f"a row of {len(body)} bytes is truncated") from error
    if offset != len(body):
        raise FormatError(f"a row announces {offset} bytes and has {len(body)}")
    return tuple(values)


def parse_report(body: bytes | memoryview) -> ServerReport:
    """
    Return what an error or a notice says; fields that nobody here asks for are passed over.

    Raises:
        FormatError: It does not end as a report does.
    """
    *fields, end = bytes(body).split(b"\0")
    if end or not fields or fields[-1]:
        raise FormatError(f"a report of {len(body)} bytes has no end")
    found = {field[:1]: field[1:].decode(errors="replace") for field in fields if field}
    return ServerReport(found.get(b"C"), found.get(b"M"), found.get(b"H"), found.get(b"F"))
