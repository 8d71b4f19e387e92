"""The directory beside a target in which the backups of a chain lie before they are combined."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pgkeep.errors import PgkeepError, RestoreRefused

STAGING_MARKER = "pgkeep.combining"
"""A file in the directory that says whose it is."""


def staging_directory(data_directory: Path) -> Path:
    """Return where the backups lie beside *data_directory* before they are combined."""
    return data_directory.with_name(f"{data_directory.name}.pgkeep-combine")


def remove_staging(data_directory: Path) -> None:
    """
    Remove the staging directory of a restore into *data_directory*; nothing happens where there is none.

    Raises:
        RestoreRefused: Something else has that name.
        PgkeepError: It cannot be removed.
    """
    staging = staging_directory(data_directory)
    if not os.path.lexists(staging):
        return
    try:
        is_ours = not staging.is_symlink() and (not (found := os.listdir(staging)) or STAGING_MARKER in found)
        if not is_ours:
            raise RestoreRefused(f"{staging} is in the way, and is none of pgkeep's", hint="move it away")
        # The mark goes last: what a kill in the middle leaves is known again.
        for name in found:
            if name != STAGING_MARKER:
                shutil.rmtree(staging / name)
        shutil.rmtree(staging)
    except OSError as error:
        raise PgkeepError(f"cannot remove {staging}: {error.strerror}") from error
