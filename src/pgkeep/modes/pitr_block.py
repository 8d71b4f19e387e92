"""
Mode pitr_block: a base backup whose Differentials and Incrementals hold only the blocks that changed.

A Full is PostgreSQL's base backup with its manifest. A Differential is an incremental base backup on the manifest of
the newest Full, an Incremental one on that of the newest backup of any level: PostgreSQL 17 and later find the blocks
in their WAL summaries. Every one of them carries WAL as those of mode pitr do. The files of a backup are below its id,
so that those of a chain stand side by side::

    @postgresql/pitr_block/<backup id>/pgdata/base/5/INCREMENTAL.16384
                                      /tblspc/16390/PG_18_202506291/5/16391
                                      /backup_label, tablespace_map, backup_manifest
                          /wal/000000010000000000000007
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

from pgkeep.errors import ServerError, SettingsError
from pgkeep.modes.contract import BackupRequest, Base, History, Source
from pgkeep.modes.physical_base import ServerFacts, gather_facts
from pgkeep.modes.pitr import ALL_LEVELS, PitrOptions, PitrPlan, flushed_lsn, held_in_common, wal_options
from pgkeep.modes.pitr_block_gate import Gate, Obstacle
from pgkeep.modes.wal_continuity import lost_past
from pgkeep.pg.capabilities import version_text
from pgkeep.pg.lsn import Lsn
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.streams.item import ItemHeader
from pgkeep.streams.record import Level

_BUILT_WITH = {"block_size": "8192", "segment_size": "1GB"}
"""What every build has unless somebody asked for another; the files of others are read as nonsense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PitrBlockOptions(PitrOptions):
    """
    What can be chosen for a pitr_block backup.

    Attributes:
        summary_days: For how many days the server should keep WAL summaries.
    """

    transport: str = "stream"
    summary_days: int = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class PitrBlockPlan(PitrPlan):
    """One pitr_block backup, planned."""

    @property
    def compares_files(self) -> bool:
        """False: the server decides what has changed."""
        return False

    @property
    def files_root(self) -> str:
        """Virtual path that the cluster's files are below: a directory of the backup's own."""
        return f"{self.request.root}/{self.backup_id}"


class PitrBlockMode:
    """The mode; see ``modes/contract.py``."""

    name = "pitr_block"
    levels = ALL_LEVELS
    needs_server = True

    def options(self, value_of: Callable[[str], Any]) -> PitrBlockOptions:
        """Return the options of a pitr_block backup."""
        return PitrBlockOptions(
            label=value_of("pitr_label") or "",
            start_fast=value_of("start_fast"),
            verify_checksum=value_of("verify_checksum"),
            fail_without_base=value_of("on_missing_base") == "fail",
            summary_days=value_of("pitr_block_summary_days"),
            wal=wal_options(value_of),
        )

    def plan(self, request: BackupRequest, *, server: Server, history: History) -> PitrBlockPlan:
        """Choose base and level; refuse, or fall back to a Full, where a chain could not be restored."""
        check_server(server)
        facts = gather_facts(server)
        held = held_in_common(history, facts)
        flushed = flushed_lsn(request, server, facts, held)
        lost = lost_past(server, facts, request.options.wal, history, held=held, flushed=flushed, is_local=False)
        level, base, reason = _choose_base(request, server, facts, history, flushed=flushed, lost=lost)
        if lost and not reason:
            request.warn(lost)
        if base is not None or request.level is Level.FULL:
            Gate(server, facts, request).warn_of_summaries()
        return PitrBlockPlan(
            request=request,
            level=level,
            backup_id=history.new_backup_id(request.begin, level),
            base=base,
            reason=reason,
            facts=facts,
            transport="stream",
            held=None if lost else held,
            given_up=held if lost else None,
        )

    def foresee(self, plan: Any, *, server: Server) -> Iterator[ItemHeader]:
        """Yield the headers of what the backup would send."""
        from pgkeep.modes.pitr_estimate import foresee

        return foresee(plan, server)

    def open(self, plan: Any, *, server: Server) -> AbstractContextManager[Source]:
        """Begin the backup."""
        from pgkeep.modes.pitr_block_source import PitrBlockSource

        return closing(PitrBlockSource(plan, server))


def check_server(server: Server) -> None:
    """Raise ServerError when *server* makes no incremental backups, or none that a restore could roll forward."""
    if not server.capabilities.has_incremental_backup:
        raise ServerError(
            f"mode pitr_block needs PostgreSQL 17 or later, {server.where} is {version_text(server.version)}",
            hint="use mode=pitr, whose Incrementals are WAL or changed files",
        )
    for name, expected in _BUILT_WITH.items():
        found = queries.setting(server, name)
        if found != expected:
            raise ServerError(
                f"mode pitr_block needs a server built with {name} {expected}, {server.where} has {found}",
                hint="use mode=pitr",
            )


def _choose_base(
    request: BackupRequest, server: Server, facts: ServerFacts, history: History, *, flushed: Lsn, lost: str
) -> tuple[Level, Base | None, str]:
    if request.level is Level.FULL:
        return Level.FULL, None, ""
    levels = frozenset({Level.FULL}) if request.level is Level.DIFFERENTIAL else ALL_LEVELS
    base = history.newest(mode="pitr_block", levels=levels)
    obstacle: Obstacle | None
    if base is None:
        obstacle = Obstacle("there is no backup to build on", "make a Full")
    else:
        obstacle = Gate(server, facts, request).obstacle(base, history, flushed=flushed)
        if obstacle is None and lost:
            obstacle = Obstacle(lost, "make a Full")
    if obstacle is None:
        return request.level, base, ""
    if request.options.fail_without_base:
        raise SettingsError(
            f"{request.level.word} refused: {obstacle.text}",
            hint=f"{obstacle.advice}; or set on_missing_base=full",
        )
    return Level.FULL, None, f"making a Full instead of the {request.level.word} asked for: {obstacle.text}"
