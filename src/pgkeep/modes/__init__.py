"""How each kind of backup is made and put back; one file per mode."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from pgkeep.errors import SettingsError

if TYPE_CHECKING:
    from pgkeep.modes.contract import Mode

MODES = {
    "dump": "pgkeep.modes.dump:DumpMode",
    "parallel_dump": "pgkeep.modes.parallel_dump:ParallelDumpMode",
    "pitr": "pgkeep.modes.pitr:PitrMode",
    "pitr_block": "pgkeep.modes.pitr_block:PitrBlockMode",
    "cdp": "pgkeep.modes.cdp:CdpMode",
}
"""Every mode by its name: module and class, imported when it is asked for."""


def mode_named(name: str) -> Mode:
    """Return the mode called *name*; raise SettingsError for one that this version does not have."""
    if name not in MODES:
        raise SettingsError(f"mode {name} is not in this version of pgkeep: expected one of {', '.join(MODES)}")
    module, _, kind = MODES[name].partition(":")
    return cast("Mode", getattr(importlib.import_module(module), kind)())
