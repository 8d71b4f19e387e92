"""
Dumps of a stream into databases.

A dump goes from the stream into pg_restore, for a database under a temporary name. The databases take their own names
when the record has come and every dump was what it says; one that was not is dropped. What cannot be taken back, a
database that is filled where it stands, and what cannot be streamed, a dump of many files, waits in ``tmpdir``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from pgkeep.errors import BackupUnusable, FormatError, PgkeepError, RestoreRefused, ServerError, ToolError
from pgkeep.jobs.connection import connection_target
from pgkeep.jobs.streamed.arrivals import Arrivals
from pgkeep.jobs.streamed.restore import ArrivingItem, ItemFailed, read_record, record_of
from pgkeep.jobs.streamed.selection import Selection
from pgkeep.modes.dump_items import Select, Supply
from pgkeep.modes.dump_names import select_names
from pgkeep.modes.dump_restore import DumpRestorer, LoadedDatabase
from pgkeep.modes.dump_restore_plan import DUMP_MODES, DumpRestoreOptions, DumpRestorePlan, DumpTarget, plan_restore
from pgkeep.modes.dump_staging import check_space, staging_directory, write_staged
from pgkeep.modes.parallel_dump_plan import SCHEMA_FILE
from pgkeep.modes.parallel_restore import PartsLoader
from pgkeep.server.connection import Server
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.settings import Resolved
from pgkeep.streams.item import CHUNK_BYTES, Buffer, ItemHeader, ItemKind, StreamedItem
from pgkeep.streams.record import RecordHead, RecordTail


class DumpStream:
    """
    A restore of dumps that passed phase 1; ``close`` ends its session.

    Args:
        plan: What will be done.
        server: Where.
        root: Virtual path of the mode's directory.
        has_record: Whether the record of the backup will come.
    """

    def __init__(self, plan: DumpRestorePlan, server: Server, *, root: str, has_record: bool) -> None:
        self._plan = plan
        self._server = server
        self._root = root
        self._has_record = has_record

    def lines(self) -> Iterator[str]:
        """Yield the plan for people."""
        return self._plan.lines()

    def close(self) -> None:
        """End the session."""
        self._server.close()

    def restore(
        self, arriving: Iterable[ArrivingItem], *, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        """
        Bring the databases back.

        Raises:
            BackupUnusable: A dump did not come whole; the other databases are restored.
            ToolError: pg_restore or psql failed for one; the other databases are restored.
        """
        if not self._has_record:
            warn(f"the record of backup {self._plan.head.backup_id} is not selected: the dumps cannot be checked")
        restorer = DumpRestorer(self._plan, server=self._server, say=say, warn=warn)
        with contextlib.closing(self), contextlib.closing(Arrivals()) as arrivals, contextlib.ExitStack() as held:
            staging = held.enter_context(staging_directory(self._plan.options.tmpdir))
            work = _Work(self._plan, restorer, arrivals, staging, self._root)
            held.callback(work.drop)
            for item in arriving:
                work.take(item)
            work.finish(has_record=self._has_record)


class _Work:
    """The databases of one restore, on their way."""

    def __init__(
        self, plan: DumpRestorePlan, restorer: DumpRestorer, arrivals: Arrivals, staging: Path, root: str
    ) -> None:
        self._plan = plan
        self._restorer = restorer
        self._arrivals = arrivals
        self._staging = staging
        self._root = root
        self._loaded: dict[str, LoadedDatabase] = {}
        self._loaders: dict[str, PartsLoader] = {}
        self._staged: dict[str, list[_StagedItem]] = {}
        self._failed: dict[str, PgkeepError] = {}
        self._is_recorded = False
        self._number = 0

    def take(self, item: ArrivingItem) -> None:
        """Do what can be done with one item at once."""
        path = item.header.path
        target = next((target for target in self._plan.targets if target.selects(path)), None)
        if record_of(path, self._root) == self._plan.head.backup_id:
            read_record(item, self._plan.head.backup_id, self._arrivals)
            self._is_recorded = True
        elif item.header.kind is not ItemKind.FILE:
            self._arrivals.note(item.header, 0, "")
            item.skip()
        elif self._plan.options.include_globals and path == self._plan.details.globals_path:
            # A script that is cut short would be run in part.
            self._restorer.restore_globals(_supply([self._stage(_Noted(item, self._arrivals))]))
        elif target is None:
            item.skip()
        else:
            self._take_dump(target, _Noted(item, self._arrivals))

    def finish(self, *, has_record: bool) -> None:
        """Load what waits, judge all, and let the databases take their names."""
        if has_record and not self._is_recorded:
            raise BackupUnusable(
                f"the record of backup {self._plan.head.backup_id} did not arrive: nobody knows whether its dumps are "
                "whole",
                hint="restore again",
            )
        self._judge()
        for target in self._plan.targets:
            name = target.name
            if name not in self._loaded and name not in self._staged and name not in self._failed:
                self._failed[name] = BackupUnusable(f"{target.path} did not arrive", hint="restore again")
            if name in self._staged and name not in self._failed:
                self._load(target, _supply(self._staged[name]))
            if name in self._loaders and name not in self._failed:
                self._finish_parts(target)
            if name in self._loaded and name not in self._failed:
                self._restorer.publish(self._loaded.pop(name))
        self._raise_failures()

    def drop(self) -> None:
        """Take back what did not get its name."""
        while self._loaders:
            self._loaders.popitem()[1].close()
        while self._loaded:
            self._restorer.drop(self._loaded.popitem()[1])

    def _take_dump(self, target: DumpTarget, item: _Noted) -> None:
        if self._plan.is_parallel and not target.is_filled_in_place:
            self._take_part(target, item)
            return
        if not self._plan.is_parallel:
            # What comes again comes whole; of many parts, one that failed is still missing.
            self._failed.pop(target.name, None)
        try:
            if self._plan.is_parallel or self._plan.format is DumpFormat.DIRECTORY or target.is_filled_in_place:
                staged = self._stage(item)
                others = [one for one in self._staged.get(target.name, []) if one.header.path != staged.header.path]
                self._staged[target.name] = [*others, staged]
                return
            if target.name in self._loaded:
                # It comes twice: the later one counts.
                self._restorer.drop(self._loaded.pop(target.name))
            self._load(target, _supply([item]))
            item.drain()
        except ItemFailed as failure:
            self._failed[target.name] = failure

    def _take_part(self, target: DumpTarget, item: _Noted) -> None:
        """Let one part of a parallel dump be loaded while the next ones come."""
        name = target.name
        if item.header.path == f"{target.path}/{SCHEMA_FILE}":
            # Where all of a dump comes twice, what a job has sent that Bacula went on with, the later one counts.
            self._take_back(name)
            self._failed.pop(name, None)
        try:
            if name not in self._loaded and name not in self._failed:
                self._loaded[name] = self._restorer.begin(target)
                self._loaders[name] = self._restorer.parts_loader(target, self._loaded[name].temporary, self._staging)
            if name in self._loaders:
                self._loaders[name].take(item)
            item.drain()
        except ItemFailed as failure:
            self._give_up(name, failure)
        except (BackupUnusable, FormatError, ServerError) as error:
            self._give_up(name, error)
            item.drain()

    def _finish_parts(self, target: DumpTarget) -> None:
        """Prove that all parts of a database are in."""
        name = target.name
        try:
            self._loaders[name].finish()
            self._restorer.complete(self._loaded[name])
        except (BackupUnusable, FormatError, ServerError) as error:
            self._give_up(name, error)
        else:
            self._loaders.pop(name).close()

    def _give_up(self, name: str, error: PgkeepError) -> None:
        """End the load of one database, and drop what is there of it; the others go on."""
        self._failed.setdefault(name, error)
        self._take_back(name)

    def _take_back(self, name: str) -> None:
        """Drop what is there of one database."""
        if name in self._loaders:
            self._loaders.pop(name).close()
        if name in self._loaded:
            self._restorer.drop(self._loaded.pop(name))

    def _load(self, target: DumpTarget, supply: Supply) -> None:
        try:
            self._loaded[target.name] = self._restorer.load(target, supply)
        except (ToolError, BackupUnusable) as error:
            self._failed[target.name] = error

    def _stage(self, item: _Noted) -> _StagedItem:
        check_space(self._plan.options.tmpdir, max(item.header.size, 0), purpose=f"staging {item.header.path}")
        self._number += 1
        file = self._staging / str(self._number)
        write_staged(file, item.chunks())
        return _StagedItem(item.header, file)

    def _judge(self) -> None:
        """Note which databases are not what the record says, and drop what it does not name."""
        for path, wrong in self._arrivals.different():
            self._fail(path, f"{path} did not arrive as it was backed up: it {wrong}")
        if not self._is_recorded:
            return
        for path in self._arrivals.missing():
            self._fail(path, f"{path} did not arrive")
        extra = {path for path, _ in self._arrivals.extra()} if self._staged else set()
        for name, items in self._staged.items():
            self._staged[name] = [item for item in items if item.header.path not in extra]

    def _fail(self, path: str, message: str) -> None:
        for target in self._plan.targets:
            if target.selects(path):
                self._failed.setdefault(
                    target.name, BackupUnusable(message, hint="restore again, or use another backup")
                )
        if self._plan.options.include_globals and path == self._plan.details.globals_path:
            self._failed.setdefault("", BackupUnusable(message, hint="look at the roles: they were restored from it"))

    def _raise_failures(self) -> None:
        if not self._failed:
            return
        first = next(iter(self._failed.values()))
        names = ", ".join(f'"{name}"' for name in self._failed if name)
        more = f"; not restored: {names}" if names else ""
        raise type(first)(f"{first.message}{more}", hint=first.hint)


class _Noted:
    """An item of the stream whose digest is taken as it passes, and which is read to its end whatever happens."""

    def __init__(self, item: ArrivingItem, arrivals: Arrivals) -> None:
        self.header: ItemHeader = item.header
        self._pieces = item.chunks()
        self._arrivals = arrivals
        self._digest = blake3()
        self._size = 0
        self._is_over = False

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content, or what is left of it."""
        for piece in self._pieces:
            self._digest.update(piece)
            self._size += len(piece)
            yield piece
        if not self._is_over:
            self._is_over = True
            self._arrivals.note(self.header, self._size, self._digest.hexdigest())

    def drain(self) -> None:
        """Read what nobody has read."""
        for _ in self.chunks():
            pass


