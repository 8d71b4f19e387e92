"""A standby to be, as the state of its restore has it: apart from how its primary is asked, which needs a client."""

from __future__ import annotations

import msgspec


class StandbyState(msgspec.Struct, frozen=True, kw_only=True):
    """
    What phases 3 to 6 need of a standby to be; part of the state of a restore.

    Attributes:
        conninfo: How it reaches its primary.
        where: The same for messages.
        timeline: The primary's; 0 when it could not be asked.
        history: The history file of that timeline; empty on timeline 1.
        base_timeline: The timeline on which the base ends.
    """

    conninfo: str
    where: str
    timeline: int = 0
    history: str = ""
    base_timeline: int = 0
