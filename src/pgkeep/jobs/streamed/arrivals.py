"""
What arrived in a restore that cannot be asked again, and what the records say should have.

Both lists live in a temporary database, most of it on disk: a backup may have a million files.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

from pgkeep.streams.item import ItemHeader
from pgkeep.streams.record import FileEntry

_CACHE_KIBIBYTES = 8192
_ROWS_PER_INSERT = 1_000

_ARRIVED = (
    "INSERT INTO arrived VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    "kind = excluded.kind, size = excluded.size, digest = excluded.digest, link = excluded.link"
)
_NAMED = (
    "INSERT INTO named VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    "kind = excluded.kind, size = excluded.size, digest = excluded.digest, link = excluded.link, "
    "backup_id = excluded.backup_id WHERE excluded.backup_id >= backup_id"
)


class Arrivals:
    """
    Two lists of files and how they differ; ``note`` may be called from any thread.

    Where several records name a path, the newest backup's word counts; where a path arrives twice, the later arrival.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # An empty name is a temporary database that spills to a file without a name.
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        columns = "path TEXT PRIMARY KEY, kind TEXT, size INTEGER, digest TEXT, link TEXT"
        self._database.execute(f"CREATE TABLE arrived ({columns}) WITHOUT ROWID")
        self._database.execute(f"CREATE TABLE named ({columns}, backup_id TEXT) WITHOUT ROWID")
        self._rows: list[tuple[str, str, int, str, str]] = []

    def close(self) -> None:
        """Drop both lists."""
        with self._lock:
            self._database.close()

    def note(self, header: ItemHeader, size: int, digest: str) -> None:
        """Take note of a file that arrived, whole."""
        with self._lock:
            self._rows.append((header.path, header.kind.value, size, digest, header.link))
            if len(self._rows) >= _ROWS_PER_INSERT:
                self._flush()

    def name(self, backup_id: str, entries: Iterable[FileEntry]) -> None:
        """Take the file list of a record."""
        rows = ((e.path, e.kind, e.size, e.digest, e.link, backup_id) for e in entries)
        with self._lock:
            self._database.execute("BEGIN")
            self._database.executemany(_NAMED, rows)
            self._database.execute("COMMIT")

    def name_itself(self, path: str, size: int, digest: str) -> None:
        """Take a record's own file, which no record names."""
        with self._lock:
            self._database.execute(_NAMED, (path, "file", size, digest, "", ""))

    def files(self) -> Iterator[str]:
        """Yield the paths of the files that arrived, in order."""
        for row in self._read("SELECT path FROM arrived WHERE kind = 'file' ORDER BY path"):
            yield row[0]

    def missing(self) -> Iterator[str]:
        """Yield the paths that a record names and that did not arrive, in order."""
        query = (
            "SELECT path FROM named WHERE NOT EXISTS (SELECT 1 FROM arrived a WHERE a.path = named.path) ORDER BY path"
        )
        for row in self._read(query):
            yield row[0]

    def extra(self) -> Iterator[tuple[str, str]]:
        """Yield path and kind of what arrived and no record names, the last one first: files before directories."""
        query = (
            "SELECT path, kind FROM arrived WHERE NOT EXISTS (SELECT 1 FROM named n WHERE n.path = arrived.path) "
            "ORDER BY path DESC"
        )
        for row in self._read(query):
            yield row[0], row[1]

    def different(self) -> Iterator[tuple[str, str]]:
        """Yield the path of each file that is not what the record says, with what is wrong with it, in order."""
        query = (
            "SELECT path, a.kind, n.kind, a.size, n.size, a.digest, n.digest, a.link, n.link, n.backup_id "
            "FROM arrived a JOIN named n USING (path) WHERE (a.kind, a.size, a.digest, a.link) "
            "<> (n.kind, n.size, n.digest, n.link) ORDER BY path"
        )
        for path, kind, named_kind, size, named_size, digest, named_digest, link, named_link, backup_id in self._read(
            query
        ):
            if kind != named_kind:
                what = f"is a {kind}, the record of backup {backup_id} says {named_kind}"
            elif size != named_size:
                what = f"has {size} bytes, the record of backup {backup_id} says {named_size}"
            elif link != named_link:
                what = f'links to "{link}", the record of backup {backup_id} says "{named_link}"'
            else:
                what = f"has the digest {digest}, the record of backup {backup_id} says {named_digest}"
            yield path, what

    def unnamed_files(self) -> int:
        """Return how many files arrived that no record names."""
        [(count,)] = self._read(
            "SELECT count(*) FROM arrived WHERE kind = 'file' "
            "AND NOT EXISTS (SELECT 1 FROM named n WHERE n.path = arrived.path)"
        )
        return int(count)

    def _read(self, query: str) -> Iterator[tuple[str, ...]]:
        with self._lock:
            self._flush()
        with closing(self._database.execute(query)) as cursor:
            yield from cursor

    def _flush(self) -> None:
        if self._rows:
            self._database.executemany(_ARRIVED, self._rows)
            self._rows.clear()