class _StagedItem:
    """An item that waits in a file."""

    def __init__(self, header: ItemHeader, file: Path) -> None:
        self.header = header
        self._file = file

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content."""
        with open(self._file, "rb") as stream:
            while piece := stream.read(CHUNK_BYTES):
                yield piece


def _supply(items: Sequence[StreamedItem]) -> Supply:
    def supply(select: Select) -> Iterable[StreamedItem]:
        return [item for item in items if select(item.header.path)]

    return supply


def prepare_dump(
    heads: Sequence[tuple[RecordHead, RecordTail]],
    selection: Selection | None,
    *,
    root: str,
    settings: Resolved,
    warn: Callable[[str], None],
) -> DumpStream:
    """
    Phase 1: the newest dump among the restored jobs, and of its databases those that come.

    Raises:
        RestoreRefused: There is none, or something is in the way.
        UsageError, ServerError: See ``plan_restore``.
    """
    dumps = [head for head, _ in heads if head.mode in DUMP_MODES]
    if not dumps:
        raise RestoreRefused(
            "no restore object of a dump is among the restored jobs", hint="restore into files: where=/directory"
        )
    head = max(dumps, key=lambda one: one.backup_id)
    if not head.databases:
        raise RestoreRefused(
            f"backup {head.backup_id} has more databases than its restore object can name",
            hint="restore into files with where=/directory, and load those with pg_restore",
        )
    options = DumpRestoreOptions(
        databases=_databases(head, selection, root, settings, warn),
        new_database=settings.text("new_database") or "",
        tables=settings.text("target_table") or "",
        overwrite_existing=settings.flag("overwrite_existing"),
        include_globals=settings.flag("restore_globals"),
        jobs=settings.number("parallel_jobs"),
        bin_dir=Path(settings.require("bin_dir")) if settings.text("bin_dir") else None,
        tmpdir=Path(settings.require("tmpdir")),
    )
    server = Server.open(connection_target(settings))
    try:
        plan = plan_restore(head, options, server=server, warn=warn)
    except BaseException:
        server.close()
        raise
    has_record = selection is None or head.backup_id in selection.records
    return DumpStream(plan, server, root=root, has_record=has_record)


def _databases(
    head: RecordHead, selection: Selection | None, root: str, settings: Resolved, warn: Callable[[str], None]
) -> tuple[str, ...]:
    """Return the names of the databases that are wanted and will come."""
    wanted = settings.names("target_database")
    names = select_names([database.name for database in head.databases], wanted=wanted, excluded=(), warn=warn)
    if selection is None:
        return tuple(names)
    paths = {database.name: database.path.removeprefix(f"{root}/").partition("/")[0] for database in head.databases}
    coming = [name for name in names if paths[name] in selection.tops]
    lacking = [name for name in names if name not in coming]
    if not coming or (wanted and lacking):
        what = f'the dump of database "{lacking[0]}"' if lacking else "no dump"
        raise RestoreRefused(f"{what} is not selected", hint="mark it in the tree of files, or leave it out")
    return tuple(coming)
