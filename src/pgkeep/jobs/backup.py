"""Make one backup: plan it, read it, record it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from pgkeep.jobs.replication_record import with_replication_state
from pgkeep.modes.contract import BackupRequest, History, Mode, Plan
from pgkeep.server.connection import Server
from pgkeep.streams.item import Sink
from pgkeep.streams.record import RecordHead, RecordTail


class RecordingSink(Sink, Protocol):
    """A sink that can record what it accepted; leaving it without ``commit`` leaves no backup."""

    def commit(self, head: RecordHead) -> tuple[RecordHead, RecordTail]:
        """Make everything accepted durable, then write the record; return it."""
        ...


OpenSink = Callable[[Plan], AbstractContextManager[RecordingSink]]


def backup(
    request: BackupRequest,
    *,
    mode: Mode,
    server: Server | None,
    history: History,
    open_sink: OpenSink,
    confirms: bool = True,
) -> tuple[RecordHead, RecordTail]:
    """
    Send every item of one backup to a sink, then have it recorded.

    Args:
        request: What is asked for.
        mode: How such a backup is made.
        server: The server to back up; None when it does not answer, for a mode that can do without.
        history: What the sink knows of earlier backups.
        open_sink: Opens the sink once the plan is known.
        confirms: Whether what is recorded is also safe; else the server goes on keeping WAL, until a later job knows.

    Returns:
        The record's head and tail. When this returns there is a backup; when it raises there is none.
    """
    plan = mode.plan(request, server=server, history=history)
    if plan.reason:
        request.warn(plan.reason)
    with open_sink(plan) as sink, mode.open(plan, server=server) as source:
        for item in source.items():
            sink.accept(item)
        recorded = sink.commit(with_replication_state(source.finish(), request, server))
        if confirms:
            source.confirm()
    return recorded
