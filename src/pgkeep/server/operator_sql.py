r"""
An operator's own proof of a restored cluster: a file of SQL, run in read-only transactions, with its results.

The file is plain SQL; of psql's commands there is ``\c DATABASE`` on a line of its own, and nothing else. A statement
that fails, or takes longer than it may, is the operator's way to say that something is wrong.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgkeep.errors import CheckFailed, SettingsError, UsageError
from pgkeep.server.connection import Row, Server, fetch

ROWS_SHOWN = 20
LINE_LETTERS = 200
_CONNECT = re.compile(r"\\(?:c|connect)[ \t]+(?:\"((?:[^\"]|\"\")+)\"|(\S+))[ \t]*;?[ \t]*")


@dataclass(frozen=True, slots=True)
class SqlPart:
    """
    What is run in one database.

    Attributes:
        database: Empty for the one that the server has for such things.
        text: SQL, one or more statements.
        first_line: The number of its first line in the file, from 1.
    """

    database: str
    text: str
    first_line: int


def read_operator_sql(path: Path, *, owner_uid: int) -> list[SqlPart]:
    """
    Return the parts of the file *path*, in their order.

    Args:
        path: Absolute.
        owner_uid: Of the cluster; its account may write such files, as may root and our own.

    Raises:
        SettingsError: The file cannot be read, or others could have written it: it is run as superuser.
        UsageError: It has a command of psql's that is not SQL.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read post_restore_sql {path}: {error}") from error
    if status.st_uid not in (0, os.geteuid(), owner_uid) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(
            f"others may write {path}, which post_restore_sql would run as superuser",
            hint="let root or the cluster's owner own it, with mode 0644 or less",
        )
    return [part for part in _parts(text, path) if part.text.strip()]


def _parts(text: str, path: Path) -> Iterator[SqlPart]:
    database, first = "", 1
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        match = _CONNECT.fullmatch(line.rstrip("\r\n"))
        if match is not None:
            yield SqlPart(database, "".join(lines), first)
            database = match[1].replace('""', '"') if match[1] else match[2]
            first, lines = number + 1, []
        elif line.startswith("\\"):
            raise UsageError(
                f"{path} has a command of psql's in line {number}: {line.strip()[:60]}",
                hint="only SQL is run, and \\c DATABASE",
            )
        else:
            lines.append(line)
    yield SqlPart(database, "".join(lines), first)


def run_operator_sql(
    part: SqlPart, server: Server, *, path: Path, timeout_seconds: int, say: Callable[[str], None]
) -> None:
    """
    Run *part* in *server*'s database, and say its results; raise CheckFailed when a statement fails.

    Args:
        part: Of a file that was read.
        server: A session of its own: what the SQL sets stays.
        path: For messages.
        timeout_seconds: For each statement (PostgreSQL 12: for all of the part); 0 for none.
        say: Takes a line.
    """
    sql = server.sql
    for statement in (
        "RESET search_path",
        f"SET statement_timeout = '{timeout_seconds}s'",
        "SET default_transaction_read_only = on",
        "BEGIN TRANSACTION READ ONLY",
    ):
        fetch(sql, statement, where=server.where)
    try:
        # Without parameters the text goes as it is, so that a percent sign is one, and holds any number of statements.
        cursor = sql.execute(part.text.encode())
        while True:
            for line in _result_lines(cursor):
                say(f"post_restore_sql: {line}")
            if not cursor.nextset():
                return
    except psycopg.Error as error:
        position = int(error.diag.statement_position or 0)
        number = part.first_line + part.text.count("\n", 0, position - 1) if position else 0
        where = f"{path} line {number}" if number else str(path)
        reason = error.diag.message_primary or str(error).strip()
        if reason.startswith("COPY cannot be used"):
            reason = "COPY from or to the client is not possible here"
        raise CheckFailed(f"post_restore_sql {where}: {reason}") from error
    finally:
        # The session ends here in any case.
        with contextlib.suppress(psycopg.Error):
            sql.rollback()


def _result_lines(cursor: psycopg.Cursor[Row]) -> Iterator[str]:
    if cursor.description is None:
        yield cursor.statusmessage or "done"
        return
    yield " | ".join(column.name for column in cursor.description)[:LINE_LETTERS]
    for row in cursor.fetchmany(ROWS_SHOWN):
        yield " | ".join("" if value is None else str(value) for value in row)[:LINE_LETTERS]
    if cursor.rowcount > ROWS_SHOWN:
        yield f"… {cursor.rowcount - ROWS_SHOWN} more rows"
