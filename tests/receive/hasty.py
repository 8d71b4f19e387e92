"""Run pgkeep with a watchdog that looks ten times as often, and drops a slot ten times as soon."""

from __future__ import annotations

from pgkeep.cli.app import main
from pgkeep.jobs.receiving import slot_budget, watchdog

if __name__ == "__main__":
    watchdog.LOOK_SECONDS /= 10
    watchdog.ASK_SECONDS /= 10
    slot_budget.STILL_SECONDS /= 10
    main()
