"""
The WAL that a physical backup carries: where it comes from, what keeps it meanwhile, and what it is as items.

Every backup carries the WAL from the end of the job before it up to its own end. Of that, a base backup needs what
was written from its start to its stop to become consistent; the rest is there so that no cycle has a hole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pgkeep.errors import ArchiveError, ServerError, SettingsError
from pgkeep.modes.contract import Say
from pgkeep.modes.lasting_slot import make_lasting_slot
from pgkeep.modes.physical_base import ServerFacts
from pgkeep.modes.wal_items import WalItem, history_item
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.pg.wal import PARTIAL_SUFFIX, WalSegment
from pgkeep.pg.wal_joints import LastRecord, may_begin_at
from pgkeep.server import queries
from pgkeep.server.archive_command import derive_archive_directory
from pgkeep.server.connection import Server
from pgkeep.server.slots import TemporarySlot, advance_slot, check_slot
from pgkeep.server.streamed_wal import StreamedWal
from pgkeep.server.wal_files import ArchiveDirectory, LocalWal
from pgkeep.server.wal_supply import FirstOf, NotThere, WalContent, WalSupply
from pgkeep.streams.item import Buffer, Item, ItemHeader, ItemRole
from pgkeep.streams.record import WalRange

_SLOT_RELEASE_SECONDS = 10.0
"""How long the server may take to notice that nobody streams from the slot any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalOptions:
    """
    How the WAL of a backup is found.

    Attributes:
        archive_dir: A local directory where the server archives; ``auto`` to derive it from ``archive_command``, empty
            for none.
        slot_name: A lasting physical slot that keeps WAL between jobs; empty for none.
        allow_unbounded_slot: Make that slot although nothing bounds what it keeps.
        switch_wal: End the current segment, so that it is complete, when a backup without files ends.
        timeout_seconds: How long to wait for each segment.
        wait_for_archive: Let ``pg_backup_stop`` wait until the server has archived the backup's WAL.
    """

    archive_dir: str = "auto"
    slot_name: str = ""
    allow_unbounded_slot: bool = False
    switch_wal: bool = True
    timeout_seconds: float = 60
    wait_for_archive: bool = False


