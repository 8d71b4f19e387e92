"""
The names inside a data directory: what a backup leaves out, what holds pages, what must exist although empty.

The rules are those of BASE_BACKUP (``src/backend/backup/basebackup.c``: ``excludeDirContents``, ``excludeFiles``,
``sendDir``), so that a walk of the directory and the replication protocol give the same files. Paths are relative to
the data directory, ``/`` between components; a tablespace's files are ``pg_tblspc/<oid>/PG_<major>_<catalog>/…``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pgkeep.errors import FormatError

CONTROL_FILE = "global/pg_control"
BACKUP_LABEL = "backup_label"
TABLESPACE_MAP = "tablespace_map"
BACKUP_MANIFEST = "backup_manifest"
RECOVERY_SIGNAL = "recovery.signal"
STANDBY_SIGNAL = "standby.signal"
POSTMASTER_PID = "postmaster.pid"
POSTMASTER_OPTIONS = "postmaster.opts"
TABLESPACES = "pg_tblspc"
WAL_DIRECTORY = "pg_wal"
CONFIGURATION_DIRECTORY = "pgkeep.configuration"
"""Where pgkeep lays down configuration files whose place is outside the data directory; not the server's."""
DEFAULT_BLOCK_SIZE = 8192
RELATION_SEGMENT_BYTES = 1 << 30
"""Bytes of one file of a relation unless PostgreSQL was built ``--with-segsize``; pg_control knows the truth."""

EMPTIED_DIRECTORIES = frozenset(
    {"pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"}
)
"""Directories that a backup holds empty: the server removes or rebuilds their content when it starts."""

EXCLUDED_FILES = frozenset(
    {
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        BACKUP_LABEL,
        TABLESPACE_MAP,
        BACKUP_MANIFEST,
        POSTMASTER_PID,
        POSTMASTER_OPTIONS,
        # BASE_BACKUP sends the next four. They steer a recovery that is over, or one that is not the restore's.
        "backup_label.old",
        "tablespace_map.old",
        RECOVERY_SIGNAL,
        STANDBY_SIGNAL,
    }
)
"""Files that no backup holds, in whatever directory they stand."""

EXCLUDED_PREFIXES = ("pgsql_tmp", "pg_internal.init", ".DS_Store")
"""Files and directories whose names begin so are left out, in whatever directory they stand."""

REQUIRED_DIRECTORIES = (
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_xact",
)
"""Directories that initdb makes; the server does not start, or not long, when one is missing (parents first)."""

_WAL_SUBDIRECTORIES = frozenset({"pg_wal/archive_status", "pg_wal/summaries"})
# parse_filename_for_nontemp_relation in src/backend/storage/file/reinit.c: no leading zero, at most OIDCHARS digits.
_RELATION = re.compile(r"([1-9][0-9]{0,9})(?:_(fsm|vm|init))?(?:\.([1-9][0-9]*))?")
# looks_like_temp_rel_name in src/backend/storage/file/fd.c.
_TEMPORARY = re.compile(r"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?")
_DATABASE_DIRECTORY = re.compile(r"(?:base|(?:.*/)?PG_[0-9]+_[0-9]{9})/[0-9]+")
_VERSION_DIRECTORY = re.compile(r"PG_([0-9]+)_([0-9]{9})")


class Fork(enum.Enum):
    """A fork of a relation; the value is its part of the file name."""

    MAIN = ""
    FREE_SPACE_MAP = "fsm"
    VISIBILITY_MAP = "vm"
    INIT = "init"


@dataclass(frozen=True, slots=True)
class RelationFile:
    """
    One file of a relation.

    Attributes:
        number: The relation's file number, which is its OID only until it is rewritten.
        fork: Which fork.
        segment: 0 for the first file of the fork, N for ``.N``.
    """

    number: int
    fork: Fork
    segment: int

    def first_block(self, *, blocks_per_segment: int) -> int:
        """Return the number of the file's first block within its fork; *blocks_per_segment* is pg_control's."""
        return self.segment * blocks_per_segment

    @property
    def name(self) -> str:
        """The file's name."""
        fork = f"_{self.fork.value}" if self.fork.value else ""
        return f"{self.number}{fork}.{self.segment}" if self.segment else f"{self.number}{fork}"


