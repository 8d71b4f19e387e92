"""The line that each phase of a restore has in the log."""

from __future__ import annotations

from collections.abc import Callable

PHASES = ("pre-check", "lay-down", "recovery-config", "start-and-replay", "topology", "verify-and-cleanup")


class PhaseLog:
    """Counts the phases and says one line for each."""

    def __init__(self, say: Callable[[str], None], *, phases_done: int = 0) -> None:
        """Begin behind the phases that an earlier run has done."""
        self._say = say
        self._phase = phases_done

    def done(self, text: str) -> None:
        """Say what came of the phase that is over; the next one begins."""
        name = PHASES[self._phase]
        self._phase += 1
        self._say(f"RESTORE PHASE {self._phase}/{len(PHASES)} {name}: {text}")
