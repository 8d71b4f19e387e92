"""
A restore of a cluster whose items come once, in an order that is not ours, and cannot be asked for again.

The heads of the backups come first and phase 1 judges by them. Files are laid down as they come, WAL goes into a vault
beside the data directory, and the record comes after the files that it names: only then is it known what is missing,
wrong or too much. Until that is settled the target is marked as unfinished.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from pgkeep.datadir.beneath import Beneath
from pgkeep.errors import BackupUnusable, FormatError, PgkeepError
from pgkeep.jobs.recovery.history import held_along
from pgkeep.jobs.recovery.plan import with_wal_content
from pgkeep.jobs.restore import RestoreResult, restore
from pgkeep.jobs.restoring.directory import RestoreDirectory
from pgkeep.jobs.restoring.old_wal import OldWal
from pgkeep.jobs.restoring.own_configuration import outside_state
from pgkeep.jobs.restoring.plan import PreparedRestore, check_later_tablespaces
from pgkeep.jobs.restoring.private_wal import PrivateWal
from pgkeep.jobs.restoring.request import RestoreRequest
from pgkeep.jobs.restoring.unfinished import is_unfinished
from pgkeep.jobs.streamed.arrivals import Arrivals
from pgkeep.pg.lsn import Timeline
from pgkeep.streams.item import Buffer, ItemHeader, ItemKind, StreamedItem
from pgkeep.streams.record import RecordHead
from pgkeep.streams.record_io import RecordReader
from pgkeep.streams.scripts import is_script
from pgkeep.vault.wal_view import WalView

MANIFEST = "_manifest.json"
_SAID = 5
"""How many files a message names."""


TakeBeside = Callable[[PrivateWal], None]
"""Puts WAL into its place that came another way than the stream; raises PgkeepError when it did not come."""


class ItemFailed(BackupUnusable):
    """An item did not arrive whole; the stream goes on with the next one."""


class ArrivingItem(StreamedItem, Protocol):
    """An item of a stream: it is read, or skipped, before the next one comes; reading it may raise ItemFailed."""

    @property
    def owner(self) -> tuple[int, int]:
        """The numbers of the owning user and group."""
        ...

    def skip(self) -> None:
        """Say that nothing of it is wanted."""
        ...


def record_of(path: str, root: str) -> str:
    """Return the id of the backup whose record has virtual *path*; empty when that is another file."""
    inside = path.removeprefix(f"{root}/")
    backup_id, _, name = inside.partition("/")
    return backup_id if inside != path and name == MANIFEST else ""


def read_record(
    item: StreamedItem,
    backup_id: str,
    arrivals: Arrivals,
    *,
    is_left_out: Callable[[str], bool] = lambda _path: False,
) -> RecordHead:
    """Take the record *item* of *backup_id*: what is not left out of its list into *arrivals*; return its head."""
    reader = RecordReader(map(_copied, item.chunks()), name=f"the record of backup {backup_id}")
    if reader.head.backup_id != backup_id:
        raise FormatError(f"the record of backup {backup_id} says that it is that of {reader.head.backup_id}")
    arrivals.name(backup_id, (entry for entry in reader.files() if not is_left_out(entry.path)))
    return reader.head


def _copied(chunk: Buffer) -> bytes:
    return bytes(chunk)


class ClusterStream:
    """
    The supply and the ledger of one restore of a cluster.

    Args:
        prepared: What passed phase 1.
        wal: Where its WAL goes.
        arriving: The stream.
        arrivals: Empty.
        take_beside: Called when all has come: puts WAL into its place that came another way.
    """

    def __init__(
        self,
        prepared: PreparedRestore,
        wal: PrivateWal,
        arriving: Iterable[ArrivingItem],
        arrivals: Arrivals,
        take_beside: TakeBeside,
    ) -> None:
        self._prepared = prepared
        self._base = prepared.request.base
        self._root = str(self._base.details["root"])
        self._wal = wal
        self._arriving = arriving
        self._arrivals = arrivals
        self._take_beside = take_beside
        self._chain = prepared.request.chain
        # The record of a chain's last backup is not enough: each says what must have come of it.
        self._members = frozenset(self._chain or (self._base.backup_id,))
        self._heads: dict[str, RecordHead] = {}
        self.is_settled = False

    def items(self) -> Iterator[StreamedItem]:
        """Yield what belongs into the data directory; take the rest."""
        for item in self._arriving:
            path = item.header.path
            backup_id = record_of(path, self._root)
            if path.startswith(f"{self._root}/wal/"):
                self._take_wal(item)
            elif backup_id in self._members:
                self._heads[backup_id] = read_record(item, backup_id, self._arrivals, is_left_out=self._is_left_out)
            elif backup_id or path == self._root or is_script(path, self._root) or self._is_left_out(path):
                # Of a backup whose files are not the ones restored, the mode's own directory, or for people to read.
                item.skip()
            else:
                yield item

    def note(self, header: ItemHeader, size: int, digest: str) -> None:
        """Take note of what was laid down."""
        self._arrivals.note(header, size, digest)

    def settle(self) -> RecordHead:
        """Compare with the record, remove what it does not name, prove the WAL; return the record's head."""
        base = self._base
        for backup_id in sorted(self._members - self._heads.keys()):
            raise BackupUnusable(
                f"the record of backup {backup_id} did not arrive: nobody knows whether its files are whole",
                hint="restore again with everything of the job selected; another backup may be whole",
            )
        check_against_records(self._arrivals, f"backup {base.backup_id}")
        if not self._chain:
            # Rolling a chain forward has removed what the manifests do not name.
            self._remove_extra()
        self._take_beside(self._wal)
        self._prove_wal()
        self._look_into_wal()
        self._wal.hand_over()
        self.is_settled = True
        return self._heads[base.backup_id]

    def _is_left_out(self, path: str) -> bool:
        """
        Tell whether nothing at *path* is restored.

        That is what is in a tablespace which the base has no more (without Accurate its files still come), and what is
        of a backup outside the chain.
        """
        inside = path.removeprefix(f"{self._root}/")
        if self._chain and not inside.startswith("wal/"):
            backup_id, _, inside = inside.partition("/")
            if backup_id not in self._members:
                return True
        top, _, rest = inside.partition("/")
        oid = rest.partition("/")[0]
        return top == "tblspc" and oid.isdecimal() and int(oid) not in self._prepared.target.tablespaces

    def _take_wal(self, item: ArrivingItem) -> None:
        if item.header.kind is not ItemKind.FILE:
            item.skip()
            return
        size, digest = self._wal.take(item)
        self._arrivals.note(item.header, size, digest)

    def _remove_extra(self) -> None:
        target = self._prepared.target
        removed = 0
        places = {directory: Beneath(directory, owner=target.owner) for directory in target.directories}
        try:
            for path, kind in self._arrivals.extra():
                if path.startswith(f"{self._root}/wal/"):
                    continue
                directory, inside = target.place(path.removeprefix(f"{self._root}/"))
                if kind == ItemKind.DIRECTORY.value:
                    try:
                        os.rmdir(directory / inside)
                    except OSError:
                        # Something that the record names is in it.
                        continue
                else:
                    places[directory].remove_tree(inside)
                    removed += 1
        finally:
            for beneath in places.values():
                beneath.close()
        if removed:
            self._prepared.request.say(
                f"removed {removed} files of earlier backups that were gone when {self._base.backup_id} was made"
            )

    def _prove_wal(self) -> None:
        recovery = self._prepared.request.recovery
        held = held_along(
            recovery.history,
            Timeline(self._base.timeline),
            recovery.wal_start,
            self._wal.archive.segment_size,
            WalView(self._wal.archive),
        )
        if held < recovery.archived_end:
            raise BackupUnusable(
                f"WAL did not arrive as promised: it ends at {held}, expected {recovery.archived_end}",
                hint="restore again; when it is lost, ask for a target before that LSN",
            )

    def _look_into_wal(self) -> None:
        """
        Refuse what phase 1 could not see: no server is started that would miss its target or harm another one.

        Raises:
            RestoreRefused: The WAL does not lead to the target, or makes a tablespace where somebody's files are.
        """
        prepared = self._prepared
        request, recovery = prepared.request, prepared.request.recovery
        with WalView(self._wal.archive, tell=request.say) as view:
            found = with_wal_content(recovery, view, view.times)
        check_later_tablespaces(replace(request, recovery=found), prepared.target)
        for note in found.notes[len(recovery.notes) :]:
            request.say(f"note: {note}")


