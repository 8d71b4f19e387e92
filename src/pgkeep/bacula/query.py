"""
``.query``: one question, answered in ``key=value`` lines, or as JSON where the parameter begins with ``json:``.

An answer that the console would take apart at its commas goes out as plain text; ``json:`` answers always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from pgkeep.bacula.session import Session
from pgkeep.bacula.state import ClusterState
from pgkeep.errors import UsageError
from pgkeep.jobs.connection import connection_target
from pgkeep.modes.dump_names import encode_name
from pgkeep.pg.lsn import Lsn
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import slots
from pgkeep.settings import Resolved
from pgkeep.wire.packet import PacketKind

Answer = list[dict[str, Any]]


def run(session: Session) -> None:
    """Answer one question."""
    channel = session.channel
    settings = session.settings("check")
    wanted = session.query or ""
    is_json = wanted.startswith("json:")
    name = wanted.removeprefix("json:").strip().lower()
    if name not in _QUESTIONS:
        raise UsageError(f'unknown parameter "{name}"', hint=f"known are {', '.join(_QUESTIONS)}")
    channel.end()
    with Server.open(connection_target(settings)) as server:
        answer = _QUESTIONS[name](server, settings)
    if is_json:
        text = msgspec.json.encode(answer).decode() + "\n"
        channel.send(PacketKind.DATA, text.encode())
    else:
        for line in _lines(name, answer):
            channel.send(PacketKind.DATA, f"{line}\n".encode("utf-8", "surrogateescape"))
    channel.end()


def _lines(name: str, answer: Answer) -> Iterator[str]:
    """Yield the first value of each row under the question's own name, the others under their own."""
    for row in answer:
        first, *rest = row.items()
        yield f"{name}={_shown(first[1])}"
        for key, value in rest:
            yield f"{name}_{key}={_shown(value)}"


def _shown(value: object) -> str:
    text = {True: "yes", False: "no", None: ""}.get(value, value) if isinstance(value, bool | None) else value
    return str(text).replace("\n", " ")


def _database(server: Server, settings: Resolved) -> Answer:  # noqa: ARG001 - every question has the same form
    return [
        {"name": database.name, "size": database.size_bytes or 0, "path": encode_name(database.name)}
        for database in queries.databases(server)
    ]


def _tablespace(server: Server, settings: Resolved) -> Answer:  # noqa: ARG001 - the same
    return [
        {"name": tablespace.name, "oid": tablespace.oid, "location": tablespace.location}
        for tablespace in queries.tablespaces(server)
    ]


def _version(server: Server, settings: Resolved) -> Answer:  # noqa: ARG001 - the same
    return [{"version": server.version_text, "number": server.version}]


def _cluster(server: Server, settings: Resolved) -> Answer:
    identity = queries.identify(server)
    return [
        {
            "system_identifier": str(int(identity.system_identifier)),
            "cluster_id": settings.text("cluster_id") or "",
            "timeline": int(identity.timeline),
            "standby": identity.is_in_recovery,
        }
    ]


def _slot(server: Server, settings: Resolved) -> Answer:  # noqa: ARG001 - the same
    end = queries.flushed_lsn(server)
    return [
        {
            "name": slot.name,
            "kind": "physical" if slot.is_physical else "logical",
            "active": slot.is_active,
            "restart_lsn": str(slot.restart_lsn) if slot.restart_lsn is not None else "",
            "kept_bytes": max(0, end - slot.restart_lsn) if slot.restart_lsn is not None else 0,
        }
        for slot in slots(server)
    ]


def _standby(server: Server, settings: Resolved) -> Answer:  # noqa: ARG001 - the same
    rows = server.rows("SELECT application_name, coalesce(client_addr::text, 'local'), state FROM pg_stat_replication")
    if queries.is_in_recovery(server):
        return [{"standby": "self", "address": server.target.host or "local", "state": "in recovery"}]
    return [{"standby": name or "unnamed", "address": address, "state": state or ""} for name, address, state in rows]


def _recovery_window(server: Server, settings: Resolved) -> Answer:
    """Return, for each base backup that this host remembers, from when to when its chain of WAL reaches."""
    identifier = str(int(queries.identify(server).system_identifier))
    cluster_id = settings.text("cluster_id") or ""
    mode = "pitr_block" if settings.get("mode") == "pitr_block" else "pitr"
    state = ClusterState(settings.require("state_dir"), cluster_id=cluster_id, mode=mode)
    windows: Answer = []
    reach: list[Lsn] = []
    for record in state.records():
        head = record.head
        if head.system_identifier != identifier or head.wal is None:
            continue
        end = head.stop_time or head.end_time
        for number, reached in enumerate(reach):
            # Behind a gap in the WAL nothing can be reached any more.
            if Lsn.parse(head.wal.start) <= reached < Lsn.parse(head.wal.stop):
                windows[number]["to"], reach[number] = end, Lsn.parse(head.wal.stop)
        if head.has_files:
            windows.append({"backup": head.backup_id, "from": head.stop_time, "to": end, "job": record.job})
            reach.append(Lsn.parse(head.wal.stop))
    return windows


_QUESTIONS: dict[str, Callable[[Server, Resolved], Answer]] = {
    "database": _database,
    "tablespace": _tablespace,
    "version": _version,
    "cluster": _cluster,
    "recovery_window": _recovery_window,
    "slot": _slot,
    "standby": _standby,
}
