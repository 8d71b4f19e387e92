"""The most memory that a pgkeep had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.lab.server_user import server_user
from tests.restore.keeper import Keeper, environment

_MEASURED = Path(__file__).with_name("measured.py")


def peak_mib(keeper: Keeper, verb: str, *arguments: str) -> float:
    """
    Run pgkeep, which must succeed; return the most memory that it had.

    Its own ``VmHWM`` and not the ``ru_maxrss`` of wait4: that one also counts what the process that started it had at
    the moment of its exec, which is the test's own and grows with the tests that ran before.
    Linux ``fs/exec.c``, ``setmax_mm_hiwater_rss``.
    """
    report = keeper.directory / "peak"
    command = [sys.executable, str(_MEASURED), str(report), verb, keeper.name, f"--vault={keeper.vault}", *arguments]
    done = subprocess.run(
        command,
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        **server_user().popen_arguments(),
    )
    assert done.returncode == 0, done.stderr
    return int(report.read_text()) / 1024
