"""Parameters that the table has and that nothing acts on yet."""

from __future__ import annotations

NOT_BUILT = frozenset(
    {
        "cdp_window_seconds",
        "log_dir",
        "pgdata_backup_retain_days",
        "pitr_block_summary_days",
        "post_restore_sql",
        "post_restore_sql_timeout",
        "primary_conninfo",
        "recreate_replication_slots",
        "recreate_subscriptions",
        "restore_as_standby",
        "restore_replication_state",
        "verify_amcheck_after",
        "verify_checksum_after",
        "wal_segment_overlap",
        "wipe_pgdata",
    }
)
"""Where one is set, both doors say so; the command line has further ones that only the other door acts on."""
