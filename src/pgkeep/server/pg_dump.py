"""pg_dump and pg_dumpall: what they are asked, and what they would get wrong."""

from __future__ import annotations

import enum
import functools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeep.errors import SettingsError, ToolError
from pgkeep.server.client_program import conninfo_for
from pgkeep.server.tools import Toolbox, ToolVersion
from pgkeep.streams.compression import Compression

if TYPE_CHECKING:
    import psycopg


class DumpFormat(enum.Enum):
    """One of pg_dump's four output formats; the value is the name that people write."""

    CUSTOM = "custom"
    DIRECTORY = "directory"
    TAR = "tar"
    PLAIN = "plain"

    @property
    def suffix(self) -> str:
        """What the dump's name ends with."""
        return {"custom": ".dump", "directory": ".dir", "tar": ".tar", "plain": ".sql"}[self.value]

    @property
    def compresses(self) -> bool:
        """Whether pg_dump itself may compress this format, so that its parts stay seekable."""
        return self in (DumpFormat.CUSTOM, DumpFormat.DIRECTORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpCommand:
    """
    How every database is dumped.

    Attributes:
        toolbox: Whose pg_dump.
        format: Output format.
        compression: What pg_dump itself does; ``NONE`` also where pgkeep compresses afterwards.
        compression_level: Within the range of *compression*; unused for ``NONE``.
        include_blobs: Whether large objects are dumped.
        lock_wait_timeout_seconds: How long to wait for a table's lock; 0 for ever.
        jobs: Parallel tables, for the directory format.
        role: Role to take with SET ROLE; empty for none.
        extra: Further arguments, already checked by ``check_extra_options``.
    """

    toolbox: Toolbox
    format: DumpFormat
    compression: Compression
    compression_level: int = 0
    include_blobs: bool = True
    lock_wait_timeout_seconds: float = 0
    jobs: int = 1
    role: str = ""
    extra: tuple[str, ...] = ()

    def arguments(
        self,
        dbname: str,
        *,
        directory: Path | None = None,
        snapshot: str = "",
        sections: Sequence[str] = (),
        tables_without_data: Sequence[str] = (),
        encoding: str = "",
        via_root: bool = False,
    ) -> list[str | Path]:
        """
        Return the command for *dbname*, writing to *directory* (directory format) or to standard output.

        Args:
            dbname: The database.
            directory: Is made by pg_dump.
            snapshot: An exported snapshot to read in; empty for one of its own.
            sections: Only these, of ``pre-data``, ``data`` and ``post-data``; empty for all.
            tables_without_data: Names of tables, quoted for SQL and in *encoding*, whose rows are left out.
            encoding: Of the archive and of these names; empty for that of the session that pg_dump gets.
            via_root: Let partitions be filled through their partitioned table.
        """
        words: list[str | Path] = [self.toolbox.program("pg_dump"), f"--format={self.format.value}", "--no-password"]
        if self.format.compresses:
            words.append(f"--compress={self._compress_argument()}")
        if not self.include_blobs:
            words.append("--no-blobs")  # the spelling of before 16, which all understand
        if self.lock_wait_timeout_seconds:
            words.append(f"--lock-wait-timeout={round(self.lock_wait_timeout_seconds * 1000)}")
        if self.role:
            words.append(f"--role={self.role}")
        if directory is not None:
            # What is staged lives minutes; the sink makes it durable.
            words += [f"--file={directory}", f"--jobs={self.jobs}", "--no-sync"]
        if snapshot:
            words.append(f"--snapshot={snapshot}")
        if encoding:
            words.append(f"--encoding={encoding}")
        if via_root:
            words.append("--load-via-partition-root")
        words += [f"--section={section}" for section in sections]
        # In quotes nothing in a name is a pattern (processSQLNamePattern in fe_utils/string_utils.c).
        words += [f"--exclude-table-data={name}" for name in tables_without_data]
        return [*words, *self.extra, f"--dbname={conninfo_for(dbname)}"]

    def _compress_argument(self) -> str:
        if self.compression is Compression.NONE:
            return "0"
        if self.toolbox.version.major < 16:
            return str(self.compression_level)
        return f"{self.compression.value}:{self.compression_level}"


def globals_arguments(toolbox: Toolbox, *, dbname: str, role: str, role_passwords: bool) -> list[str | Path]:
    """Return the command that writes roles, tablespaces and role settings as SQL, connecting to *dbname*."""
    words: list[str | Path] = [toolbox.program("pg_dumpall"), "--globals-only", "--no-password"]
    if not role_passwords:
        words.append("--no-role-passwords")
    if role:
        words.append(f"--role={role}")
    return [*words, f"--database={conninfo_for(dbname)}"]


def can_compress(toolbox: Toolbox, compression: Compression) -> bool:
    """Whether *toolbox*'s pg_dump itself does *compression*: zstd and lz4 need version 16 and a build that has them."""
    if compression in (Compression.NONE, Compression.GZIP):
        return True
    return toolbox.version.major >= 16 and _is_built_in(toolbox.program("pg_dump"), compression)


@functools.cache
def _is_built_in(pg_dump: Path, compression: Compression) -> bool:
    # The specification is checked before the connection is tried, which a directory without a socket refuses.
    done = subprocess.run(
        [pg_dump, "--format=custom", f"--compress={compression.value}:1", "--no-password", "--host=/nonexistent"],
        env={"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return b"invalid compression specification" not in done.stderr


_OURS = {
    "file": "f",
    "format": "F",
    "jobs": "j",
    "dbname": "d",
    "compress": "Z",
    "host": "h",
    "port": "p",
    "username": "U",
    "no-password": "w",
    "password": "W",
    "version": "V",
    "lock-wait-timeout": "",
    "role": "",
    "help": "?",
    "snapshot": "",
}
"""pg_dump's options that pgkeep sets from its own settings, with their letters."""
_LETTERS_WITH_VALUE = "efFjnNStTEZdhpU"


def check_extra_options(options: Sequence[str]) -> None:
    """
    Refuse options that would contradict pgkeep's own.

    Raises:
        SettingsError: One of *options* is set by pgkeep, or is not an option at all.
    """
    skip = False
    for word in options:
        if skip:
            skip = False
            continue
        if word.startswith("--"):
            name, _, _ = word[2:].partition("=")
            # getopt_long takes any unambiguous beginning: --form is --format.
            clash = (
                next((long for long in _OURS if name and long.startswith(name)), None) if name not in _SAFE else None
            )
        elif word.startswith("-") and len(word) > 1:
            letters, takes_next = _letters(word[1:])
            skip = takes_next
            clash = next((long for long, letter in _OURS.items() if letter and letter in letters), None)
        else:
            raise SettingsError(
                f'dump_options: expected options of pg_dump, found "{word}"',
                hint="write a long option with its value as one word: --exclude-table=public.log",
            )
        if clash is not None:
            raise SettingsError(
                f'dump_options: "{word}" is pg_dump\'s --{clash}, which pgkeep sets itself',
                hint="use pgkeep's own setting for it",
            )


_SAFE = frozenset({"schema-only", "data-only", "no-sync"})


def _letters(cluster: str) -> tuple[str, bool]:
    """Split ``-vnpublic`` as getopt does; return the letters, and whether the last one's value is the next word."""
    for position, letter in enumerate(cluster):
        if letter in _LETTERS_WITH_VALUE:
            return cluster[: position + 1], position + 1 == len(cluster)
    return cluster, False


def check_attribute_options(connection: psycopg.Connection[Any], *, toolbox: Toolbox) -> None:
    """
    Refuse a database whose catalog holds column options that *toolbox*'s pg_dump would copy into the DDL unknowingly.

    A pg_dump of the server's own major, not older than its minor, knows what to leave out, and nothing is asked.

    Args:
        connection: An open session in the database to be dumped.
        toolbox: Whose pg_dump would be used.

    Raises:
        ToolError: There is such an option; every restore of such a dump fails at its first table.

    Source:
        PostgreSQL 15.20 as Debian ships it: ``pg_attribute.attoptions`` holds ``pg_attver=…``, which pg_dump 15.20
        filters and pg_dump 18.6 writes out as ``ALTER TABLE … ALTER COLUMN … SET (pg_attver=…)``.
    """
    server = ToolVersion.of_server(connection.info.server_version)
    if toolbox.version.major == server.major and toolbox.version >= server:
        return
    row = connection.execute(
        """
        SELECT a.attrelid::regclass::text, a.attname, split_part(o.o, '=', 1)
        FROM pg_catalog.pg_attribute a, pg_catalog.unnest(a.attoptions) AS o(o)
        WHERE a.attrelid >= 16384 AND a.attnum > 0
          AND split_part(o.o, '=', 1) NOT IN ('n_distinct', 'n_distinct_inherited')
        LIMIT 1
        """
    ).fetchone()
    if row is not None:
        table, column, option = row
        raise ToolError(
            f'pg_dump {toolbox.version} does not fit server {server}: it would write the internal option "{option}" of '
            f'{table}.{column} in database "{connection.info.dbname}" into the dump, which no restore accepts',
            hint=f"install the client programs of PostgreSQL {server.major}, {server} or newer",
        )
