"""The server that WAL is received from: found to be the right one, with a slot that keeps WAL for this receiver."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import ServerError, SettingsError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.server import queries
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.server.replication import HistoryFile, Replication
from pgkeep.server.slots import check_slot_is_bounded, create_physical_slot, drop_slot, find_slot
from pgkeep.spool.reading import SpoolView


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """
    Which server, and how it keeps WAL for the receiver.

    Attributes:
        target: How to reach it.
        slot: Name of the lasting physical slot.
        allow_unbounded_slot: Make it although nothing bounds what it keeps.
        system_identifier: Of the cluster that the vault knows.
        segment_size: Of that cluster.
    """

    target: ConnectionTarget
    slot: str
    allow_unbounded_slot: bool
    system_identifier: SystemIdentifier
    segment_size: int


@dataclass(frozen=True, slots=True)
class Source:
    """
    A server that is ready to stream.

    Attributes:
        replication: The conversation.
        history: Of the server's timeline.
        end: The end of its WAL.
        kept: From where the slot keeps WAL.
        is_standby: Whether it is one, whose end may lie before what was received from its primary.
        lost_slot: Whether the slot had lost its WAL and was made anew.
    """

    replication: Replication
    history: TimelineHistory
    end: Lsn
    kept: Lsn
    is_standby: bool
    lost_slot: bool

    def history_file(self, timeline: Timeline) -> HistoryFile | None:
        """Return the history file of *timeline*; None when the server has it no more."""
        with contextlib.suppress(ServerError):
            return self.replication.timeline_history(timeline)
        return None


def identity_of(spool_dir: Path, target: ConnectionTarget) -> tuple[SystemIdentifier, int]:
    """
    Return system identifier and segment size of the cluster that the spool *spool_dir* is for, or is going to be for.

    Raises:
        ServerError: There is no spool yet, and the server cannot be asked.
        VaultError: The spool cannot be read.
    """
    spool = SpoolView.found(spool_dir)
    if spool is not None:
        return spool.system_identifier, spool.segment_size
    with Server.open(target) as server:
        return queries.identify(server).system_identifier, queries.wal_segment_size(server)


@contextlib.contextmanager
def opened_source(options: SourceOptions, cancelled: threading.Event) -> Iterator[Source]:
    """
    Yield the server, ready to stream.

    Raises:
        ServerError: It cannot be reached or refuses; another receiver uses the slot.
        SettingsError: It is another cluster, or the slot would have no bound.
    """
    with Server.open(options.target) as server:
        replication = server.replication(cancelled=cancelled, is_patient=False)
        try:
            system = replication.identify()
            check_cluster(server, options, system.system_identifier)
            kept, lost_slot = _ready_slot(server, options)
            is_standby = bool(server.value("SELECT pg_is_in_recovery()"))
            # Whoever waited for these answers may be gone.
            replication.check()
        except BaseException:
            replication.close()
            raise
    with replication:
        if system.timeline == 1:
            history = TimelineHistory.single(system.timeline)
        else:
            content = replication.timeline_history(system.timeline).content
            history = TimelineHistory.parse(content, timeline=system.timeline)
        yield Source(replication, history, system.lsn, kept, is_standby, lost_slot)


def check_cluster(server: Server, options: SourceOptions, found: SystemIdentifier) -> None:
    """Raise SettingsError unless *server*, whose system identifier is *found*, is one of the cluster that is meant."""
    if found != options.system_identifier:
        raise SettingsError(
            f"PostgreSQL at {server.where} has system identifier {found}, the vault's cluster has "
            f"{options.system_identifier}",
            hint="the connection leads to another cluster, or the cluster was initialised anew",
        )
    size = int(server.value("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'"))
    if size != options.segment_size:
        raise SettingsError(
            f"PostgreSQL at {server.where} has WAL segments of {size} bytes, the vault's cluster of "
            f"{options.segment_size}"
        )


def _ready_slot(server: Server, options: SourceOptions) -> tuple[Lsn, bool]:
    """Return from where the slot keeps WAL, and whether it had to be made anew."""
    check_slot_is_bounded(server, options.slot, allow_unbounded=options.allow_unbounded_slot)
    slot = find_slot(server, options.slot)
    if slot is not None and not slot.is_physical:
        raise SettingsError(f'slot "{slot.name}" is a logical one, expected a physical slot')
    if slot is not None and slot.is_active:
        raise ServerError(
            f'slot "{slot.name}" at {server.where} is in use',
            hint="another receiver, or a connection that broke and that the server still holds for alive",
        )
    if slot is not None and slot.restart_lsn is not None and not slot.is_lost:
        return slot.restart_lsn, False
    if slot is not None:
        # What it kept is gone, and nobody can stream from it: as it is, it serves nothing.
        drop_slot(server, slot.name)
    return create_physical_slot(server, options.slot), slot is not None and slot.is_lost
