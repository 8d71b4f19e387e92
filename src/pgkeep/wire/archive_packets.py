"""
What ``pgkeep-wal``, the small client, and the archive service say to each other on a Unix socket.

One request, one answer, then the connection ends. Numbers are little-endian.

::

    request    0  4  "PGKW"
               4  1  protocol, 1
               5  1  operation: 1 push, 2 get
               6  2  zero
               8  4  length of what follows, at most 16,384
              12     working directory, file name, path, each ending in a NUL byte

    answer        1  "." any number of times, one a second while the work goes on
               0  1  "R"
               1  1  result: 0 done, 1 absent, 2 failed, 3 declined
               2  1  exit status, for failed
               3  1  zero
               4  4  length of the message, at most 16,384
               8     message: one or two lines for people, UTF-8

With the result *done* for a get comes a file descriptor (``SCM_RIGHTS``): the whole, checked file, which has no name
yet. The client gives it its name, so a file can only appear while the client lives. *Declined* asks the client to run
the Python command instead.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from pgkeep.errors import FormatError

MAGIC = b"PGKW"
PROTOCOL = 1
MAX_TEXT_BYTES = 16_384
WORKING = b"."

_REQUEST_HEAD = struct.Struct("<4sBBHI")
_ANSWER_HEAD = struct.Struct("<cBBBI")
REQUEST_HEAD_BYTES = _REQUEST_HEAD.size
ANSWER_HEAD_BYTES = _ANSWER_HEAD.size


class Operation(enum.IntEnum):
    """What the client asks for."""

    PUSH = 1
    GET = 2


class Result(enum.IntEnum):
    """What became of it."""

    DONE = 0
    ABSENT = 1
    FAILED = 2
    DECLINED = 3


@dataclass(frozen=True, slots=True)
class Request:
    """
    One call of the client.

    Attributes:
        operation: What to do.
        working_directory: The client's own, absolute; what *path* is relative to.
        name: The file as the archive knows it.
        path: Where the file is, or shall be.
    """

    operation: Operation
    working_directory: str
    name: str
    path: str

    def render(self) -> bytes:
        """Return the request's bytes."""
        fields = (self.working_directory, self.name, self.path)
        text = b"".join(field.encode("utf-8", "surrogateescape") + b"\0" for field in fields)
        return _REQUEST_HEAD.pack(MAGIC, PROTOCOL, self.operation, 0, len(text)) + text


@dataclass(frozen=True, slots=True)
class Answer:
    """The service's last word; *exit_status* counts only with FAILED."""

    result: Result
    exit_status: int = 0
    message: str = ""

    def render(self) -> bytes:
        """Return the answer's bytes; a message that is too long is cut."""
        text = self.message.encode("utf-8", "replace")[:MAX_TEXT_BYTES]
        return _ANSWER_HEAD.pack(b"R", self.result, self.exit_status, 0, len(text)) + text


def text_length(head: bytes) -> int:
    """Return how many bytes follow the head of a request; raise FormatError when it is none of this protocol."""
    if len(head) != REQUEST_HEAD_BYTES:
        raise FormatError(f"request ends after {len(head)} of {REQUEST_HEAD_BYTES} bytes")
    magic, protocol, operation, zero, length = _REQUEST_HEAD.unpack(head)
    if magic != MAGIC or zero:
        raise FormatError("not a request of pgkeep-wal")
    if protocol != PROTOCOL:
        raise FormatError(f"request of protocol {protocol}, expected {PROTOCOL}")
    if operation not in tuple(Operation):
        raise FormatError(f"request with the unknown operation {operation}")
    if length > MAX_TEXT_BYTES:
        raise FormatError(f"request of {length} bytes, expected at most {MAX_TEXT_BYTES}")
    return int(length)


def parse_request(head: bytes, text: bytes) -> Request:
    """Return the request whose *head* and *text* these are; raise FormatError when they are not one."""
    if len(text) != text_length(head):
        raise FormatError(f"request ends after {len(text)} of {text_length(head)} bytes")
    fields = text.split(b"\0")
    if len(fields) != 4 or fields[3]:
        raise FormatError(f"request with {len(fields) - 1} fields, expected 3")
    working_directory, name, path = (field.decode("utf-8", "surrogateescape") for field in fields[:3])
    if not working_directory.startswith("/") or not name or not path:
        raise FormatError("request without an absolute working directory, a name and a path")
    return Request(Operation(head[5]), working_directory, name, path)


def parse_answer(data: bytes) -> Answer:
    """Return the answer that *data* is, without the dots before it; raise FormatError when it is not a whole one."""
    data = data.lstrip(WORKING)
    if len(data) < ANSWER_HEAD_BYTES:
        raise FormatError(f"answer ends after {len(data)} of {ANSWER_HEAD_BYTES} bytes")
    letter, result, exit_status, zero, length = _ANSWER_HEAD.unpack_from(data)
    text = data[ANSWER_HEAD_BYTES:]
    if letter != b"R" or zero or result not in tuple(Result) or len(text) != length or length > MAX_TEXT_BYTES:
        raise FormatError("not an answer of the archive service")
    return Answer(Result(result), exit_status, text.decode("utf-8", "replace"))
