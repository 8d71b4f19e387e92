"""Remove what earlier restores moved away, when it is old enough: nobody will ask for it any more."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.datadir.target import OLD_CONTENTS
from pgkeep.jobs.restoring.set_aside import OLD_SUFFIX
from pgkeep.jobs.restoring.state import RestoreState

_STAMP = re.compile(r"\d{8}T\d{6}Z")


def remove_old(state: RestoreState, *, retain_days: int, say: Callable[[str], None]) -> None:
    """
    Remove what restores into the places of *state* moved away more than *retain_days* days ago; 0 for nothing.

    What this restore itself moved away stays, however the clock goes.
    """
    if not retain_days:
        return
    limit = dt.datetime.now(dt.UTC) - dt.timedelta(days=retain_days)
    kept = {aside.new_path for aside in state.moved}
    for path in _moved_away(state):
        stamp = path.name[-16:]
        moment = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        if path in kept or moment > limit or path.is_symlink():
            continue
        if running_postmaster(path) is not None:
            say(f"{path} stays, though a restore moved it away more than {retain_days} days ago: a server runs in it")
            continue
        shutil.rmtree(path, ignore_errors=True)
        say(f"removed {path}, which a restore moved away more than {retain_days} days ago")


def _moved_away(state: RestoreState) -> Iterator[Path]:
    """Yield what bears the name that a restore into these places gives."""
    places = [state.directory, *(place / state.version_directory for place in state.places.values())]
    if state.wal_directory:
        places.append(Path(state.wal_directory))
    for place in (Path(os.path.realpath(path)) for path in places):
        for directory, prefix in ((place.parent, place.name + OLD_SUFFIX), (place, OLD_CONTENTS)):
            names = os.listdir(directory) if directory.is_dir() else []
            for name in sorted(names):
                if name.startswith(prefix) and _STAMP.fullmatch(name.removeprefix(prefix)):
                    yield directory / name
