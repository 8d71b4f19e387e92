"""An answer with a COPY that is read past libpq: from a scripted server, cut into any pieces, broken in any place."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.errors import ServerError
from pgkeep.pg.server_message import COPY_DATA, FRAME, LENGTH_BYTES, ServerReport
from pgkeep.server.copy_answer import PlainAnswer
from pgkeep.server.plain_line import BUFFER_BYTES, LARGEST_BYTES, PlainLine
from pgkeep.server.refusals import Refused
from pgkeep.server.waiting import SocketWait

WHERE = "db1:5432 as backup"
LOST = f"the connection to PostgreSQL at {WHERE} was lost: server closed the connection unexpectedly"
BROKEN = f"PostgreSQL at {WHERE} broke the protocol in BASE_BACKUP: "
LENGTH = f"PostgreSQL at {WHERE} broke the protocol: a message of type b'd' has the length {{}}, expected 4 to 16777216"
UNIT = 512


def message(kind: bytes, body: bytes = b"") -> bytes:
    """Return one message."""
    return FRAME.pack(ord(kind), LENGTH_BYTES + len(body)) + body


def content(number: int, size: int = UNIT) -> bytes:
    """Return bytes that tell messages apart."""
    return bytes((number % 251, number // 251)) * (size // 2)


ROWS = message(b"T", b"\0\0") + message(b"D", b"\0\1\0\0\0\1x") + message(b"C", b"SELECT\0")
NOTICE = message(b"N", b"SWARNING\0C01000\0Mmind the gap\0\0")
STATUS = message(b"S", b"TimeZone\0UTC\0")
COPY = message(b"H", b"\0\0\0")
DONE = message(b"c")
READY = message(b"Z", b"I")
ERROR = message(b"E", b"SERROR\0C57014\0Mcanceling statement\0\0")
FATAL = message(b"E", b"SFATAL\0C57P01\0Mterminating connection\0\0")
DATA = message(b"d", b"d" + content(7))


@contextlib.contextmanager
def line_from(*pieces: bytes, cancelled: threading.Event | None = None, ends: bool = True) -> Iterator[PlainLine]:
    """A line on which a server sends *pieces*, one after the other, and then closes when *ends* is set."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def serve() -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                theirs.sendall(piece)
            if ends:
                theirs.shutdown(socket.SHUT_WR)

    server = threading.Thread(target=serve)
    with ours, theirs:
        server.start()
        yield PlainLine(ours.fileno(), where=WHERE, wait=SocketWait(ours.fileno(), where=WHERE, cancelled=cancelled))
        ours.shutdown(socket.SHUT_RDWR)
        server.join()


class Heard:
    """What became of an answer: its notices, and whether the socket was given back."""

    def __init__(self) -> None:
        self.notices: list[ServerReport] = []
        self.is_given_back = False

    def answer(self, line: PlainLine) -> PlainAnswer:
        """Return the answer that *line* carries."""
        return PlainAnswer(line, doing="BASE_BACKUP", notice=self.notices.append, give_back=self._take)

    def _take(self) -> None:
        self.is_given_back = True


def read_to_end(answer: PlainAnswer) -> bytes:
    """Read rows, a COPY and rows; return what the COPY carried."""
    assert answer.rows() == [(b"x",)]
    answer.begin_copy()
    found = b"".join(bytes(body) for body in answer.copy_data())
    assert list(answer.last_rows()) == [[(b"x",)]]
    return found


