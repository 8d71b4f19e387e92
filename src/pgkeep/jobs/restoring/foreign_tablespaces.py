"""Tablespaces in a restore's way that are another cluster's: overwriting is allowed for the one that was backed up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pgkeep.datadir.processes import running_data_directories
from pgkeep.errors import RestoreRefused
from pgkeep.jobs.restoring.original_cluster import tablespaces_of


def check_not_foreign(
    in_the_way: Sequence[Path], *, data_directory: Path, version_directory: str, is_wiped: bool
) -> None:
    """
    Refuse to move or remove the tablespace of another cluster.

    Args:
        in_the_way: What would go, no links.
        data_directory: Of the cluster that is replaced; it need not exist.
        version_directory: Name of the directory inside a tablespace that belongs to the server's version.
        is_wiped: They would be removed for ever: each must then be one of the replaced cluster's own.

    Raises:
        RestoreRefused: One is in use by a server that runs here, or nobody knows whose it is.
    """
    tablespaces = [path for path in in_the_way if path.name == version_directory]
    if not tablespaces:
        return
    own = set(_version_directories(data_directory, version_directory))
    here = os.path.realpath(data_directory)
    others = {
        path: other
        for other in running_data_directories()
        if os.path.realpath(other) != here
        for path in _version_directories(other, version_directory)
    }
    for path in tablespaces:
        if path in others:
            raise RestoreRefused(
                f"{path} is in use: it is a tablespace of the server in {others[path]}",
                hint="name another directory in the tablespace map",
            )
        if is_wiped and path not in own:
            raise RestoreRefused(
                f"{path} is no tablespace of the cluster in {data_directory}: it may be another one's",
                hint="leave wipe_pgdata out, so that it is renamed, or name another directory in the tablespace map",
            )


def _version_directories(data_directory: Path, name: str) -> Iterator[Path]:
    for place in tablespaces_of(data_directory).values():
        yield Path(os.path.realpath(place / name))
