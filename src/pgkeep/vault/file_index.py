"""An index over the file list of one record, on disk rather than in memory: a record may name a million files."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator

import msgspec

from pgkeep.errors import FormatError
from pgkeep.streams.record import FileEntry
from pgkeep.streams.record_io import parse_file

_CACHE_KIBIBYTES = 4096


class _PathOnly(msgspec.Struct):
    path: str


_path_decoder = msgspec.json.Decoder(_PathOnly)


class FileIndex:
    """
    Find the entry of a path; may be used from several threads.

    The rows live in a temporary database of SQLite's, which spills to a file that has no name.

    Args:
        lines: Undecoded lines of a file list, as ``RecordReader.lines`` yields them.
        name: What messages call the record.
    """

    def __init__(self, lines: Iterable[bytes], *, name: str) -> None:
        self._lock = threading.Lock()
        # An empty name is a temporary database on disk, which goes when it is closed.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        try:
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute("CREATE TABLE file (path TEXT PRIMARY KEY, line BLOB) WITHOUT ROWID")
            self._database.execute("BEGIN")
            self._fill(lines, name)
            self._database.execute("COMMIT")
        except BaseException:
            self._database.close()
            raise

    def get(self, path: str) -> FileEntry | None:
        """Return the entry of virtual *path*; None when the record does not name it."""
        with self._lock:
            row = self._database.execute("SELECT line FROM file WHERE path = ?", (path,)).fetchone()
        return None if row is None else parse_file(row[0])

    def close(self) -> None:
        """Drop the index."""
        with self._lock:
            self._database.close()

    def _fill(self, lines: Iterable[bytes], name: str) -> None:
        try:
            self._database.executemany("INSERT INTO file VALUES (?, ?)", _rows(lines))
        except sqlite3.IntegrityError as error:
            raise FormatError(f"{name} names a path twice") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FormatError(f"{name}: a line of the record's file list is not a file entry: {error}") from error


def _rows(lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    for line in lines:
        content = line.removesuffix(b",")
        yield _path_decoder.decode(content).path, content