@settings(max_examples=60)
@given(
    sizes=st.lists(st.sampled_from([UNIT, UNIT, UNIT, 1, 0, UNIT - 1, UNIT + 1, 3 * UNIT]), max_size=60),
    asides=st.sets(st.integers(0, 60)),
    cut_bytes=st.integers(1, 5000),
    rooms=st.lists(st.integers(0, 9 * UNIT), min_size=1, max_size=9),
)
def test_content_is_the_same_in_whatever_pieces(
    sizes: list[int], asides: set[int], cut_bytes: int, rooms: list[int]
) -> None:
    """Messages of any size, with others in between, cut anywhere, and asked for in any way, give the same content."""
    stream, expected = b"", b""
    for number, size in enumerate(sizes):
        body = content(number, size).ljust(size, b"!")
        stream += (NOTICE if number in asides else b"") + message(b"d", b"d" + body)
        expected += body
    stream += DONE
    pieces = [stream[start : start + cut_bytes] for start in range(0, len(stream), cut_bytes)]
    heard, found = Heard(), b""
    with line_from(*pieces) as line:
        answer = heard.answer(line)
        bodies = answer.copy_data()
        for turn in range(10 * len(sizes) + 10):
            buffer = bytearray(rooms[turn % len(rooms)])
            taken = answer.copy_into(memoryview(buffer), prefix=b"d", unit=UNIT)
            assert taken % UNIT == 0
            found += buffer[:taken]
            body = next(bodies, None)
            if body is None:
                break
            assert body[:1] == b"d"
            found += body[1:]
        assert next(bodies, None) is None
    assert found == expected
    assert len(heard.notices) == len([number for number in asides if number < len(sizes)])


def test_an_answer_is_read_to_where_the_server_is_ready() -> None:
    """Rows, a COPY and rows are read; notices are told, changes of settings are not; then the socket is given back."""
    heard = Heard()
    parts = [STATUS, NOTICE, ROWS, NOTICE, COPY, DATA, NOTICE, DATA, DONE, ROWS, STATUS, READY]
    with line_from(*parts, ends=False) as line:
        assert read_to_end(heard.answer(line)) == (b"d" + content(7)) * 2
    assert heard.notices == [ServerReport("01000", "mind the gap")] * 3
    assert heard.is_given_back


def test_a_message_may_be_larger_than_the_buffer() -> None:
    """A message that the buffer does not hold gets a larger one, up to a bound."""
    large = content(1, 3 * BUFFER_BYTES)
    heard = Heard()
    with line_from(ROWS, COPY, DATA, message(b"d", large), DATA, DONE, ROWS, READY) as line:
        assert read_to_end(heard.answer(line)) == b"d" + content(7) + large + b"d" + content(7)


def test_an_error_in_the_copy_ends_the_answer_alone() -> None:
    """After an error, with which the answer is over, the socket is given back; the server's reason is raised."""
    heard = Heard()
    with line_from(ROWS, COPY, DATA, ERROR, NOTICE, READY, ends=False) as line, pytest.raises(Refused) as error:
        read_to_end(heard.answer(line))
    assert error.value.state == "57014"
    assert error.value.message == f"PostgreSQL at {WHERE} refused: canceling statement"
    assert heard.is_given_back


def test_an_error_ends_a_wait_for_content() -> None:
    """Where content is expected, an error is noticed as such, in whatever part of it has come."""
    heard = Heard()
    buffer = bytearray(8 * UNIT)
    with line_from(COPY, DATA, DATA, ERROR[:3], ERROR[3:] + READY, ends=False) as line:
        answer = heard.answer(line)
        answer.begin_copy()
        bodies = answer.copy_data()
        assert answer.copy_into(memoryview(buffer), prefix=b"d", unit=UNIT) == 2 * UNIT
        with pytest.raises(Refused) as error:
            next(bodies)
    assert buffer[: 2 * UNIT] == content(7) * 2
    assert error.value.state == "57014"


def test_a_server_that_ends_is_heard() -> None:
    """The last words of a server that ends are the reason, and the socket is not given back."""
    heard = Heard()
    with line_from(ROWS, COPY, DATA, FATAL) as line, pytest.raises(Refused) as error:
        read_to_end(heard.answer(line))
    assert error.value.message == f"the connection to PostgreSQL at {WHERE} was lost: terminating connection"
    assert not heard.is_given_back


