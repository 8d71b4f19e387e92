"""``estimate``: the names and sizes that the backup would have. Nothing is read, nothing is begun at the server."""

from __future__ import annotations

from pgkeep.bacula.backup import opened_server, prepared_job
from pgkeep.bacula.owners import group_number, user_number
from pgkeep.bacula.session import Session
from pgkeep.bacula.sink import NANOSECONDS, catalog_name
from pgkeep.streams.item import ItemHeader, ItemKind
from pgkeep.wire.file_item import FileKind, FileStatus, encode_file

_KINDS = {
    ItemKind.FILE: FileKind.REGULAR,
    ItemKind.DIRECTORY: FileKind.DIRECTORY,
    ItemKind.SYMLINK: FileKind.SYMLINK,
}


def run(session: Session) -> None:
    """List what the backup of one Plugin line would send."""
    channel = session.channel
    with (
        prepared_job(session, is_estimate=True) as this,
        opened_server(this) as server,
    ):
        channel.end()
        plan = this.mode.plan(this.request, server=server, history=this.history)
        if plan.reason:
            channel.warn(plan.reason)
        for header in this.mode.foresee(plan, server=server):
            channel.send_packets(encode_file(catalog_name(header), _status(header)))
    channel.end()


def _status(header: ItemHeader) -> FileStatus:
    seconds = header.mtime_ns // NANOSECONDS
    return FileStatus(
        kind=_KINDS[header.kind],
        size=max(0, header.size),
        uid=user_number(header.owner),
        gid=group_number(header.group),
        file_mode=header.file_mode,
        atime=seconds,
        mtime=seconds,
        ctime=seconds,
        link=header.link,
    )