class CarriedWal:
    """
    The WAL of one backup.

    Attributes:
        carried: What was carried; None before ``items`` is through.
        gaps: What could not be had any more.
        segments: How many segments passed.
        has_switched: Whether ``stop_without_files`` ended the current segment.
    """

    def __init__(
        self,
        server: Server,
        facts: ServerFacts,
        options: WalOptions,
        *,
        root: str,
        files_root: str,
        is_local: bool,
        held: WalPosition | None,
        given_up: WalPosition | None,
        say: Say,
        warn: Say,
    ) -> None:
        self.carried: WalRange | None = None
        self.gaps: list[WalRange] = []
        self.segments = 0
        self.has_switched = False
        # Where the last record begins, where WAL was carried to a segment's end.
        self._last_record: Lsn | None = None
        # What was committed by then is in the WAL that is carried; of later commits nobody knows.
        self._written_ns = time.time_ns()
        self._server = server
        self._facts = facts
        self._options = options
        self._root = root
        self._files_root = files_root
        self._held = held
        self._given_up = given_up
        self._say = say
        self._warn = warn
        if given_up is not None:
            # An archive may have other WAL under the same names: that of the past that was given up.
            options = replace(options, archive_dir="")
        self._supply = choose_supply(server, facts, options, is_local=is_local)
        self._slot = None if options.slot_name else TemporarySlot(server)
        if options.slot_name:
            make_lasting_slot(server, options.slot_name, allow_unbounded=options.allow_unbounded_slot)

    def close(self) -> None:
        """Let the server forget what was kept for this job alone."""
        self._supply.close()
        if self._slot is not None:
            self._slot.close()

    def items(self, *, start: WalPosition | None, stop: WalPosition) -> Iterator[Item]:
        """
        Yield the segments up to *stop*, oldest first, and the history file of its timeline.

        Args:
            start: Where the base backup starts; None when this backup holds no files.
            stop: Where it ends.

        Raises:
            ArchiveError: WAL that this backup cannot do without is gone.
        """
        size = self._facts.segment_size
        begin = self._begin(start)
        if stop.timeline > 1:
            yield self._history_item(stop.timeline, is_needed=start is not None)
        first: WalSegment | None = None
        last: WalSegment | None = None
        needed_from = start.lsn // size if start is not None else stop.lsn // size + 1
        segments = self._facts.history.segments(begin.lsn, start_timeline=begin.timeline, end=stop.lsn, size=size)
        missing: list[WalSegment] = []
        for segment in segments:
            is_needed = segment.number >= needed_from
            content = self._fetch(segment, stop.lsn, may_lack=start is not None and not is_needed)
            if content is None:
                missing.append(segment)
                continue
            if start is not None and segment.start_lsn < stop.lsn < segment.end_lsn:
                content = self._checked_last(content, stop.lsn)
            yield from self._segment_items(content, stop.lsn, is_needed=is_needed)
            self.segments += 1
            first, last = first or segment, segment
        self._note_gap(missing)
        if start is not None and self._given_up is not None:
            self._note_given_up(self._given_up, start)
        self.carried = WalRange(
            timeline=int(stop.timeline),
            start=str(missing[-1].end_lsn if missing else begin.lsn),
            stop=str(stop.lsn),
            segment_size=size,
            first_segment=first.name if first is not None else "",
            last_segment=last.name if last is not None else "",
            last_record=str(self._last_record) if self._last_record is not None else "",
        )
        if first is not None and last is not None:
            self._say(f"WAL segs shipped: {first.name}..{last.name} ({self.segments} segs)")

    def stop_without_files(self) -> WalPosition:
        """End the current segment where that is wanted and possible, and return up to where WAL can be carried."""
        timeline = self._facts.identity.timeline
        size = self._facts.segment_size
        if self._facts.identity.is_in_recovery or not self._options.switch_wal:
            flushed = queries.flushed_lsn(self._server)
            end = Lsn(flushed - flushed % size)
            if self._facts.identity.is_in_recovery and end < flushed:
                self._say(
                    f"a standby cannot end a segment: WAL is carried up to {end}, the next backup carries the rest"
                )
            return WalPosition(timeline, end)
        # The switch leaves the segment, whose rest is of no account: it is complete from here on. On a segment's
        # very start there is nothing to switch, and the function returns just that position.
        self._written_ns = time.time_ns()
        left_at = queries.switch_wal(self._server)
        self.has_switched = True
        return WalPosition(timeline, WalSegment.ending_at(left_at, timeline=timeline, size=size).end_lsn)

    def release(self, confirmed: Lsn) -> None:
        """Let the lasting slot forget the WAL before *confirmed*, which is held now; a failure is a warning."""
        if not self._options.slot_name:
            return
        # A slot that is streamed from cannot be moved, not even by whoever streams.
        self._supply.close()
        try:
            advance_slot(self._server, self._options.slot_name, confirmed, timeout_seconds=_SLOT_RELEASE_SECONDS)
        except ServerError as error:
            self._warn(f'slot "{self._options.slot_name}" was not advanced, it keeps WAL at the server: {error}')

    def _begin(self, start: WalPosition | None) -> WalPosition:
        if self._held is not None and (start is None or self._held.lsn < start.lsn):
            return self._held
        if start is None:
            raise ArchiveError(
                "no backup holds WAL that an Incremental could continue", hint="make a Full or Differential first"
            )
        return start

    def _fetch(self, segment: WalSegment, through: Lsn, *, may_lack: bool) -> WalContent | None:
        try:
            # What is older than the backup is there or it never will be; only the newest is worth waiting for.
            wait = 0.0 if may_lack else self._options.timeout_seconds
            return self._supply.fetch(segment, through=through, deadline=time.monotonic() + wait)
        except NotThere as error:
            if may_lack:
                return None
            lost = self._lost_slot()
            if lost is not None:
                raise ArchiveError(f"{lost.message}: {error}", hint=lost.hint) from error
            raise ArchiveError(
                f"the WAL since the last backup is not complete: {error}",
                hint=error.hint or "set archive_dir or slot_name, or archive into the vault; then make a Full",
            ) from error

    def _lost_slot(self) -> ServerError | None:
        """
        Return what became of the slot that should have kept this job's WAL; None while it keeps it.

        Asked only when WAL is missing: what the server has let go may be in an archive all the same.
        """
        try:
            if self._slot is not None:
                self._slot.check()
            else:
                check_slot(self._server, self._options.slot_name)
        except ServerError as error:
            return error
        return None

    def _note_gap(self, missing: list[WalSegment]) -> None:
        if not missing:
            return
        gap = WalRange(
            timeline=int(missing[-1].timeline),
            start=str(missing[0].start_lsn),
            stop=str(missing[-1].end_lsn),
            segment_size=self._facts.segment_size,
            first_segment=missing[0].name,
            last_segment=missing[-1].name,
        )
        self.gaps.append(gap)
        self._warn(
            f"WAL since the last backup is gone, {gap.start} to {gap.stop}: the time between that backup and this one "
            "cannot be reached"
        )

    def _checked_last(self, content: WalContent, stop: Lsn) -> WalContent:
        """Return the last segment of a base backup, to be read; what an archive brings must have the backup's end."""
        # Of a standby's backup nobody says that a record ends there.
        if content.is_servers_own or self._facts.identity.is_in_recovery:
            return content
        if not may_begin_at(stop, content.segment, content.chunks(), held_until=content.held_until):
            raise ArchiveError(
                f"WAL segment {content.segment.name} of {content.source} is not the server's: the backup ends at "
                f"{stop}, where no record of it begins",
                hint="another server archives there, or this one was put back to an earlier state: move what is there "
                "away, or choose another archive_dir",
            )
        deadline = time.monotonic() + self._options.timeout_seconds
        return self._supply.fetch(content.segment, through=stop, deadline=deadline)

    def _note_given_up(self, held: WalPosition, start: WalPosition) -> None:
        if held.lsn < start.lsn:
            size = self._facts.segment_size
            gap = WalRange(timeline=int(held.timeline), start=str(held.lsn), stop=str(start.lsn), segment_size=size)
            self.gaps.append(gap)
        self._warn(
            f"the WAL that is held up to {held.lsn} belongs to a past that the server does not have any more: the time "
            "between its end and this backup cannot be reached"
        )

    def _segment_items(self, content: WalContent, stop: Lsn, *, is_needed: bool) -> Iterator[Item]:
        segment = content.segment
        header = ItemHeader(
            path=f"{self._root}/wal/{segment.name}",
            size=segment.size,
            mtime_ns=self._written_ns,
            role=ItemRole.BACKUP_WAL if is_needed else ItemRole.WAL,
        )
        if not content.is_partial:
            is_end = segment.end_lsn == stop
            yield WalItem(header, partial(self._noting_last_record, content) if is_end else content.chunks)
            return
        # A standby cannot end a segment. What there is of it, filled with zeros, makes the backup consistent; the
        # archive must not take it for the segment. Read twice, because a segment may be larger than memory allows.
        yield WalItem(replace(header, path=header.path + PARTIAL_SUFFIX, role=ItemRole.WAL), content.chunks)
        if is_needed:
            again = self._supply.fetch(segment, through=stop, deadline=time.monotonic() + self._options.timeout_seconds)
            path = f"{self._files_root}/pgdata/pg_wal/{segment.name}"
            yield WalItem(replace(header, path=path, role=ItemRole.DATA), again.chunks)

    def _noting_last_record(self, content: WalContent) -> Iterator[Buffer]:
        """Yield a segment, and look which record it ends with."""
        last = LastRecord(content.segment)
        for chunk in content.chunks():
            last.feed(chunk)
            yield chunk
        self._last_record = last.lsn

    def _history_item(self, timeline: Timeline, *, is_needed: bool) -> Item:
        role = ItemRole.BACKUP_WAL if is_needed else ItemRole.WAL
        return history_item(self._root, timeline, self._facts.history_text, mtime_ns=self._written_ns, role=role)


