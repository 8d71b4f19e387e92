"""
What came of one base backup, held against PostgreSQL's own manifest of it: which files, their sizes, their checksums.

Both lists live in a temporary database of SQLite's, most of it on disk: a backup may have a million files.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

from pgkeep.errors import BackupUnusable, FormatError
from pgkeep.pg import data_directory as names
from pgkeep.pg.backup_manifest import ManifestEnd, ManifestFile, ManifestReader
from pgkeep.streams.item import Buffer

_ROWS_PER_INSERT = 1_000
_HINT = "restore again, or use another backup"


class ManifestCheck:
    """
    The files of one backup after the other; ``note`` may be called from any thread.

    Args:
        is_left_out: Tells of a path, as ``Target.place`` takes it, whether this restore does without it.
    """

    def __init__(self, is_left_out: Callable[[str], bool]) -> None:
        self._is_left_out = is_left_out
        self._lock = threading.Lock()
        # An empty name is a temporary database that spills to a file without a name.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        for table in ("arrived", "named"):
            self._database.execute(
                f"CREATE TABLE {table} (path TEXT PRIMARY KEY, size INTEGER, crc INTEGER) WITHOUT ROWID"
            )
        self._rows: list[tuple[str, int, int | None]] = []
        self._reader = ManifestReader()
        self._has_manifest = False

    def close(self) -> None:
        """Drop both lists."""
        with self._lock:
            self._database.close()

    def begin(self) -> None:
        """Forget the backup before."""
        with self._lock:
            self._rows.clear()
            self._database.execute("DELETE FROM arrived")
            self._database.execute("DELETE FROM named")
            self._reader = ManifestReader()
            self._has_manifest = False

    def note(self, path: str, size: int, crc: int | None) -> None:
        """Take note of what is written: its path, the bytes that came and their CRC-32C; None for what is no file."""
        with self._lock:
            self._rows.append((_encoded(path), size, crc))
            if len(self._rows) >= _ROWS_PER_INSERT:
                self._flush()

    def feed(self, piece: Buffer) -> None:
        """Take the next piece of the manifest; raise FormatError when it is none."""
        self._has_manifest = True
        rows = [self._row(file) for file in self._reader.feed(piece)]
        with self._lock:
            self._database.executemany("INSERT OR REPLACE INTO named VALUES (?, ?, ?)", rows)

    def compare(self, backup_id: str) -> ManifestEnd:
        """
        Compare what came of *backup_id* with its manifest; return what that says as a whole.

        Raises:
            BackupUnusable: There is no manifest, it is damaged, or something is missing or different.
        """
        if not self._has_manifest:
            raise BackupUnusable(f"the manifest of backup {backup_id} did not come with its files", hint=_HINT)
        try:
            end = self._reader.finish()
        except FormatError as error:
            raise BackupUnusable(f"the manifest of backup {backup_id}: {error.message}", hint=_HINT) from error
        with self._lock:
            self._flush()
        self._check_missing(backup_id)
        query = (
            "SELECT path, a.size, n.size, a.crc, n.crc FROM arrived a JOIN named n USING (path) "
            "WHERE a.size <> n.size OR a.crc <> n.crc ORDER BY path LIMIT 1"
        )
        for path, size, named_size, crc, named_crc in self._database.execute(query).fetchall():
            what = f"{path} of backup {backup_id} is not what its manifest says"
            if size != named_size:
                raise BackupUnusable(f"{what}: {size} bytes, expected {named_size}", hint=_HINT)
            raise BackupUnusable(f"{what}: CRC-32C {crc:08x}, expected {named_crc:08x}", hint=_HINT)
        return end

    def paths(self) -> Iterator[str]:
        """Yield the path of everything that came, in order."""
        with self._lock:
            self._flush()
        with closing(self._database.execute("SELECT path FROM arrived ORDER BY path")) as cursor:
            for (path,) in cursor:
                yield _decoded(path)

    def _check_missing(self, backup_id: str) -> None:
        query = "SELECT path FROM named WHERE NOT EXISTS (SELECT 1 FROM arrived a WHERE a.path = named.path) ORDER BY 1"
        count, first = 0, ""
        with closing(self._database.execute(query)) as cursor:
            for (path,) in cursor:
                if not self._may_be_missing(_decoded(path)):
                    count, first = count + 1, first or path
        if count:
            raise BackupUnusable(
                f"{count} files of backup {backup_id} that its manifest names did not come, the first: {first}",
                hint=_HINT,
            )

    def _may_be_missing(self, path: str) -> bool:
        inside = path.removeprefix("pgdata/")
        return self._is_left_out(path) or (inside != path and names.is_excluded(inside))

    def _row(self, file: ManifestFile) -> tuple[str, int, int | None]:
        crc = int.from_bytes(file.checksum, "little") if file.algorithm == "CRC32C" else None
        return _encoded(_item_path(file.path)), file.size, crc

    def _flush(self) -> None:
        self._database.executemany("INSERT OR REPLACE INTO arrived VALUES (?, ?, ?)", self._rows)
        self._rows.clear()


def _item_path(path: str) -> str:
    """Return where the file at *path* of a manifest is among a backup's items."""
    if path in (names.BACKUP_LABEL, names.TABLESPACE_MAP):
        return path
    if path.startswith(f"{names.TABLESPACES}/"):
        return f"tblspc/{path.removeprefix(f'{names.TABLESPACES}/')}"
    return f"pgdata/{path}"


def _encoded(path: str) -> str:
    # SQLite takes no text with surrogates, which stand for bytes that are not UTF-8.
    return path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("latin-1")


def _decoded(path: str) -> str:
    return path if path.isascii() else path.encode("latin-1").decode("utf-8", "surrogateescape")
