"""What a dump job is asked to do, what it is about to do, and what its record says beyond other records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from pgkeep.modes.contract import Plan
from pgkeep.modes.dump_names import GLOBALS, encode_name
from pgkeep.server.database import DatabaseProperties
from pgkeep.server.pg_dump import (
    DumpCommand,
    DumpFormat,
)
from pgkeep.streams.compression import Compression


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """
    What is dumped, and how.

    Attributes:
        databases: Names and patterns; empty means all.
        excluded: Names and patterns.
        format: pg_dump's output format.
        compression: With ``NONE``, a *compression_level* above 0 means gzip.
        compression_level: 0 for the algorithm's default.
        include_blobs: Whether large objects are dumped.
        include_globals: Whether roles and tablespaces are dumped.
        lock_wait_timeout_seconds: How long to wait for a table's lock; 0 for ever.
        jobs: Parallel tables of a dump in directory format.
        extra: Further options of pg_dump.
        bin_dir: Where PostgreSQL's programs are; None to search.
        tmpdir: Where the directory format is staged.
    """

    databases: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    format: DumpFormat = DumpFormat.CUSTOM
    compression: Compression = Compression.NONE
    compression_level: int = 0
    include_blobs: bool = True
    include_globals: bool = True
    lock_wait_timeout_seconds: float = 300
    jobs: int = 1
    extra: tuple[str, ...] = ()
    bin_dir: Path | None = None
    tmpdir: Path = Path("/var/tmp/pgkeep")  # noqa: S108  made with mode 0700, and not followed when it is a link


class DumpDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What a dump's record says beyond other records (``details``).

    Attributes:
        format: Name of the format.
        compression: Name of the compression; ``none`` for none.
        is_compressed_by_pg_dump: Whether pg_dump did it, inside its format, and pg_restore undoes it.
        tool_version: Version of the pg_dump that was used, ``15.20``.
        globals_path: Virtual path of the globals; empty when they were not asked for.
        has_role_passwords: Whether the globals hold the roles' password hashes.
        databases: What the dumps do not hold of their databases.
    """

    format: str
    compression: str
    is_compressed_by_pg_dump: bool
    tool_version: str
    globals_path: str = ""
    has_role_passwords: bool = False
    databases: list[DatabaseProperties] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpPlan(Plan):
    """
    What a dump job is about to do.

    Attributes:
        options: What was asked for.
        command: How each database is dumped.
        compression: What is done to the whole, by pg_dump or by pgkeep.
        compression_level: Within its range.
        databases: By name.
        via_root: The names of those where partitions are filled through their partitioned tables.
        role_passwords: Whether password hashes may be read.
        system_identifier: The cluster's.
    """

    options: DumpOptions
    command: DumpCommand
    compression: Compression
    compression_level: int
    databases: tuple[DatabaseProperties, ...]
    via_root: frozenset[str]
    role_passwords: bool
    system_identifier: str

    @property
    def is_compressed_by_pg_dump(self) -> bool:
        """Whether pg_dump itself compresses."""
        return self.command.compression is not Compression.NONE

    @property
    def suffix(self) -> str:
        """What pgkeep's own compression adds to a file's name."""
        return "" if self.is_compressed_by_pg_dump else self.compression.suffix

    @property
    def globals_path(self) -> str:
        """Virtual path of the globals."""
        return f"{self.request.root}/{GLOBALS}.sql{self.suffix}"

    def path(self, database: str) -> str:
        """Return the virtual path of the dump of *database*; that of a directory for the directory format."""
        suffix = "" if self.command.format is DumpFormat.DIRECTORY else self.suffix
        return f"{self.request.root}/{encode_name(database)}{self.command.format.suffix}{suffix}"
