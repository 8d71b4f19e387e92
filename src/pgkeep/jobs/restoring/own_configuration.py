"""The configuration of a restored server that lies outside its data directory: put back, or left for a person to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from pgkeep.datadir.configuration_files import put_back, take_back
from pgkeep.datadir.owner import Owner
from pgkeep.pg.data_directory import CONFIGURATION_DIRECTORY
from pgkeep.streams.record import RecordHead

_NAMES_SAID = 6
Say = Callable[[str], None]


class OutsideState(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a restore knows of the configuration outside; part of the state of a restore.

    Attributes:
        files: Absolute paths of the files that the backup holds.
        absent: Those of them where nothing was before the restore.
        config_file: The server's own ``postgresql.conf``, when that is outside; empty otherwise.
        named: Files and directories that its settings name and the backup does not hold, by setting.
        is_in_place: Whether the restore goes to where the cluster was.
        may_replace: Whether an older file may be renamed out of the way.
    """

    files: list[str] = []
    absent: list[str] = []
    config_file: str = ""
    named: dict[str, str] = {}
    is_in_place: bool = False
    may_replace: bool = False

    @property
    def own_config_file(self) -> Path | None:
        """The ``postgresql.conf`` outside with which the restored server runs; None for the one in its directory."""
        return (
            Path(self.config_file)
            if self.is_in_place and self.config_file and os.path.exists(self.config_file)
            else None
        )


def outside_state(base: RecordHead, *, is_in_place: bool, may_replace: bool) -> OutsideState:
    """Return what is known of the configuration outside before the restore of *base* touches anything."""
    files = [str(path) for path in base.details.get("configuration", ())]
    config_file = base.settings.get("config_file", "")
    return OutsideState(
        files=files,
        absent=[path for path in files if not os.path.lexists(path)] if is_in_place else [],
        config_file="" if config_file.startswith(f"{base.data_directory.rstrip('/')}/") else config_file,
        named=dict(base.details.get("named_files", {})),
        is_in_place=is_in_place,
        may_replace=may_replace,
    )


def put_back_outside(
    outside: OutsideState, data_directory: Path, *, owner: Owner | None, restore_id: str, say: Say, warn: Say
) -> None:
    """Put the configuration files to their places where the restore is in place, and say what became of them."""
    if not outside.files:
        return
    laid = data_directory / CONFIGURATION_DIRECTORY
    if not outside.is_in_place:
        say(f"configuration from outside the data directory, not in use here: {_named(outside.files)}, in {laid}")
        return
    done = put_back(data_directory, owner=owner, may_replace=outside.may_replace, suffix=aside_suffix(restore_id))
    if done.placed:
        say(f"configuration put back: {_named([str(path) for path in done.placed])}")
    for place, why in done.kept.items():
        warn(f"configuration file {place} is not put back, {why}: the backup's is in {laid}")
    for name, path in outside.named.items():
        if not os.path.exists(path):
            warn(f"{name} is {path}, which is not on this host: the server may not start as it is configured")


def take_back_outside(outside: OutsideState, *, restore_id: str, say: Say) -> None:
    """Undo ``put_back_outside``: what was there before is there again, what was put there has another name."""
    if outside.is_in_place:
        for place, new_path in take_back(outside.files, outside.absent, suffix=aside_suffix(restore_id)):
            say(f"configuration file {place} is as it was; the backup's is {new_path}")


def aside_suffix(restore_id: str) -> str:
    """Return what the name of a configuration file gets that gives way to the backup's."""
    return f".old.{restore_id}"


def _named(paths: list[str]) -> str:
    more = f" and {len(paths) - _NAMES_SAID} more" if len(paths) > _NAMES_SAID else ""
    return ", ".join(paths[:_NAMES_SAID]) + more