def choose_supply(server: Server, facts: ServerFacts, options: WalOptions, *, is_local: bool) -> WalSupply:
    """Return where a backup of *server* gets its WAL from: the archive's directory first, then the server itself."""
    system_identifier = facts.identity.system_identifier
    supplies: list[WalSupply] = []
    directory = options.archive_dir
    if directory == "auto":
        archiving = queries.archiving(server)
        derived = derive_archive_directory(archiving.command, data_directory=facts.files.data_directory)
        directory = derived if archiving.mode != "off" and derived is not None and Path(derived).is_dir() else ""
    elif directory and not Path(directory).is_dir():
        raise SettingsError(f"archive_dir is not a directory on this host: {directory}")
    if directory:
        supplies.append(ArchiveDirectory(directory, system_identifier=system_identifier))

    def flushed() -> Lsn:
        return queries.flushed_lsn(server)

    if is_local:
        local = str(Path(facts.files.data_directory) / "pg_wal")
        supplies.append(LocalWal(local, system_identifier=system_identifier, flushed=flushed))
    else:
        supplies.append(
            StreamedWal(
                server.replication,
                system_identifier=system_identifier,
                flushed=flushed,
                where=server.where,
                slot=options.slot_name,
            )
        )
    return supplies[0] if len(supplies) == 1 else FirstOf(supplies)
