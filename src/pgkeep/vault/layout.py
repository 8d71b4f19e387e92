"""
Names in a vault: which file is where, and what a volume's members are called.

::

    vault.toml                                             format and id of the vault
    <cluster>/cluster.json                                 which cluster this is
             /lock, backup.lock, holders/                  see vault/lock.py
             /backups/<backup_id>/volume-NN.tar.zst        content
                                 /RESTORE.md               how to restore without pgkeep
                                 /manifest.json.zst        the record, written last: its presence is the commit
                                 /pinned                   expire leaves this backup alone
                                 /writing                  locked by the job that writes it
             /wal/                                         see vault/wal_archive.py
             /wal-index/                                   a cache, see vault/wal_index.py
             /wal-holes.jsonl                              see vault/wal_holes.py
             /proofs/                                      see vault/proofs.py
"""

from __future__ import annotations

import datetime as dt
import functools
import re

from pgkeep.errors import FormatError, UsageError

VAULT_FORMAT = 1

VAULT_FILE = "vault.toml"
CLUSTER_FILE = "cluster.json"
BACKUPS_DIRECTORY = "backups"
WAL_DIRECTORY = "wal"
MANIFEST_FILE = "manifest.json.zst"
DELETED_MANIFEST_FILE = "manifest.json.zst.deleting"
RECIPE_FILE = "RESTORE.md"
PIN_FILE = "pinned"
WRITING_FILE = "writing"

_CLUSTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_BACKUP_ID = re.compile(r"\d{8}T\d{6}Z-[FDI]")
_VOLUME_NAME = re.compile(r"volume-(\d{2,4})\.tar\.zst")


def check_cluster_name(name: str) -> str:
    """Return *name* when it may be a directory of the vault."""
    if _CLUSTER_NAME.fullmatch(name) is None:
        raise UsageError(
            f'not a cluster name: expected up to 63 letters, digits, "_", "-", ".", not beginning with "-" or ".", '
            f'found "{name}"'
        )
    return name


# Asked once for every member of a volume, about one or a few of them.
@functools.lru_cache(maxsize=64)
def is_backup_id(name: str) -> bool:
    """Tell whether *name* is a backup id: ``20261120T204800Z-F``."""
    if _BACKUP_ID.fullmatch(name) is None:
        return False
    try:
        dt.datetime.strptime(name[:-2], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    except ValueError:
        return False
    return True


def check_backup_id(name: str) -> str:
    """Return *name* when it is a backup id; a name from outside must never become a path unchecked."""
    if not is_backup_id(name):
        raise UsageError(f'not a backup id: expected something like 20261120T204800Z-F, found "{name}"')
    return name


def volume_name(number: int) -> str:
    """Return the file name of volume *number*, 0 to 9999."""
    return f"volume-{number:02}.tar.zst"


def is_volume_name(name: str) -> bool:
    """Tell whether *name* is that of a volume."""
    return _VOLUME_NAME.fullmatch(name) is not None


def member_name(path: str) -> str:
    """
    Return the name that the item at virtual *path* has in a volume.

    They are such that unpacking all volumes of a Full gives a data directory: the files of ``pitr/pgdata`` without a
    prefix, tablespaces below ``pg_tblspc``, WAL below ``pg_wal``. Those of a ``pitr_block`` backup are the same below a
    directory of its id, as pg_combinebackup wants them, but for the WAL. What other modes hold keeps the mode's name.
    """
    first, _, rest = path.partition("/")
    if first != "@postgresql":
        raise FormatError(f'not a virtual path: expected @postgresql/..., found "{path}"')
    if rest.startswith("cluster_"):
        rest = rest.partition("/")[2]
    mode, _, inner = rest.partition("/")
    if not inner or any(part in ("", ".", "..") for part in inner.split("/")):
        raise FormatError(f'not the virtual path of an item: "{path}"')
    if mode == "pitr":
        return _in_data_directory(inner)
    if mode == "pitr_block":
        backup_id, _, below = inner.partition("/")
        if is_backup_id(backup_id) and below:
            return f"{backup_id}/{_in_data_directory(below)}".removesuffix("/.")
        return _in_data_directory(inner)
    return rest


def _in_data_directory(inner: str) -> str:
    place, _, below = inner.partition("/")
    if place == "pgdata":
        return below or "."
    if place == "tblspc":
        return f"pg_tblspc/{below}" if below else "pg_tblspc"
    if place == "wal":
        return f"pg_wal/{below}" if below else "pg_wal"
    return inner