BREAKS: list[tuple[str, list[bytes], str]] = [
    ("nothing", [], LOST),
    ("in-a-frame", [ROWS, COPY, DATA[:3]], LOST),
    ("in-a-message", [ROWS, COPY, DATA, DATA[:100]], LOST),
    ("before-the-end", [ROWS, COPY, DATA, DONE, ROWS], LOST),
    ("no-rows", [COPY], BROKEN + "expected RowDescription, found CopyOutResponse"),
    ("no-copy", [ROWS, READY], BROKEN + "expected CopyOutResponse, found ReadyForQuery"),
    ("rows-in-copy", [ROWS, COPY, DATA, ROWS], BROKEN + "expected CopyData, found RowDescription"),
    ("copy-in-rows", [message(b"T", b"\0\0"), DATA], BROKEN + "expected DataRow, found CopyData"),
    ("copy-at-the-end", [ROWS, COPY, DONE, DATA], BROKEN + "expected rows or the end, found CopyData"),
    ("unknown", [ROWS, COPY, message(b"?")], BROKEN + "expected CopyData, found a message of type b'?'"),
    ("bad-row", [message(b"T", b"\0\0"), message(b"D", b"\0\1")], BROKEN + "a row of 2 bytes is truncated"),
    ("bad-report", [ROWS, message(b"N", b"x")], BROKEN + "a report of 1 bytes has no end"),
    (
        "too-short",
        [ROWS, COPY, b"d\0\0\0\3"],
        LENGTH.format(3),
    ),
    (
        "too-long",
        [ROWS, COPY, FRAME.pack(COPY_DATA, LARGEST_BYTES + 1)],
        LENGTH.format(16777217),
    ),
]


@pytest.mark.parametrize(("pieces", "expected"), [row[1:] for row in BREAKS], ids=[row[0] for row in BREAKS])
def test_what_breaks_an_answer_is_said(pieces: list[bytes], expected: str) -> None:
    """Each way to break an answer has its own words, and the socket is not given back."""
    heard = Heard()
    with line_from(*pieces) as line, pytest.raises(ServerError) as error:
        read_to_end(heard.answer(line))
    assert error.value.message == expected
    assert not heard.is_given_back


def test_a_cut_in_the_content_is_said() -> None:
    """A line that is cut while content goes to its place is a lost connection."""
    with line_from(DATA, DATA[:300]) as line, pytest.raises(ServerError) as error:
        line.copy_into(memoryview(bytearray(4 * UNIT)), prefix=b"d", unit=UNIT)
    assert error.value.message == LOST


READS: list[Callable[[PlainLine], object]] = [
    lambda line: line.message(),
    lambda line: line.copy_into(memoryview(bytearray(UNIT)), prefix=b"d", unit=UNIT),
]


@pytest.mark.parametrize("read", READS, ids=["message", "content"])
def test_a_wait_can_be_cancelled(read: Callable[[PlainLine], object]) -> None:
    """Another thread's cancellation ends what waits for a silent server."""
    cancelled = threading.Event()
    with line_from(DATA[:9], cancelled=cancelled, ends=False) as line:
        threading.Timer(0.1, cancelled.set).start()
        with pytest.raises(ServerError) as error:
            read(line)
    assert error.value.message == f"cancelled in the conversation with PostgreSQL at {WHERE}"


def test_a_question_is_sent_whole() -> None:
    """A message larger than the socket holds waits for room; one to a server that has gone is a lost connection."""
    question = content(3, 4 << 20)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    heard = bytearray()

    def listen() -> None:
        while len(heard) < len(question):
            heard.extend(theirs.recv(1 << 16))

    with ours, theirs:
        line = PlainLine(ours.fileno(), where=WHERE, wait=SocketWait(ours.fileno(), where=WHERE))
        server = threading.Thread(target=listen)
        server.start()
        line.send(question)
        server.join()
        assert heard == question
        theirs.close()
        with pytest.raises(ServerError) as error:
            line.send(question)
    assert error.value.message == (
        f"the connection to PostgreSQL at {WHERE} was lost: could not send data to server: Broken pipe"
    )
