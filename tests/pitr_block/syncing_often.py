"""Run pgkeep as ``tests/survive/signalled_at.py`` does, making each backup of a chain durable before the next one."""

from __future__ import annotations

import runpy
from pathlib import Path

from pgkeep.datadir import roll_forward

roll_forward.SYNC_SECONDS = 0
runpy.run_path(str(Path(__file__).parents[1] / "survive" / "signalled_at.py"), run_name="__main__")