def relation_file(name: str) -> RelationFile | None:
    """Return what the file *name* (no directory) says about a permanent or unlogged relation; None for other names."""
    match = _RELATION.fullmatch(name)
    if match is None or (len(match[1]) == 10 and int(match[1]) > 0xFFFFFFFF):
        return None
    return RelationFile(int(match[1]), Fork(match[2] or ""), int(match[3] or 0))


def is_temporary_relation(name: str) -> bool:
    """Tell whether *name* is that of a temporary relation's file, ``t<backend>_<number>``."""
    return name[:1] == "t" and _TEMPORARY.fullmatch(name) is not None


def is_database_directory(path: str) -> bool:
    """Tell whether the directory at *path* holds one database's relations: ``base/N`` or ``…/PG_18_202506291/N``."""
    return _DATABASE_DIRECTORY.fullmatch(path) is not None


def page_file(path: str) -> RelationFile | None:
    """Return the relation file at *path* when it is made of pages that carry checksums; None otherwise."""
    directory, _, name = path.rpartition("/")
    if directory == "global" or is_database_directory(directory):
        return relation_file(name)
    return None


def is_excluded(path: str, *, emptied: frozenset[str] = EMPTIED_DIRECTORIES) -> bool:
    """
    Tell whether a backup leaves the file or directory at *path* out.

    A directory that is held empty is not itself excluded; what is in it is. What only a look at the directory's other
    names can say, the files of unlogged relations, is ``unlogged_numbers``.

    Args:
        path: Relative to the data directory.
        emptied: Names of directories held empty; add the base name of ``stats_temp_directory`` (up to PostgreSQL 14)
            when it stands inside the data directory under another name.
    """
    parts = path.split("/")
    name = parts[-1]
    if name in EXCLUDED_FILES or name.startswith(EXCLUDED_PREFIXES) or parts[0] == CONFIGURATION_DIRECTORY:
        return True
    parents = parts[:-1]
    if not parents:
        return False
    if any(parent in emptied or parent.startswith(EXCLUDED_PREFIXES) for parent in parents):
        return True
    if parents[0] == WAL_DIRECTORY:
        return path not in _WAL_SUBDIRECTORIES
    return is_temporary_relation(name) and is_database_directory("/".join(parents))


def unlogged_numbers(names: Iterable[str]) -> frozenset[int]:
    """Return the numbers of the relations among *names*, one directory's files, that have an init fork."""
    found = set()
    for name in names:
        if name.endswith("_init") and (relation := relation_file(name)) is not None:
            found.add(relation.number)
    return frozenset(found)


def is_unlogged_content(name: str, unlogged: frozenset[int]) -> bool:
    """Tell whether *name* holds the content of one of the *unlogged* relations: any fork but the init fork."""
    if not unlogged:
        return False
    relation = relation_file(name)
    return relation is not None and relation.fork is not Fork.INIT and relation.number in unlogged


def kept_names(directory: str, names: Iterable[str], *, emptied: frozenset[str] = EMPTIED_DIRECTORIES) -> list[str]:
    """
    Return, sorted, those of *names* that a backup holds, unlogged relations considered.

    Args:
        directory: Relative to the data directory; empty for the data directory itself.
        names: All names in it, files and directories.
        emptied: As for ``is_excluded``.
    """
    prefix = f"{directory}/" if directory else ""
    ordered = sorted(names)
    unlogged = unlogged_numbers(ordered) if is_database_directory(directory) else frozenset()
    return [
        name
        for name in ordered
        if not is_excluded(prefix + name, emptied=emptied) and not is_unlogged_content(name, unlogged)
    ]


def tablespace_version_directory(major: int, catalog_version: int) -> str:
    """Return the directory inside a tablespace that belongs to one server version: ``PG_18_202506291``."""
    return f"PG_{major}_{catalog_version}"


def parse_tablespace_version_directory(name: str) -> tuple[int, int]:
    """Return major and catalog version of a tablespace's version directory; raise FormatError for other names."""
    match = _VERSION_DIRECTORY.fullmatch(name)
    if match is None:
        raise FormatError(f'not a tablespace version directory: expected the like of PG_18_202506291, found "{name}"')
    return int(match[1]), int(match[2])
