"""
``.ls``: a look at the server, as a tree.

::

    /                databases/  tablespaces/  clusters/  slots/
    /databases       one file for each, of its size
    /tablespaces     the same
    /clusters        the server itself, as a directory
    /clusters/<id>   what stands for it: version, role, timeline
    /slots           one for each, of the WAL that it keeps
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator

from pgkeep.bacula.session import Session
from pgkeep.errors import UsageError
from pgkeep.jobs.connection import connection_target
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import slots
from pgkeep.wire.file_item import FileKind, FileStatus, encode_file

TOP = ("databases", "tablespaces", "clusters", "slots")
_DIRECTORY = FileStatus(kind=FileKind.DIRECTORY, file_mode=stat.S_IRWXU)

Found = tuple[str, FileStatus]


def run(session: Session) -> None:
    """List the children of one path."""
    channel = session.channel
    settings = session.settings("check")
    path = (session.listing or "/").strip("/")
    channel.end()
    if not path:
        entries: list[Found] = [(f"/{name}/", _DIRECTORY) for name in TOP]
    else:
        with Server.open(connection_target(settings)) as server:
            entries = list(_children(server, path))
    for name, status in entries:
        channel.send_packets(encode_file(name, status))
    channel.end()


def _children(server: Server, path: str) -> Iterator[Found]:
    top, _, rest = path.partition("/")
    cluster = str(int(queries.identify(server).system_identifier)) if top == "clusters" else ""
    if path == "databases":
        for database in queries.databases(server):
            yield _file(path, database.name, database.size_bytes or 0)
    elif path == "tablespaces":
        for name, size in _tablespaces(server):
            yield _file(path, name, size)
    elif path == "clusters":
        yield f"/clusters/{cluster}/", _DIRECTORY
    elif cluster and rest == cluster:
        identity = queries.identify(server)
        size = sum(database.size_bytes or 0 for database in queries.databases(server))
        role = "standby" if identity.is_in_recovery else "primary"
        yield _file(path, f"postgresql-{server.version_text.split(' ')[0]}", size)
        yield _file(path, f"{role}-timeline-{identity.timeline}", 0)
    elif path == "slots":
        end = queries.flushed_lsn(server)
        for slot in slots(server):
            yield _file(path, slot.name, max(0, end - slot.restart_lsn) if slot.restart_lsn is not None else 0)
    else:
        raise UsageError(f"nothing to list at /{path}", hint=f"there are /{', /'.join(TOP)}")


def _tablespaces(server: Server) -> Iterator[tuple[str, int]]:
    rows = server.rows(
        """
        SELECT spcname, CASE WHEN has_tablespace_privilege(oid, 'CREATE') OR pg_has_role('pg_read_all_stats', 'USAGE')
                             THEN pg_tablespace_size(oid) END
        FROM pg_tablespace ORDER BY oid
        """
    )
    for name, size in rows:
        yield name, int(size or 0)


def _file(directory: str, name: str, size: int) -> Found:
    now = int(time.time())
    # The listing shows one line for a name: a slash or a line's end in it would be another.
    shown = name.replace("/", "%2F").replace("\n", "%0A")
    return f"/{directory}/{shown}", FileStatus(size=size, atime=now, mtime=now, ctime=now)
