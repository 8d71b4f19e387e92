"""
Mode pitr: a base backup file by file, and the WAL to replay from it to any moment.

A Full holds all files, a Differential those changed since the Full, an Incremental none (or those changed since the
newest backup with files). Every one of them carries the WAL from the end of the job before it up to its own end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any

from pgkeep.errors import SettingsError
from pgkeep.modes.contract import BackupRequest, Base, History, Plan, Source
from pgkeep.modes.physical_base import ServerFacts, base_problem, gather_facts
from pgkeep.modes.physical_wal import WalOptions
from pgkeep.modes.wal_continuity import lost_past
from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.streams.item import ItemHeader
from pgkeep.streams.record import Level

ALL_LEVELS = frozenset(Level)


@dataclass(frozen=True, slots=True, kw_only=True)
class PitrOptions:
    """
    What can be chosen for a pitr backup.

    Attributes:
        label: The label in ``backup_label``; empty for ``pgkeep_<backup id>``.
        start_fast: Ask for an immediate checkpoint.
        transport: ``auto``, ``local`` or ``stream``.
        verify_checksum: Check pages while reading.
        incremental_content: ``wal`` or ``files``.
        fail_without_base: Refuse instead of making a Full when there is nothing to build on.
        exclude_tablespaces: Names or OIDs; only with *allow_incomplete*.
        allow_incomplete: Take a backup that a whole cluster cannot be restored from.
        wal: How the WAL is found.
    """

    label: str = ""
    start_fast: bool = True
    transport: str = "auto"
    verify_checksum: bool = True
    incremental_content: str = "wal"
    fail_without_base: bool = False
    exclude_tablespaces: tuple[str, ...] = ()
    allow_incomplete: bool = False
    wal: WalOptions = field(default_factory=WalOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class PitrPlan(Plan):
    """
    One pitr backup, planned.

    Attributes:
        facts: What the server said of itself.
        transport: ``local``, ``stream``, or ``wal`` when no files pass.
        held: Up to where WAL is held; None when this backup begins a new stretch.
        given_up: Up to where WAL is held of a past that the server does not have any more.
        left_out: OIDs of tablespaces that are not in the backup.
        is_local: Whether the server's own pg_wal can be read here.
    """

    facts: ServerFacts
    transport: str
    held: WalPosition | None
    left_out: frozenset[int] = frozenset()
    is_local: bool = False
    given_up: WalPosition | None = None

    @property
    def options(self) -> PitrOptions:
        """The request's options."""
        options: PitrOptions = self.request.options
        return options

    @property
    def compares_files(self) -> bool:
        """Whether files of the base that have not changed are not sent again."""
        return self.transport != "wal"

    @property
    def files_root(self) -> str:
        """Virtual path that the cluster's files are below, in ``pgdata`` and ``tblspc``."""
        return self.request.root

    @property
    def label(self) -> str:
        """The label of the backup at the server."""
        return self.options.label or f"pgkeep_{self.backup_id}"


class PitrMode:
    """The mode; see ``modes/contract.py``."""

    name = "pitr"
    levels = ALL_LEVELS
    needs_server = True

    def options(self, value_of: Callable[[str], Any]) -> PitrOptions:
        """Return the options of a pitr backup."""
        return PitrOptions(
            label=value_of("pitr_label") or "",
            start_fast=value_of("start_fast"),
            transport=value_of("transport"),
            verify_checksum=value_of("verify_checksum"),
            incremental_content=value_of("incremental_content"),
            fail_without_base=value_of("on_missing_base") == "fail",
            exclude_tablespaces=value_of("exclude_tablespace"),
            allow_incomplete=value_of("allow_incomplete"),
            wal=wal_options(value_of),
        )

    def plan(self, request: BackupRequest, *, server: Server, history: History) -> PitrPlan:
        """Choose base, transport and level; refuse what could not be restored."""
        options: PitrOptions = request.options
        facts = gather_facts(server)
        left_out = _left_out(options, facts)
        held = held_in_common(history, facts)
        flushed = flushed_lsn(request, server, facts, held)
        is_readable = _is_local(options.transport, server, facts)
        lost = lost_past(server, facts, options.wal, history, held=held, flushed=flushed, is_local=is_readable)
        level, base, reason = _choose_base(request, facts, history, flushed, lost)
        if lost and not reason:
            request.warn(lost)
        transport = "wal"
        if level is not Level.INCREMENTAL or options.incremental_content == "files":
            transport = _choose_transport(options.transport, server, facts)
        if transport == "stream":
            queries.check_stream_is_complete(server)
        return PitrPlan(
            request=request,
            level=level,
            backup_id=history.new_backup_id(request.begin, level),
            base=base,
            reason=reason,
            facts=facts,
            transport=transport,
            # What is held ends with that past: this backup begins a new stretch.
            held=None if lost else held,
            given_up=held if lost else None,
            left_out=left_out,
            is_local=transport == "local" or (transport == "wal" and is_readable),
        )

    def foresee(self, plan: Any, *, server: Server) -> Iterator[ItemHeader]:
        """Yield the headers of what the backup would send."""
        from pgkeep.modes.pitr_estimate import foresee

        return foresee(plan, server)

    def open(self, plan: Any, *, server: Server) -> AbstractContextManager[Source]:
        """Begin the backup."""
        return closing(_source_kind(plan.transport)(plan, server))


