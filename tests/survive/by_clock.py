"""
Run pgkeep by a clock that stands still.

::

    python by_clock.py 2026-11-20T20:48:00+00:00 backup main --vault=...
"""

from __future__ import annotations

import datetime as dt
import sys
from typing import Self

_STOPPED_AT = dt.datetime.fromisoformat(sys.argv.pop(1))


class StoppedClock(dt.datetime):
    """The class of moments, but for the present one."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        """Return where the clock stands."""
        return cls.fromtimestamp(_STOPPED_AT.timestamp(), tz)


if __name__ == "__main__":
    dt.datetime = StoppedClock  # type: ignore[misc]  # before any module of pgkeep's looks at the clock

    from pgkeep.cli.app import main

    main()
