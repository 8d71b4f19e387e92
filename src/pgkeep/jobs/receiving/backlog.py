"""Since when there has been something to do: what came in is noted, what is done is taken off."""

from __future__ import annotations

from collections import deque

from pgkeep.pg.lsn import WalPosition

_MOST_NOTES = 512


class Backlog:
    """
    WAL that one has and another does not have yet.

    It remembers when the end of the WAL was where, with at most 512 notes: of more it forgets every second one, and
    takes the WAL between two notes for younger than it is by no more than the time between them.
    """

    def __init__(self) -> None:
        self._notes: deque[tuple[WalPosition, float]] = deque()

    def note(self, end: WalPosition, now: float) -> None:
        """Say that WAL reaches up to *end*, at *now*, in seconds of any clock."""
        # What is left of an older timeline is left all the same.
        if self._notes and _place(self._notes[-1][0]) >= _place(end):
            return
        self._notes.append((end, now))
        if len(self._notes) > _MOST_NOTES:
            # The first one says since when; the last one, up to where.
            kept = list(self._notes)
            self._notes = deque([*kept[:-1:2], kept[-1]])

    def settle(self, done: WalPosition | None) -> None:
        """Say that nothing is left to do up to *done*; None for nothing was ever done."""
        while done is not None and self._notes:
            if _place(self._notes[0][0]) > _place(done):
                return
            self._notes.popleft()

    @property
    def since(self) -> float | None:
        """When the oldest WAL that is left came in; None when nothing is left."""
        return self._notes[0][1] if self._notes else None


def _place(position: WalPosition) -> tuple[int, int]:
    return position.timeline, position.lsn
