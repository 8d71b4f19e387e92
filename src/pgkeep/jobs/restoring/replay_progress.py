"""How far a replay is: a line every now and then, so that nobody takes a long one for a hang."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

from pgkeep.jobs.amount import size_text
from pgkeep.pg.lsn import Lsn

_MOST_SECONDS = 30 * 86400


class ReplayProgress:
    """
    Says how much WAL is replayed and how much is left, how fast it goes, and how long it will take.

    The pace is that of the time since the line before: replay is slow where there is much to read, and fast elsewhere.
    """

    def __init__(
        self,
        start: Lsn,
        end: Lsn | None,
        *,
        say: Callable[[str], None],
        report_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Begin now.

        Args:
            start: Where replay begins.
            end: Up to where there is WAL; None when that is not known.
            say: Takes a line.
            report_seconds: Between two lines.
            clock: Seconds that only grow.
        """
        self._start = start
        self._end = end
        self._say = say
        self._report_seconds = report_seconds
        self._clock = clock
        self._last = (clock(), start)
        self._next = clock() + report_seconds

    @property
    def is_due(self) -> bool:
        """Whether it is time for a line."""
        return self._clock() >= self._next

    def tell(self, lsn: Lsn, commit: dt.datetime | None = None, *, note: str = "") -> None:
        """
        Say a line when it is time for one.

        Args:
            lsn: Up to where WAL is replayed.
            commit: Time of the last commit that was replayed.
            note: What there is to say about *lsn*.
        """
        if not self.is_due:
            return
        now = self._clock()
        then, before = self._last
        self._last = (now, max(lsn, self._start))
        self._next = now + self._report_seconds
        parts = [f"replayed to {lsn}{note}"]
        done = max(0, lsn - self._start)
        if self._end is None:
            parts.append(f"{size_text(done)} of WAL")
        else:
            parts.append(f"{size_text(done)} of at most {size_text(max(self._end - self._start, done))} of WAL")
        pace = max(0, lsn - before) / (now - then) if now > then else 0.0
        if pace:
            parts.append(f"{size_text(int(pace))}/s")
            if self._end is not None and self._end > lsn and (self._end - lsn) / pace < _MOST_SECONDS:
                parts.append(f"done in {_duration_text((self._end - lsn) / pace)} at most")
        if commit is not None:
            parts.append(f"last commit {commit.isoformat(sep=' ', timespec='seconds')}")
        self._say(", ".join(parts))


def _duration_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
