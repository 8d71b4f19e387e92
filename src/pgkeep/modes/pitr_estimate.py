"""Mode pitr, what a backup would hold: names and sizes, without reading a file or entering backup mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pgkeep.datadir.scan import Scan
from pgkeep.modes.pitr import PitrPlan, host_name
from pgkeep.modes.pitr_local import UnchangedRule, is_same_place
from pgkeep.pg.data_directory import BACKUP_LABEL, tablespace_version_directory
from pgkeep.pg.lsn import Lsn, WalPosition
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.streams.item import ItemHeader, ItemKind, ItemRole


def foresee(plan: PitrPlan, server: Server) -> Iterator[ItemHeader]:
    """
    Yield the headers of what the backup would send, but for its record.

    Over the replication protocol nobody tells the names of files beforehand: there, each database is one directory of
    its whole size.
    """
    if plan.transport == "local":
        yield from _local_files(plan, server)
    elif plan.transport == "stream":
        yield from _databases(plan, server)
    if plan.transport != "wal":
        yield ItemHeader(f"{plan.request.root}/{BACKUP_LABEL}")
    yield from _wal(plan, server)


def _local_files(plan: PitrPlan, server: Server) -> Iterator[ItemHeader]:
    facts = plan.facts
    scan = Scan(
        Path(facts.files.data_directory),
        root=plan.request.root,
        version_directory=tablespace_version_directory(server.capabilities.major, facts.identity.catalog_version),
        required_tablespaces={t.oid for t in facts.tablespaces} - plan.left_out,
        left_out=plan.left_out,
        warn=plan.request.warn,
    )
    rule = None
    if plan.base is not None and is_same_place(
        plan.base.head, host=host_name(), data_directory=facts.files.data_directory
    ):
        rule = UnchangedRule(plan.base)
    for found in scan.files():
        if found.is_directory or rule is None or not rule.is_unchanged(found):
            yield found.header()
    yield scan.control_file().header()


def _databases(plan: PitrPlan, server: Server) -> Iterator[ItemHeader]:
    root = f"{plan.request.root}/pgdata"
    yield ItemHeader(root, ItemKind.DIRECTORY)
    yield ItemHeader(f"{root}/global", ItemKind.DIRECTORY)
    for database in queries.databases(server):
        yield ItemHeader(f"{root}/base/{database.oid}", ItemKind.DIRECTORY, size=database.size_bytes or 0)


def _wal(plan: PitrPlan, server: Server) -> Iterator[ItemHeader]:
    facts = plan.facts
    end = queries.flushed_lsn(server)
    begin = plan.held or WalPosition(facts.identity.timeline, end)
    stop = max(Lsn(begin.lsn + 1), end)
    segments = facts.history.segments(begin.lsn, start_timeline=begin.timeline, end=stop, size=facts.segment_size)
    for segment in segments:
        yield ItemHeader(f"{plan.request.root}/wal/{segment.name}", size=facts.segment_size, role=ItemRole.WAL)
