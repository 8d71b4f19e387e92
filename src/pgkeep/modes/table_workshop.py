"""The database of a temporary name in which the schema of a dump stands while some of its tables are restored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pgkeep.errors import BackupUnusable, PgkeepError, ToolError
from pgkeep.modes.dump_items import Supply
from pgkeep.modes.dump_staging import check_space, write_staged
from pgkeep.modes.parallel_dump_plan import DATA_DIRECTORY, SCHEMA_FILE
from pgkeep.modes.table_rows import Chunks, RowSource
from pgkeep.server.client_program import ClientProgram
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.pg_restore import finish_restore, with_tar_end
from pgkeep.server.table_catalog import CatalogTable, TableName
from pgkeep.server.table_ddl import rows_listed, statements_of
from pgkeep.server.table_facts import names_in_encoding
from pgkeep.streams.compression import Compression, decompress
from pgkeep.streams.item import Buffer, ItemKind, content_of

if TYPE_CHECKING:
    import psycopg

_SECTIONS = ("pre-data", "post-data")

Content = Callable[[], Iterator[Buffer]]


class Programs(Protocol):
    """PostgreSQL's programs, as the workshop needs them; each is a child that ends on leaving."""

    def load(
        self, archive: Path | None, *, section: str, listing: Path | None = None
    ) -> AbstractContextManager[ClientProgram]:
        """Let pg_restore load one section, from *archive* or from standard input; *listing* chooses entries."""
        ...

    def list(self, archive: Path | None) -> AbstractContextManager[ClientProgram]:
        """Let pg_restore list an archive."""
        ...

    def define(self, relations: Sequence[TableName], section: str) -> AbstractContextManager[ClientProgram]:
        """Let pg_dump write the definitions of *relations* in the workshop."""
        ...


