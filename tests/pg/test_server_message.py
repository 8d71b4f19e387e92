"""Messages of a server: rows and reports, whole and damaged."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.server_message import ServerReport, parse_data_row, parse_report, render_query

Values = tuple[bytes | None, ...]

ROW = b"\0\2\0\0\0\3abc\xff\xff\xff\xff"
REPORT = b"SERROR\0VERROR\0C42601\0Msyntax error\0Htry again\0Frepl_scanner.l\0L12\0\0"


def render_data_row(values: Values) -> bytes:
    """Return the body of a row, as a server writes it."""
    parts = [b"\xff\xff\xff\xff" if value is None else struct.pack(">i", len(value)) + value for value in values]
    return struct.pack(">H", len(values)) + b"".join(parts)


@given(st.lists(st.none() | st.binary(max_size=40), max_size=8).map(tuple))
def test_rows_are_parsed_back(values: Values) -> None:
    """A row gives the values that a server put in it."""
    assert parse_data_row(render_data_row(values)) == values


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_format_error(body: bytes) -> None:
    """Whatever comes is a value, or is refused for its format."""
    with contextlib.suppress(FormatError):
        parse_data_row(body)
    with contextlib.suppress(FormatError):
        parse_report(memoryview(body))


def test_reports_say_what_is_asked_for() -> None:
    """A report gives state, message, advice and source; what it does not say is None."""
    assert parse_report(REPORT) == ServerReport("42601", "syntax error", "try again", "repl_scanner.l")
    assert parse_report(b"\0") == ServerReport()
    assert parse_report("MÄrger\0\0".encode("latin-1")).message_primary == "\N{REPLACEMENT CHARACTER}rger"


@pytest.mark.parametrize(
    ("parse", "body", "message"),
    [
        (parse_data_row, ROW[:-1], "a row of 12 bytes is truncated"),
        (parse_data_row, b"", "a row of 0 bytes is truncated"),
        (parse_data_row, ROW + b"x", "a row announces 13 bytes and has 14"),
        (parse_data_row, b"\0\1\0\0\0\3ab", "a row announces 9 bytes and has 8"),
        (parse_data_row, b"\0\1\xff\xff\xff\xfe", "a row's value has the length -2"),
        (parse_report, REPORT[:-1], "a report of 66 bytes has no end"),
        (parse_report, b"", "a report of 0 bytes has no end"),
        (parse_report, b"SERROR", "a report of 6 bytes has no end"),
    ],
    ids=[
        "row-cut",
        "row-empty",
        "row-long",
        "row-value-cut",
        "row-length",
        "report-cut",
        "report-empty",
        "report-text",
    ],
)
def test_damage_is_said(parse: Callable[[bytes], object], body: bytes, message: str) -> None:
    """Each way to spoil a message has its own words."""
    assert parse_data_row(ROW) == (b"abc", None)
    with pytest.raises(FormatError) as error:
        parse(body)
    assert error.value.message == message


def test_query_is_framed() -> None:
    """A query is its length and its text with a zero byte."""
    assert render_query("SHOW x") == b"Q\0\0\0\x0bSHOW x\0"
