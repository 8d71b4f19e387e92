"""``pgkeep check`` for mode pitr_block."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.cluster import wait_for
from tests.restore.keeper import Keeper


def summaries(keeper: Keeper, *arguments: str) -> dict[str, Any]:
    """Return what the check says of the summaries."""
    outcome = keeper.run("check", "--mode=pitr_block", "--json", *arguments, *keeper.server_options())
    [found] = [test for test in json.loads(outcome.stdout) if test["name"] == "summaries"]
    return dict(found)


def test_check_looks_at_the_summaries(keeper: Keeper) -> None:
    """It says how long summaries are kept, warns when that is too short, and fails when there are none."""
    wait_for(
        lambda: keeper.cluster.value("SELECT summarized_tli > 0 FROM pg_get_wal_summarizer_state()"), "it has begun"
    )
    found = summaries(keeper)
    assert (found["outcome"], found["text"].partition(", ")[0]) == ("OK", "summaries are kept for 30 days")
    short = summaries(keeper, "--pitr-block-summary-days=40")
    assert (short["outcome"], short["text"], short["hint"]) == (
        "WARN",
        "summaries are kept for 30 days (wal_summary_keep_time), pitr_block_summary_days asks for 40 days",
        "ALTER SYSTEM SET wal_summary_keep_time = '40d'; SELECT pg_reload_conf();",
    )
    keeper.cluster.sql("ALTER SYSTEM SET summarize_wal = off")
    keeper.cluster.reload()
    wait_for(lambda: keeper.cluster.value("SHOW summarize_wal") == "off", "the setting has arrived")
    off = summaries(keeper)
    assert (off["outcome"], off["text"], off["hint"]) == (
        "FAILED",
        "summarize_wal is off: every Differential and Incremental would be made as a Full",
        "ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();",
    )
