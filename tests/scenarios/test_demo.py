"""``pgkeep demo``, which is what a newcomer runs first."""

from __future__ import annotations

import re

import pytest

from pgkeep.cli.demo import STORIES
from tests.lab.server_user import server_user
from tests.restore.keeper import PGKEEP, TIMEOUT_SECONDS, environment
from tests.scenarios.test_table import PHASES

# A line of a phase, without what it found.
_PHASE = re.compile(r"^pgkeep: (RESTORE PHASE \d/6 [a-z-]+): ", re.MULTILINE)


@pytest.mark.parametrize("story", STORIES)
def test_story_ends_well(story: str) -> None:
    """Every story brings back what was lost; those of a whole cluster show the six phases of their restore."""
    result = server_user().run([PGKEEP, "demo", story], env=environment(), timeout_seconds=TIMEOUT_SECONDS, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith("== demo: OK\n")
    if story != "parallel_dump":
        assert _PHASE.findall(result.stdout)[: len(PHASES)] == PHASES, result.stdout
