"""``pgkeep check``."""

from __future__ import annotations

import os

from pgkeep.cli.door import Call
from pgkeep.cli.named_tests import report_results
from pgkeep.cli.output import say, warn
from pgkeep.jobs.check import CheckRequest, check
from pgkeep.jobs.connection import open_source
from pgkeep.modes.physical_wal import WalOptions
from pgkeep.settings import check_config, read_config


def run(call: Call, *, as_json: bool) -> None:
    """Print a line per test as it ends; raise CheckFailed when one failed."""
    settings = call.settings
    config = read_config(settings.text("config") if settings.is_given("config") else os.environ.get("PGKEEP_CONFIG"))
    # Without a mode everything is tested, the way of the WAL too.
    mode = settings.get("mode") if settings.is_given("mode") else "pitr"
    request = CheckRequest(
        cluster=call.cluster_name,
        vault_path=call.vault_path,
        open_server=lambda: open_source(settings, say=say, warn=warn),
        mode=mode,
        # Mode pitr_block knows no other.
        transport="stream" if mode == "pitr_block" else settings.get("transport"),
        summary_days=settings.number("pitr_block_summary_days"),
        wal=WalOptions(
            archive_dir=settings.get("archive_dir") or "auto",
            slot_name=settings.get("slot_name") or "",
            allow_unbounded_slot=settings.get("allow_unbounded_slot"),
        ),
        archive_timeout_seconds=settings.number("archive_timeout"),
        bin_dir=call.bin_dir,
        config_problems=check_config(config),
        track_replication_state=settings.flag("track_replication_state"),
        spool=call.spool,
        receive_slot=call.receive_slot,
        window_seconds=settings.number("cdp_window_seconds"),
    )
    report_results(check(request), as_json=as_json)
