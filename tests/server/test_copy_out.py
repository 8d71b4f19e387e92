"""COPY to the client and from it, past libpq and through it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgkeep.errors import ServerError
from pgkeep.server import copy_out as module
from pgkeep.server.copy_in import copy_in
from pgkeep.server.copy_out import Chunk, copy_out
from tests.lab.cluster import Cluster

pytestmark = pytest.mark.pg(">=18")
ROWS = "COPY (SELECT g, repeat('ü', g % 500) FROM generate_series(1, 20000) g) TO STDOUT"


@pytest.fixture(params=["socket", "libpq"])
def session(
    shared_cluster: Cluster, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    """A session that is read past libpq, and one that is read as if it were encrypted."""
    if request.param == "libpq":
        monkeypatch.setattr(module, "is_plain", lambda _: False)
    with contextlib.closing(shared_cluster.connect()) as connection:
        yield connection


def read_all(session: psycopg.Connection[Any], command: str, *, wanted: int = 100_000) -> tuple[list[bytes], int]:
    """Return the chunks of a COPY, and the number of rows."""
    answer = copy_out(session, command, where="here")
    chunks, rows, is_over = [], 0, False
    while not is_over:
        chunk = Chunk(wanted)
        is_over = answer.read(chunk)
        rows += chunk.rows
        chunks.append(bytes(chunk.content))
    return chunks, rows


def test_rows_come_whole(session: psycopg.Connection[Any]) -> None:
    """Chunks are cut between rows, together they are the whole, and the session goes on."""
    with session.cursor() as cursor, cursor.copy(ROWS) as copy:
        expected = b"".join(bytes(block) for block in copy)
    chunks, rows = read_all(session, ROWS)
    assert b"".join(chunks) == expected
    assert rows == 20000
    assert all(chunk.endswith(b"\n") for chunk in chunks[:-1])
    assert all(100_000 <= len(chunk) < 102_000 for chunk in chunks[:-1])
    assert session.execute("SELECT 1").fetchone() == (1,)


def test_nothing_and_an_enormous_row(session: psycopg.Connection[Any]) -> None:
    """No row is an empty chunk; a row larger than a chunk is one chunk, however large."""
    assert read_all(session, "COPY (SELECT 1 WHERE false) TO STDOUT") == ([b""], 0)
    chunks, rows = read_all(session, "COPY (SELECT repeat('x', 30000000)) TO STDOUT", wanted=1000)
    assert ([len(chunk) for chunk in chunks if chunk], rows) == ([30_000_001], 1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("COPY nobody TO STDOUT", 'relation "nobody" does not exist'),
        ("COPY (SELECT 1 / (5000 - g) FROM generate_series(1, 9000) g) TO STDOUT", "division by zero"),
    ],
)
def test_errors_are_told(session: psycopg.Connection[Any], command: str, message: str) -> None:
    """An error at once and one in the middle are the server's words."""
    with pytest.raises(ServerError, match=f"^PostgreSQL at here refused: {message}$"):
        read_all(session, command)


def test_a_lost_server_and_a_cancelled_job(session: psycopg.Connection[Any], shared_cluster: Cluster) -> None:
    """The end of the session, and the end of the job, end the reading."""
    endless = "COPY (SELECT repeat('x', 9000) FROM generate_series(1, 1000000)) TO STDOUT"
    cancelled = threading.Event()
    answer = copy_out(session, endless, where="here", cancelled=cancelled)
    answer.read(Chunk(10))
    cancelled.set()
    with pytest.raises(ServerError, match=r"^cancelled in the conversation"):
        answer.read(Chunk(1 << 40, bytearray()))
    with contextlib.closing(shared_cluster.connect()) as other:
        answer = copy_out(other, endless, where="here")
        answer.read(Chunk(10))
        shared_cluster.sql("SELECT pg_terminate_backend(%s)", [other.info.backend_pid])
        with pytest.raises(ServerError, match=r"^the connection to PostgreSQL at here was lost: "):
            answer.read(Chunk(1 << 40, bytearray()))


def test_rows_go_back_in(shared_cluster: Cluster) -> None:
    """What was copied out goes in, whatever the pieces; a refusal is told, and leaves no row."""
    with shared_cluster.connect() as session:
        session.execute("CREATE TEMP TABLE t (a int PRIMARY KEY, b text)")
        content = b"".join(read_all(session, ROWS)[0])
        pieces = [content[:7], content[7:1_000_000], b"", content[1_000_000:]]
        assert copy_in(session, "COPY t FROM STDIN", pieces, where="here") == 20000
        assert session.execute("SELECT count(*), sum(length(b)) FROM t").fetchone() == (20000, 4_990_000)
    with contextlib.closing(shared_cluster.connect()) as session:
        session.execute("CREATE TEMP TABLE t (a int PRIMARY KEY, b text)")
        with pytest.raises(ServerError, match="duplicate key value violates unique constraint"):
            copy_in(session, "COPY t FROM STDIN", [content, content], where="here")
