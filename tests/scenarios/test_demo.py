"""``pgkeep demo``, which is what a newcomer runs first."""

from __future__ import annotations

import re
import subprocess

import pytest

from pgkeep.cli.demo import STORIES
from tests.lab.server_user import server_user
from tests.restore.keeper import PGKEEP, TIMEOUT_SECONDS, environment

# A line of a phase, without what it found.
_PHASE = re.compile(r"^pgkeep: (RESTORE PHASE \d/6 [a-z-]+): ", re.MULTILINE)
PHASES = [
    "RESTORE PHASE 1/6 pre-check",
    "RESTORE PHASE 2/6 lay-down",
    "RESTORE PHASE 3/6 recovery-config",
    "RESTORE PHASE 4/6 start-and-replay",
    "RESTORE PHASE 5/6 topology",
    "RESTORE PHASE 6/6 verify-and-cleanup",
]


@pytest.mark.parametrize("story", STORIES)
def test_story_ends_well(story: str) -> None:
    """Every story brings back what was lost; those of a whole cluster show the six phases of their restore."""
    result = subprocess.run(
        [PGKEEP, "demo", story],
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        **server_user().popen_arguments(),
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith("== demo: OK\n")
    if story != "parallel_dump":
        assert _PHASE.findall(result.stdout)[: len(PHASES)] == PHASES, result.stdout
