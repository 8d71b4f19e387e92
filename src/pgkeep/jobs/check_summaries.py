"""The named test of what mode pitr_block needs beyond the others: a server that notes which blocks have changed."""

from __future__ import annotations

import datetime as dt

from pgkeep.errors import CheckFailed
from pgkeep.jobs.named_tests import Warned
from pgkeep.modes.pitr_block import check_server
from pgkeep.modes.pitr_block_gate import days
from pgkeep.server.connection import Server
from pgkeep.server.wal_summaries import is_summarizing, keep_time, summarizer


def check_summaries(server: Server, *, wanted: dt.timedelta) -> str:
    """
    Return what was found of the WAL summaries of *server*.

    Args:
        server: From which backups will be taken.
        wanted: For how long it should keep them.

    Raises:
        ServerError: It makes no incremental backups.
        CheckFailed: It writes no summaries.
        Warned: It keeps them for less than *wanted*.
    """
    check_server(server)
    if not is_summarizing(server):
        raise CheckFailed(
            "summarize_wal is off: every Differential and Incremental would be made as a Full",
            hint="ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf();",
        )
    kept = keep_time(server)
    if kept is not None and kept < wanted:
        raise Warned(
            f"summaries are kept for {days(kept)} (wal_summary_keep_time), pitr_block_summary_days asks for "
            f"{days(wanted)}",
            hint=f"ALTER SYSTEM SET wal_summary_keep_time = '{days(wanted).partition(' ')[0]}d'; "
            "SELECT pg_reload_conf();",
        )
    how_long = "for ever" if kept is None else f"for {days(kept)}"
    return f"summaries are kept {how_long}, there are some up to {summarizer(server).summarized}"
