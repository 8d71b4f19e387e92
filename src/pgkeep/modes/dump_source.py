"""A dump job being read: one child after the other, its output on the way to the sink."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import ToolError
from pgkeep.modes.dump_child import ChildItem, DumpChildren, task_of
from pgkeep.modes.dump_plan import DumpPlan
from pgkeep.modes.dump_staging import check_space, size_text
from pgkeep.server.connection import Server
from pgkeep.server.database import DatabaseProperties
from pgkeep.streams.compression import compress
from pgkeep.streams.item import CHUNK_BYTES, UNKNOWN_SIZE, Buffer, Item, ItemHeader, ItemKind
from pgkeep.streams.record import RecordHead


class DumpSource:
    """One dump job being read."""

    def __init__(self, plan: DumpPlan, server: Server, staging: Path | None) -> None:
        self._plan = plan
        self._children = DumpChildren(plan, server)
        self._staging = staging
        self._dumped: list[DatabaseProperties] = []
        self._reading: ChildItem | None = None

    def items(self) -> Iterator[Item]:
        """Yield the globals, then the databases by name."""
        if self._plan.options.include_globals:
            self._reading = self._children.globals_item()
            yield self._reading
        for database in self._plan.databases:
            if not self._children.still_exists(database):
                self._plan.request.warn(f'database "{database.name}" was dropped before it was dumped')
                continue
            if self._staging is None:
                self._reading = self._streamed(database)
                yield self._reading
            else:
                yield from self._staged(database, self._staging / "dump")
            self._dumped.append(database)

    def finish(self) -> RecordHead:
        """Return the record's head."""
        return self._children.head(self._dumped, format_name=self._plan.command.format.value)

    def confirm(self) -> None:
        """Release nothing: a dump holds nothing on the server."""

    def close(self) -> None:
        """End a child that is still being read."""
        if self._reading is not None:
            self._reading.close()

    def _streamed(self, database: DatabaseProperties) -> ChildItem:
        def tell(size_bytes: int, seconds: float) -> None:
            self._tell(database, size_bytes, seconds)

        def explain(error: ToolError, begin: float) -> ToolError:
            return self._children.with_blockers(error, database, begin=begin)

        return ChildItem(
            self._plan.path(database.name),
            self._children,
            program="pg_dump",
            task=task_of(database),
            arguments=self._plan.command.arguments(database.name, via_root=database.name in self._plan.via_root),
            tell=tell,
            explain=explain,
        )

    def _staged(self, database: DatabaseProperties, directory: Path) -> Iterator[Item]:
        """Let pg_dump write *directory*, then yield its files, each removed when it has been read."""
        check_space(self._plan.options.tmpdir, database.size_bytes, purpose=f'staging database "{database.name}"')
        begin = time.monotonic()
        arguments = self._plan.command.arguments(
            database.name, directory=directory, via_root=database.name in self._plan.via_root
        )
        try:
            with self._children.run("pg_dump", task_of(database), arguments, gives_output=False) as program:
                program.finish()
                self._children.tell_warnings(program)
        except ToolError as error:
            raise self._children.with_blockers(error, database, begin=begin) from error
        root = self._plan.path(database.name)
        yield _DirectoryItem(ItemHeader(root, ItemKind.DIRECTORY, mtime_ns=time.time_ns(), file_mode=0o700))
        size_bytes = 0
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            status = (directory / name).stat()
            size_bytes += status.st_size
            yield _StagedFile(
                ItemHeader(
                    path=f"{root}/{name}{self._plan.suffix}",
                    size=UNKNOWN_SIZE if self._plan.suffix else status.st_size,
                    mtime_ns=status.st_mtime_ns,
                ),
                directory / name,
                self._plan,
            )
            (directory / name).unlink()
        directory.rmdir()
        self._tell(database, size_bytes, time.monotonic() - begin)

    def _tell(self, database: DatabaseProperties, size_bytes: int, seconds: float) -> None:
        self._plan.request.say(
            f'database "{database.name}": {size_text(size_bytes)} dumped in {seconds:.1f} s, '
            f"database size {size_text(database.size_bytes)}"
        )


@dataclass(frozen=True, slots=True)
class _DirectoryItem:
    header: ItemHeader

    def chunks(self) -> Iterator[Buffer]:
        return iter(())


@dataclass(frozen=True, slots=True)
class _StagedFile:
    """One file of a staged dump, read once."""

    header: ItemHeader
    file: Path
    plan: DumpPlan

    def chunks(self) -> Iterator[Buffer]:
        if self.plan.is_compressed_by_pg_dump:
            return self._read()
        return compress(self._read(), self.plan.compression, self.plan.compression_level)

    def _read(self) -> Iterator[Buffer]:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with open(self.file, "rb", buffering=0) as stream:
            while length := stream.readinto(buffer):
                yield buffer[:length]
