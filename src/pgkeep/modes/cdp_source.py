"""Mode cdp, a backup being read: the segments, one after the other, and the record's head."""

from __future__ import annotations

import datetime as dt
import socket
import time
from collections.abc import Callable, Iterator

from pgkeep import __version__
from pgkeep.errors import ArchiveError, ServerError
from pgkeep.modes.cdp import CdpPlan
from pgkeep.modes.contract import BackupRequest
from pgkeep.modes.lasting_slot import make_lasting_slot
from pgkeep.modes.wal_items import WalItem, history_item
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment
from pgkeep.server.connection import Server
from pgkeep.server.slots import advance_slot
from pgkeep.server.wal_supply import NotThere
from pgkeep.spool.reading import HeldSegment
from pgkeep.streams.item import Buffer, Item, ItemHeader, ItemRole
from pgkeep.streams.record import RecordHead, WalRange
from pgkeep.vault.wal_holes import read_holes


class CdpSource:
    """The WAL of one plan."""

    def __init__(self, plan: CdpPlan, server: Server | None) -> None:
        self._plan = plan
        self._server = server
        self._warnings: list[str] = [plan.reason] if plan.reason else []
        self._first: WalSegment | None = None
        self._last: WalSegment | None = None
        self._sent = 0
        plan.request.say(f"starting cdp backup from {plan.wal.where}, {plan.level.word}")
        self._release()
        if plan.wal.slot and server is not None:
            self._ready_slot(server)

    def close(self) -> None:
        """End the conversation with the server."""
        if self._plan.wal.stream is not None:
            self._plan.wal.stream.close()

    def confirm(self) -> None:
        """Do nothing: that the job succeeded is known when the next one begins, see ``_release``."""

    def items(self) -> Iterator[Item]:
        """
        Yield the segments from the plan's begin to its end.

        Raises:
            ArchiveError: One of them is not to be had: there would be a hole.
        """
        plan, wal = self._plan, self._plan.wal
        self._warn_of_gap()
        if wal.history_text:
            yield history_item(plan.request.root, wal.history.timeline, wal.history_text, mtime_ns=time.time_ns())
        for segment in wal.segments(plan.begin, plan.end):
            held = wal.spool.open(segment) if wal.spool is not None else None
            try:
                # Without a stream the end is that of the spool's last segment, which was read to find it.
                is_last = wal.stream is None and segment.end_lsn > plan.end
                if held is not None and (held.is_complete or is_last):
                    yield self._item(segment, held.pieces, is_whole=held.is_complete, received_ns=held.received_ns)
                else:
                    yield self._streamed(segment, held)
            finally:
                if held is not None:
                    held.close()
            self._first, self._last = self._first or segment, segment
            self._sent += 1
        first, last = self._first, self._last
        if first is not None and last is not None:
            plan.request.say(
                f"WAL from {plan.begin.lsn} to {plan.end} on timeline {wal.history.timeline}, without a hole: "
                f"{first.name}..{last.name} ({self._sent} segs)"
            )

    def finish(self) -> RecordHead:
        """Return the record's head."""
        plan, wal = self._plan, self._plan.wal
        server = self._server
        base = plan.base.head.backup_id if plan.base is not None else ""
        return RecordHead(
            backup_id=plan.backup_id,
            cluster=plan.request.cluster,
            mode=plan.request.mode,
            level=plan.level,
            base=base,
            pgkeep_version=__version__,
            server_version=server.version if server is not None else 0,
            server_version_text=server.version_text if server is not None else "",
            system_identifier=str(int(wal.system_identifier)),
            timeline=int(wal.history.timeline),
            begin_time=_iso(plan.request.begin),
            end_time=_iso(dt.datetime.now(dt.UTC)),
            # What was committed by then is in this WAL.
            stop_time=_iso(dt.datetime.fromtimestamp(wal.proved_ns / 1e9, dt.UTC)) if wal.proved_ns else "",
            transport=plan.transport,
            host=socket.gethostname(),
            history=wal.history_text,
            wal=WalRange(
                timeline=int(wal.history.timeline),
                start=str(plan.begin.lsn),
                stop=str(plan.end),
                segment_size=wal.segment_size,
                first_segment=self._first.name if self._first is not None else "",
                last_segment=self._last.name if self._last is not None else "",
            ),
            wal_gaps=self._gaps(),
            warnings=self._warnings,
        )

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._plan.request.warn(text)

    def _release(self) -> None:
        """Remove from the spool what jobs hold that are known to have succeeded."""
        spool, say = self._plan.wal.spool, self._plan.request.say
        if spool is None:
            return
        removed = sum(spool.remove(name) for name in self._plan.removable)
        kept = len(spool.segments())
        if removed:
            say(f"{removed} segments left the spool: jobs hold them that have succeeded")
        say(f"the spool has {kept} segments, {kept * spool.segment_size >> 20} MiB")

    def _ready_slot(self, server: Server) -> None:
        """Make the slot that keeps WAL from this job to the next, or let it forget what is held."""
        plan, wal = self._plan, self._plan.wal
        slot = make_lasting_slot(server, wal.slot, allow_unbounded=plan.request.options.allow_unbounded_slot)
        if slot is None:
            plan.request.say(f'slot "{wal.slot}" was made: it keeps the WAL between jobs at the server')
        elif plan.held is not None and plan.held.timeline == wal.history.timeline:
            # This job may begin before what others hold, and reads its WAL from the server yet.
            needless = min(plan.held.lsn, plan.begin.lsn)
            try:
                if (slot.restart_lsn or needless) < needless:
                    advance_slot(server, wal.slot, needless)
            except ServerError as error:
                self._warn(f'slot "{wal.slot}" was not advanced, it keeps WAL at the server: {error}')

    def _streamed(self, segment: WalSegment, held: HeldSegment | None) -> Item:
        plan, wal = self._plan, self._plan.wal
        if wal.stream is None:
            found = f"only up to {held.end}" if held is not None else "not there"
            raise self._hole(segment, f"{segment.name} is {found} in {wal.where}")
        try:
            through = min(plan.end, segment.end_lsn)
            content = wal.stream.fetch(segment, through=through, deadline=time.monotonic() + wal.timeout_seconds)
        except NotThere as error:
            raise self._hole(segment, error.message) from error
        if held is None:
            return self._item(segment, content.chunks, is_whole=not content.is_partial)
        return self._item(segment, lambda: held.check(content.chunks()), is_whole=not content.is_partial)

    def _hole(self, segment: WalSegment, reason: str) -> ArchiveError:
        spool = self._plan.wal.spool
        for hole in read_holes(spool.path) if spool is not None else []:
            if Lsn.parse(hole.start) < segment.end_lsn and segment.start_lsn < Lsn.parse(hole.stop):
                reason = f"HOLE: the WAL from {hole.start} to {hole.stop} was never received ({hole.reason})"
        return ArchiveError(
            f"the WAL from {self._plan.begin.lsn} to {self._plan.end} is not complete: {reason}",
            hint="make a base backup now, and then a Full of this job",
        )

    def _warn_of_gap(self) -> None:
        gap = self._plan.gap
        if gap is not None:
            self._warn(
                f"GAP: the WAL from {gap[0]} to {gap[1]} is not here any more. It came after the newest base backup "
                "that is known to have succeeded: make a base backup, or restore earlier jobs as well"
            )

    def _gaps(self) -> list[WalRange]:
        gap, wal = self._plan.gap, self._plan.wal
        if gap is None:
            return []
        return [
            WalRange(
                timeline=int(wal.history.timeline), start=str(gap[0]), stop=str(gap[1]), segment_size=wal.segment_size
            )
        ]

    def _item(
        self,
        segment: WalSegment,
        chunks: Callable[[], Iterator[Buffer]],
        *,
        is_whole: bool,
        received_ns: int | None = None,
    ) -> Item:
        # Nothing in it is later than the time of the file; until when nothing is missing, the record says.
        written_ns = received_ns if received_ns is not None else time.time_ns()
        path = wal_path(self._plan.request, segment, is_whole=is_whole)
        header = ItemHeader(path=path, size=segment.size, mtime_ns=written_ns, role=ItemRole.WAL)
        return WalItem(header, chunks)


def wal_path(request: BackupRequest, segment: WalSegment, *, is_whole: bool) -> str:
    """Return the virtual path of *segment*, whole or as far as it goes."""
    return f"{request.root}/wal/{segment.name}{'' if is_whole else PARTIAL_SUFFIX}"


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