def check_against_records(arrivals: Arrivals, what: str) -> None:
    """Raise BackupUnusable when something that the records name did not arrive, or arrived with other content."""
    missing, first = 0, []
    for path in arrivals.missing():
        missing += 1
        if missing <= _SAID:
            first.append(path)
    if missing:
        more = f" and {missing - _SAID} more" if missing > _SAID else ""
        raise BackupUnusable(
            f"{missing} files of {what} did not arrive: {', '.join(first)}{more}",
            hint="restore again with everything of the job selected; if they are lost, use another backup",
        )
    for path, wrong in arrivals.different():
        raise BackupUnusable(
            f"{path} did not arrive as it was backed up: it {wrong}", hint="restore again, or use another backup"
        )


def restore_stream(
    prepared: PreparedRestore,
    wal: PrivateWal,
    arriving: Iterable[ArrivingItem],
    *,
    old: OldWal | None = None,
    say: Callable[[str], None],
    take_beside: TakeBeside,
) -> RestoreResult:
    """
    Run phases 2 to 6 of a prepared restore with the items of a stream, and the *old* WAL where that leads further.

    The directory of WAL goes when nobody needs it any more; the log says where it is as long as somebody does.

    Raises:
        PgkeepError: A phase failed; see ``jobs/restore.py``.
    """
    request = prepared.request
    arrivals = Arrivals()
    stream = ClusterStream(prepared, wal, arriving, arrivals, take_beside)
    with contextlib.closing(arrivals), request.audit.kept() if request.audit is not None else contextlib.nullcontext():
        if request.unfinished is not None and request.unfinished.phases_done > 1:
            # An earlier run of the same restore has them.
            for item in arriving:
                item.skip()
            result = restore(prepared, stream)
        else:
            try:
                wal.begin(goes_on=request.unfinished is not None)
                if old is not None:
                    wal.take_old(old)
                result = restore(prepared, stream, ledger=stream)
            except BaseException:
                _keep_or_remove(wal, request)
                raise
    if result.end is not None and (result.end.is_promoted or request.standby is not None):
        wal.remove()
    else:
        if result.end is None:
            say(f"to start it: {start_command(request)}")
        say(f"the WAL for the replay is in {wal.directory}: remove that when the server is through")
    return result


def _keep_or_remove(wal: PrivateWal, request: RestoreRequest) -> None:
    """Remove the WAL of a restore that failed, unless somebody may need it; the error on its way stays the first."""
    with contextlib.suppress(PgkeepError):
        try:
            state = RestoreDirectory(request.data_directory).read()
        except PgkeepError as error:
            request.warn(f"{error.message}; the WAL of this restore stays in {wal.directory}")
            return
        # Complete, it may have been started: its recovery can still be brought to an end. And what the old pg_wal had
        # may be nowhere else.
        if state is not None and is_unfinished(state) and (state.phases_done > 1 or wal.has_old_wal):
            request.say(f"the WAL of this restore stays in {wal.directory}")
        else:
            wal.remove()


def start_command(request: RestoreRequest) -> str:
    """Return what starts the restored server, for the log."""
    program = request.toolbox.program("pg_ctl") if request.toolbox is not None else "pg_ctl"
    outside = outside_state(request.base, is_in_place=not request.is_copy, may_replace=False).own_config_file
    configured = f" -o '-c config_file={outside}'" if outside is not None else ""
    return f"{program} -D {request.data_directory}{configured} -l {request.data_directory}.log start"
