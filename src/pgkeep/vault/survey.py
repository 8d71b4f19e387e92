"""What a restore of one backup will read and write, from its file list alone: one pass before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgkeep.errors import BackupUnusable
from pgkeep.vault.layout import volume_name
from pgkeep.vault.stored_backup import StoredBackup


@dataclass(frozen=True, slots=True)
class Survey:
    """
    Sums over the files of a backup.

    Attributes:
        tablespace_bytes: Content of each tablespace, by OID.
        volume_bytes: How long each volume must be at least, by backup and number.
    """

    tablespace_bytes: dict[int, int] = field(default_factory=dict)
    volume_bytes: dict[tuple[str, int], int] = field(default_factory=dict)


def survey(backup: StoredBackup) -> Survey:
    """
    Return what the files of *backup* add up to; the volumes that hold them, other backups' too, are looked at.

    Raises:
        BackupUnusable: A volume is missing or too short.
    """
    found = Survey()
    for entry in backup.files():
        _, is_in_tablespace, rest = entry.path.partition("/tblspc/")
        oid = rest.partition("/")[0]
        if is_in_tablespace and oid.isascii() and oid.isdigit():
            found.tablespace_bytes[int(oid)] = found.tablespace_bytes.get(int(oid), 0) + entry.size
        at = entry.at
        if at is not None:
            end = at.offset + at.header_length + sum(at.frames) + at.padding_length
            key = (at.backup_id, at.volume)
            found.volume_bytes[key] = max(end, found.volume_bytes.get(key, 0))
    for (backup_id, number), end in found.volume_bytes.items():
        path = backup.directory.parent / backup_id / volume_name(number)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BackupUnusable(
                f"backup {backup.backup_id} cannot be used: {path.name} of backup {backup_id}: {error.strerror}"
            ) from error
        if size < end:
            raise BackupUnusable(
                f"backup {backup.backup_id} cannot be used: {path.name} of backup {backup_id} has {size} bytes, "
                f"expected at least {end}"
            )
    return found
