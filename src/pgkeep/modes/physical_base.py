"""What every physical mode asks before the first byte: which server this is, and whether a base may be built on."""

from __future__ import annotations

from dataclasses import dataclass

from pgkeep.errors import ServerError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline, WalPosition
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.streams.record import Database, RecordHead, Tablespace


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """
    What a physical backup's record says about the server.

    Attributes:
        identity: Which cluster, which timeline.
        history: The timeline's history.
        history_text: The history file as the server keeps it; empty on timeline 1.
        segment_size: Bytes of a WAL segment.
        has_checksums: Whether pages carry checksums.
        databases: All of them.
        tablespaces: Those that users made so far; a backup asks again when it has started.
        settings: What matters for recovery.
        libraries: Versions of what collation depends on.
        files: Where the cluster's files are.
    """

    identity: queries.ServerIdentity
    history: TimelineHistory
    history_text: str
    segment_size: int
    has_checksums: bool
    databases: list[Database]
    tablespaces: list[Tablespace]
    settings: dict[str, str]
    libraries: dict[str, str]
    files: queries.ServerFiles


def gather_facts(server: Server) -> ServerFacts:
    """Ask *server* what the record will say; raise ServerError when its settings rule a physical backup out."""
    wal_level = queries.setting(server, "wal_level")
    if wal_level == "minimal":
        raise ServerError(
            "wal_level is minimal: WAL does not hold what recovery needs",
            hint="set wal_level = replica and restart the server",
        )
    identity = queries.identify(server)
    history_text = server.history_text(identity.timeline)
    return ServerFacts(
        identity=identity,
        history=TimelineHistory.parse(history_text, timeline=identity.timeline),
        history_text=history_text,
        segment_size=queries.wal_segment_size(server),
        has_checksums=queries.has_data_checksums(server),
        databases=[
            Database(name=database.name, oid=database.oid, size_bytes=database.size_bytes or 0)
            for database in queries.databases(server)
        ],
        tablespaces=known_tablespaces(server),
        settings=queries.recovery_settings(server),
        libraries=queries.libraries(server),
        files=queries.files(server),
    )


def known_tablespaces(server: Server) -> list[Tablespace]:
    """Return the tablespaces that users made, as the catalog has them now, by OID."""
    return [
        Tablespace(oid=tablespace.oid, name=tablespace.name, location=tablespace.location)
        for tablespace in queries.tablespaces(server)
    ]


def base_problem(base: RecordHead, facts: ServerFacts, *, flushed: Lsn) -> str:
    """
    Return why a backup of this server cannot build on *base*; empty when it can.

    Args:
        base: The earlier backup.
        facts: What the server is.
        flushed: Up to where it has WAL.
    """
    if SystemIdentifier(int(base.system_identifier)) != facts.identity.system_identifier:
        return (
            f"backup {base.backup_id} is of another cluster: system identifier {base.system_identifier}, "
            f"the server's is {facts.identity.system_identifier}"
        )
    end = base_end(base)
    if not facts.history.contains(end.timeline, end.lsn):
        return (
            f"backup {base.backup_id} ends at {end.lsn} on timeline {end.timeline}, "
            f"which is not in the history of the server's timeline {facts.identity.timeline}"
        )
    if flushed < end.lsn:
        # What it writes from here on is not what the backup holds under the same names.
        return (
            f"backup {base.backup_id} ends at {end.lsn}, but the server's WAL at {flushed}: "
            "its files were put back to an earlier state"
        )
    return ""


def base_end(base: RecordHead) -> WalPosition:
    """Return where the physical backup *base* ends: the end of the WAL that it carries."""
    stop = base.wal.stop if base.wal is not None else base.stop_lsn
    return WalPosition(Timeline(base.timeline), Lsn.parse(stop))