class TableWorkshop:
    """
    The workshop of one dump; see ``table_restore.py``.

    Args:
        dbname: Its name; the database is empty.
        path: Virtual path of the dump, or of the directory of its parts.
        supply: Gives its items.
        encoding: Of the dumped database, which its archive has too.
        dump_format: Of the archives.
        compression: What is to be undone before pg_restore can read.
        is_parallel: Whether it is a parallel dump.
        staging: A directory for what cannot be streamed.
        tmpdir: Where that is, for messages.
        programs: PostgreSQL's.
        knows_transaction_timeout: Whether the server knows that setting.
        where: The server's place, for messages.
    """

    def __init__(
        self,
        dbname: str,
        path: str,
        supply: Supply,
        *,
        encoding: str,
        dump_format: DumpFormat,
        compression: Compression,
        is_parallel: bool,
        staging: Path,
        tmpdir: Path,
        programs: Programs,
        knows_transaction_timeout: bool,
        where: str,
    ) -> None:
        self.dbname = dbname
        self._path = path
        self._supply = supply
        self._encoding = encoding
        self._compression = compression
        self._staging = staging
        self._tmpdir = tmpdir
        self._programs = programs
        self._knows_transaction_timeout = knows_transaction_timeout
        self._where = where
        self._chunks = Chunks(path, supply, compression) if is_parallel else None
        self._archive: Path | Content = self._rest if is_parallel else self._whole
        if dump_format is DumpFormat.DIRECTORY:
            self._archive = self._staged_directory()
        elif dump_format is DumpFormat.TAR:
            # pg_restore cannot pass over a member of a tar that it reads from a pipe.
            self._archive = self._staged("dump.tar", with_tar_end(self._whole()))
        schema = self._staged("schema.dump", self._content(f"{path}/{SCHEMA_FILE}")) if is_parallel else self._archive
        for section in _SECTIONS:
            self._load(schema, section)

    def define(self, relations: Sequence[TableName], section: str) -> bytes:
        """Return the statements that define *relations*, those of one section."""
        with self._programs.define(relations, section) as child:
            script = b"".join(bytes(chunk) for chunk in child.chunks())
            child.finish()
        return statements_of(script, knows_transaction_timeout=self._knows_transaction_timeout)

    def rows(self, tables: Sequence[CatalogTable], session: psycopg.Connection[Any]) -> RowSource:
        """Return where the rows of *tables* are; *session* is one in the workshop."""
        return RowSource(tables, self._chunks, session, fill=partial(self._fill, session), where=self._where)

    def _fill(self, session: psycopg.Connection[Any], tables: Sequence[TableName]) -> None:
        """Load what pg_dump copied of *tables*, and the values of sequences."""
        if self._chunks is not None and not (self._chunks.is_one_archive or self._chunks.complete.data_pieces):
            return
        listing = self._staging / "rows.list"
        stored = names_in_encoding(session, [f"{one.schema} {one.name}" for one in tables], self._encoding)
        listing.write_bytes(rows_listed(self._listed(), tables, as_stored=stored))
        self._load(self._archive, "data", listing)

    def _load(self, archive: Path | Content, section: str, listing: Path | None = None) -> None:
        file = archive if isinstance(archive, Path) else None
        with self._programs.load(file, section=section, listing=listing) as child:
            if not isinstance(archive, Path):
                _feed(child, archive())
            finish_restore(child)

    def _listed(self) -> bytes:
        """Return the list of what is in the archive, which stands at its beginning."""
        archive = self._archive
        errors: list[PgkeepError] = []
        with self._programs.list(archive if isinstance(archive, Path) else None) as child:

            def feed(content: Iterator[Buffer]) -> None:
                try:
                    _feed(child, content)
                except PgkeepError as error:
                    errors.append(error)
                    child.terminate()

            feeder = None
            if not isinstance(archive, Path):
                # It answers before it has read all, and then waits until it is read itself.
                feeder = threading.Thread(target=feed, args=(archive(),), name="list", daemon=True)
                feeder.start()
            listing = b"".join(bytes(chunk) for chunk in child.chunks())
            if feeder is not None:
                feeder.join()
            if errors:
                raise errors[0]
            child.finish()
        return listing

    def _whole(self) -> Iterator[Buffer]:
        """Yield a dump that is one file."""
        return decompress(self._content(self._path), self._compression)

    def _rest(self) -> Iterator[Buffer]:
        """Yield the archive of what workers did not copy, piece by piece."""
        assert self._chunks is not None
        directory = f"{self._path}/{DATA_DIRECTORY}/"
        pieces = sorted(self._supply(lambda path: path.startswith(directory)), key=lambda item: item.header.path)
        if len(pieces) != self._chunks.complete.data_pieces:
            raise BackupUnusable(
                f"{directory.rstrip('/')} has {len(pieces)} pieces, expected {self._chunks.complete.data_pieces}",
                hint="restore again; if it is lost, use another backup",
            )
        if self._chunks.is_one_archive:
            yield from self._content(f"{self._path}/{SCHEMA_FILE}")
        for item in pieces:
            yield from decompress(content_of(item), self._compression)

    def _content(self, path: str) -> Iterator[Buffer]:
        found = False
        for item in self._supply(path.__eq__):
            found = True
            yield from content_of(item)
        if not found:
            raise BackupUnusable(f"{path} is missing", hint="use another backup")

    def _staged(self, name: str, content: Iterator[Buffer]) -> Path:
        write_staged(self._staging / name, content)
        return self._staging / name

    def _staged_directory(self) -> Path:
        """Return a directory with the files of a dump in directory format."""
        directory = self._staging / "dump"
        directory.mkdir()
        for item in self._supply(lambda path: path.startswith(f"{self._path}/")):
            if item.header.kind is ItemKind.FILE:
                check_space(self._tmpdir, max(item.header.size, 0), purpose=f"staging {self._path}")
                name = item.header.path.removeprefix(f"{self._path}/").removesuffix(self._compression.suffix)
                if "/" in name:
                    raise BackupUnusable(f"not a file of a dump in directory format: {item.header.path}")
                write_staged(directory / name, decompress(content_of(item), self._compression))
        return directory


def _feed(child: ClientProgram, content: Iterator[Buffer]) -> None:
    """Feed *child*, which may end well before it has read everything."""
    try:
        child.feed(content)
    except ToolError:
        finish_restore(child)
