"""
Archive one file that the server names, and those that it will name next.

The server calls ``archive_command`` for one file at a time and waits. What it will ask for next is known, though:
``pg_wal/archive_status`` has a ``.ready`` file for each. Those are pushed at the same time, and when their turn comes
the answer is there already. Nothing is remembered between calls: a file counts as archived when the vault holds its
content.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pgkeep.errors import ArchiveError
from pgkeep.jobs.archive.wal_pusher import WalPusher
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.pg.wal import is_history_name
from pgkeep.vault.wal_archive import Put, WalArchive

# Enough to keep the workers busy while the file asked for is pushed; more would only keep the server waiting.
DEFAULT_AHEAD = 3

_READY = re.compile(r"([0-9A-F]{8}\.history|[0-9A-F]{24}(?:\.partial|\.[0-9A-F]{8}\.backup)?)\.ready")


def archive_push(
    archive: WalArchive, path: Path, *, compression_level: int = 1, workers: int = 2, ahead: int = DEFAULT_AHEAD
) -> Put:
    """
    Hold the file at *path* in the archive under its own name; when this returns, it is durable.

    Args:
        archive: Where to.
        path: The file, as ``%p`` gives it: ``pg_wal/<name>``.
        compression_level: Of zstd.
        workers: How many files to push at once.
        ahead: How many further files that wait for archiving may be pushed meanwhile; what becomes of them is known
            when the server asks for them.

    Raises:
        ArchiveError: The file is not this cluster's WAL, or the archive holds other content under its name.
        VaultError: The vault is not there, full, or refuses.
    """
    check_cluster(archive, path)
    with WalPusher(archive, workers=workers, compression_level=compression_level) as pusher:
        push = pusher.submit(path)
        # What is held already is compared when the server asks for it.
        pusher.submit_ahead([waiting for waiting in ready_files(path)[:ahead] if not archive.has(waiting.name)])
        result = push.wait()
        pusher.drain()
    return result


def check_cluster(archive: WalArchive, path: Path) -> None:
    """
    Raise ArchiveError when *path* lies in ``pg_wal`` of another cluster than *archive* is for.

    Segments say themselves whose they are; history files and backup history files do not.
    """
    if path.parent.name != "pg_wal":
        return
    control = path.parent.parent / "global" / "pg_control"
    try:
        with control.open("rb") as file:
            found = SystemIdentifier(int.from_bytes(file.read(8), "little"))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ArchiveError(f"cannot read {control}: {error.strerror}") from error
    if found != archive.system_identifier:
        raise ArchiveError(
            f"the data directory has system identifier {found}, the archive is for {archive.system_identifier}",
            hint="the cluster was initialised again, or the command names another cluster's archive",
        )


def ready_files(path: Path) -> list[Path]:
    """
    Return the files beside *path* that the server will ask for after it, in that order.

    Histories come first, then everything by name (``pgarch_readyXlog``). What is before *path* in that order has been
    asked for already.
    """
    try:
        names = os.listdir(path.parent / "archive_status")
    except OSError:
        return []
    ready = (match[1] for name in names if (match := _READY.fullmatch(name)))
    here = _rank(path.name)
    return [path.parent / name for name in sorted(ready, key=_rank) if _rank(name) > here]


def _rank(name: str) -> tuple[bool, str]:
    return not is_history_name(name), name
