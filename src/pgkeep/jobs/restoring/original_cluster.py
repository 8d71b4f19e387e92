"""The cluster that a backup was made of, when it is still there on this host: what a copy must stay away from."""

from __future__ import annotations

import os
from pathlib import Path

from pgkeep.datadir.postmaster import PostmasterFile, read_control_file, running_postmaster
from pgkeep.errors import PgkeepError
from pgkeep.pg.data_directory import TABLESPACES
from pgkeep.streams.record import RecordHead


class OriginalCluster:
    """A data directory of the system identifier that the backup has, where the backup says that it was."""

    def __init__(self, data_directory: Path) -> None:
        self.data_directory = data_directory

    @classmethod
    def of(cls, base: RecordHead) -> OriginalCluster | None:
        """Return the cluster of *base*; None when it is not on this host, or closed to this user."""
        if not base.data_directory:
            return None
        data_directory = Path(base.data_directory)
        try:
            control = read_control_file(data_directory)
        except PgkeepError:
            return None
        return cls(data_directory) if str(int(control.system_identifier)) == base.system_identifier else None

    @property
    def postmaster(self) -> PostmasterFile | None:
        """Its server; None when it does not run."""
        return running_postmaster(self.data_directory)

    def tablespaces(self) -> dict[int, Path]:
        """Return the directories of its tablespaces outside the data directory, by OID."""
        return tablespaces_of(self.data_directory)


def tablespaces_of(data_directory: Path) -> dict[int, Path]:
    """Return the directories of a cluster's tablespaces outside its *data_directory*, by OID; none that we may see."""
    try:
        entries = sorted((data_directory / TABLESPACES).iterdir())
        return {int(entry.name): Path(os.readlink(entry)) for entry in entries if _is_link_of_a_tablespace(entry)}
    except OSError:
        return {}


def _is_link_of_a_tablespace(entry: Path) -> bool:
    return entry.name.isascii() and entry.name.isdigit() and entry.is_symlink()
