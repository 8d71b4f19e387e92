"""
The files that make a server recover: ``backup_label``, ``tablespace_map``, the signal file, ``postgresql.auto.conf``.

Settings go to the end of ``postgresql.auto.conf``, where they win over all other files, in a block of their own. When
recovery is over they are taken out again, and what stood there before is in force once more. A server that ran
``ALTER SYSTEM`` meanwhile has dropped the block's marks but kept its lines; these are then found by name and value.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pgkeep.datadir.durable import remove_file, write_file
from pgkeep.datadir.owner import Owner
from pgkeep.errors import PgkeepError
from pgkeep.pg import data_directory as names
from pgkeep.pg.configuration_file import settings_of
from pgkeep.pg.recovery import render_setting, render_settings

AUTO_CONFIGURATION = "postgresql.auto.conf"
CONFIGURATION = "postgresql.conf"
HOST_BASED_ACCESS = "pg_hba.conf"
IDENT_MAP = "pg_ident.conf"

_BLOCK_BEGIN = "# pgkeep restore: begin\n"
_BLOCK_END = "# pgkeep restore: end\n"
_BLOCK = re.compile(re.escape(_BLOCK_BEGIN) + ".*?" + re.escape(_BLOCK_END), re.DOTALL)
_SETTING = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_$.]*)(?:\s*=\s*|\s+)('(?:[^'\\]|''|\\.)*'|[^\s#']+)")
_PLACE_SETTINGS = frozenset({"data_directory", "hba_file", "ident_file", "external_pid_file"})
# Enough to get in as the server's own user; whoever restores puts the real one back.
_MINIMAL_ACCESS = "local all all peer\nlocal replication all peer\n"


class Signal(enum.Enum):
    """What a server does when it finds the file of that name: recover and end, or go on following a primary."""

    RECOVERY = names.RECOVERY_SIGNAL
    STANDBY = names.STANDBY_SIGNAL


@dataclass(frozen=True, slots=True)
class RecoveryFiles:
    """
    What a restore writes into a data directory before its server starts.

    Attributes:
        backup_label: The server's own text; empty when the directory recovers without one.
        tablespace_map: Its text, with the paths of this restore; empty when there are no tablespaces outside.
        signal: None starts the server without archive recovery.
        settings: Name to value, in the order in which they are to be read.
    """

    backup_label: str
    tablespace_map: str
    signal: Signal | None
    settings: Mapping[str, str]

    def write(self, data_directory: Path, *, owner: Owner | None = None) -> None:
        """Write all of them, durably; doing it again gives the same. Raise PgkeepError when one cannot be written."""
        texts = {names.BACKUP_LABEL: self.backup_label, names.TABLESPACE_MAP: self.tablespace_map}
        try:
            for name, text in texts.items():
                if text:
                    write_file(data_directory / name, text.encode(errors="surrogateescape"), owner=owner)
                else:
                    remove_file(data_directory / name)
            append_settings(data_directory, self.settings, owner=owner)
            for signal in Signal:
                if signal is self.signal:
                    write_file(data_directory / signal.value, b"", owner=owner)
                else:
                    remove_file(data_directory / signal.value)
        except OSError as error:
            raise PgkeepError(f"cannot write the recovery files in {data_directory}: {error.strerror}") from error


def append_settings(data_directory: Path, settings: Mapping[str, str], *, owner: Owner | None = None) -> None:
    """Put *settings* at the end of ``postgresql.auto.conf``, in place of those that an earlier call put there."""
    text = _BLOCK.sub("", _read(data_directory / AUTO_CONFIGURATION))
    if text and not text.endswith("\n"):
        text += "\n"
    if settings:
        text += _BLOCK_BEGIN + render_settings(settings) + _BLOCK_END
    _write(data_directory / AUTO_CONFIGURATION, text, owner)


def remove_settings(data_directory: Path, settings: Mapping[str, str], *, owner: Owner | None = None) -> None:
    """Take *settings* out of ``postgresql.auto.conf`` again; a value that somebody changed meanwhile stays."""
    text = _read(data_directory / AUTO_CONFIGURATION)
    without_block = _BLOCK.sub("", text)
    if without_block == text:
        lines = text.splitlines(keepends=True)
        for name, value in settings.items():
            rendered = render_setting(name, value).strip()
            for index in range(len(lines) - 1, -1, -1):
                if lines[index].strip() == rendered:
                    del lines[index]
                    break
        without_block = "".join(lines)
    if without_block != text:
        _write(data_directory / AUTO_CONFIGURATION, without_block, owner)


def remove_signals(data_directory: Path) -> None:
    """Remove the signal files, durably."""
    for signal in Signal:
        remove_file(data_directory / signal.value)


def missing_configuration(data_directory: Path) -> list[str]:
    """
    Return which of the server's three configuration files are not in *data_directory*.

    Where they are kept elsewhere, as Debian does, a base backup does not hold them, and a server does not start
    without them.
    """
    return [name for name in (CONFIGURATION, HOST_BASED_ACCESS, IDENT_MAP) if not (data_directory / name).exists()]


def write_missing_configuration(
    data_directory: Path, settings: Mapping[str, str], *, owner: Owner | None = None
) -> list[str]:
    """
    Write the configuration files that are missing, as little as lets a server start, and return their names.

    Args:
        data_directory: Of the server.
        settings: What the new ``postgresql.conf`` sets: those that the backup recorded.
        owner: Who owns the files.
    """
    contents = {
        CONFIGURATION: "# written by pgkeep: the backup held no postgresql.conf\n" + render_settings(settings),
        HOST_BASED_ACCESS: "# written by pgkeep: the backup held no pg_hba.conf\n" + _MINIMAL_ACCESS,
        IDENT_MAP: "# written by pgkeep: the backup held no pg_ident.conf\n",
    }
    missing = missing_configuration(data_directory)
    for name in missing:
        _write(data_directory / name, contents[name], owner)
    return missing


def foreign_places(data_directory: Path) -> dict[str, str]:
    """
    Return settings of ``postgresql.conf`` that name places of the server that was backed up.

    ``data_directory`` among them is a trap: ``pg_ctl -D`` of the restored directory would start the original.
    """
    found = {}
    for line in _read(data_directory / CONFIGURATION).splitlines():
        match = _SETTING.match(line)
        if match is None or match[1].lower() not in _PLACE_SETTINGS:
            continue
        value = match[2]
        if value.startswith("'"):
            value = value[1:-1].replace("''", "'")
        if value and os.path.normpath(data_directory / value) != os.path.normpath(data_directory):
            found[match[1].lower()] = value
    return found


def synchronous_standbys(data_directory: Path) -> str:
    """Return what ``synchronous_standby_names`` is in the directory's own files; empty when commits wait for nobody."""
    found = ""
    for name in (CONFIGURATION, AUTO_CONFIGURATION):
        for setting, value in settings_of(_read(data_directory / name)):
            if setting == "synchronous_standby_names":
                found = value
    return found


def _read(path: Path) -> str:
    try:
        # Its directory belongs to the server's user: a link there must not make root read another file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise PgkeepError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode(errors="surrogateescape")


def _write(path: Path, text: str, owner: Owner | None) -> None:
    try:
        write_file(path, text.encode(errors="surrogateescape"), owner=owner)
    except OSError as error:
        raise PgkeepError(f"cannot write {path}: {error.strerror}") from error