def _source_kind(transport: str) -> Any:
    # Each way of reading brings its own libraries; a job loads the one that it needs.
    if transport == "local":
        from pgkeep.modes.pitr_local_source import LocalSource

        return LocalSource
    if transport == "stream":
        from pgkeep.modes.pitr_stream_source import StreamSource

        return StreamSource
    from pgkeep.modes.pitr_source import WalSource

    return WalSource


def wal_options(value_of: Callable[[str], Any]) -> WalOptions:
    """Return how WAL is found; *value_of* gives the value of a parameter by its canonical name."""
    return WalOptions(
        archive_dir=value_of("archive_dir") or "auto",
        slot_name=value_of("slot_name") or "",
        allow_unbounded_slot=value_of("allow_unbounded_slot"),
        switch_wal=value_of("switch_wal"),
        timeout_seconds=value_of("switch_wal_timeout"),
        wait_for_archive=value_of("stop_wait_wal_archive"),
    )


def held_in_common(history: History, facts: ServerFacts) -> WalPosition | None:
    """Return up to where the server's own WAL is held; None when none of it is."""
    held = history.wal_held()
    if held is not None and not facts.history.contains(held.timeline, held.lsn):
        # A primary that was failed over from may have archived past the fork; up to the fork the history is common.
        fork = facts.history.fork_of(held.timeline)
        held = WalPosition(held.timeline, fork) if fork is not None else None
    return held


def flushed_lsn(request: BackupRequest, server: Server, facts: ServerFacts, held: WalPosition | None) -> Lsn:
    """Return up to where the server has WAL; a standby is given the time to get as far as earlier backups."""
    if not facts.identity.is_in_recovery:
        return queries.flushed_lsn(server)
    from pgkeep.modes.standby import catch_up, warn_of_archive

    wal: WalOptions = request.options.wal
    warn_of_archive(server, wants_wait=wal.wait_for_archive, warn=request.warn)
    return catch_up(server, held, timeout_seconds=wal.timeout_seconds, say=request.say)


def _choose_base(
    request: BackupRequest, facts: ServerFacts, history: History, flushed: Lsn, lost: str
) -> tuple[Level, Base | None, str]:
    if request.level is Level.FULL:
        return Level.FULL, None, ""
    # A Differential builds on the Full. An Incremental continues the newest job of all; when it carries files, they
    # are those changed since the newest backup that has a list of its own.
    if request.level is Level.DIFFERENTIAL:
        base = history.newest(mode="pitr", levels=frozenset({Level.FULL}), with_files=True)
    else:
        with_files = request.options.incremental_content == "files"
        base = history.newest(mode="pitr", levels=ALL_LEVELS, with_files=with_files)
    problem = (
        "there is no backup to build on" if base is None else base_problem(base.head, facts, flushed=flushed) or lost
    )
    if not problem:
        return request.level, base, ""
    if request.options.fail_without_base:
        raise SettingsError(f"{request.level.word} refused: {problem}", hint="make a Full, or set on_missing_base=full")
    return Level.FULL, None, f"making a Full instead of the {request.level.word} asked for: {problem}"


def _choose_transport(wanted: str, server: Server, facts: ServerFacts) -> str:
    from pgkeep.modes.locality import why_not_local

    if wanted == "stream":
        return "stream"
    problem = why_not_local(server, facts)
    if not problem:
        return "local"
    if wanted == "local":
        raise SettingsError(f"transport local is not possible: {problem}", hint="use transport=stream")
    return "stream"


def _is_local(wanted: str, server: Server, facts: ServerFacts) -> bool:
    from pgkeep.modes.locality import why_not_local

    return wanted != "stream" and not why_not_local(server, facts)


def _left_out(options: PitrOptions, facts: ServerFacts) -> frozenset[int]:
    wanted = set(options.exclude_tablespaces)
    if not wanted:
        return frozenset()
    if not options.allow_incomplete:
        raise SettingsError(
            "exclude_tablespace makes a backup from which the cluster cannot be restored whole",
            hint="leave it out, or set allow_incomplete=yes and accept that",
        )
    found = {t.oid: {t.name, str(t.oid)} for t in facts.tablespaces}
    unknown = wanted - set().union(*found.values())
    if unknown:
        known = ", ".join(sorted(t.name for t in facts.tablespaces)) or "none"
        raise SettingsError(f"no such tablespace: {', '.join(sorted(unknown))}; the server has {known}")
    return frozenset(oid for oid, names in found.items() if names & wanted)


def host_name() -> str:
    """Return the name of this host as records have it."""
    return socket.gethostname()
