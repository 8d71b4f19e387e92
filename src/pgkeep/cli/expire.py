"""``pgkeep expire``."""

from __future__ import annotations

import datetime as dt

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, print_line, warn
from pgkeep.jobs.amount import size_text
from pgkeep.vault.expire import ExpireReport, Removed, expire
from pgkeep.vault.retention import RetentionPolicy


def run(call: Call, *, dry_run: bool, pin: str, unpin: str, as_json: bool) -> None:
    """Pin or unpin a backup where that is asked for; otherwise remove what the retention does not keep."""
    with call.cluster() as cluster:
        if pin or unpin:
            if pin:
                cluster.pin(pin)
                print_line(f"{pin} is pinned: expire keeps it and what it needs")
            if unpin:
                cluster.unpin(unpin)
                print_line(f"{unpin} is not pinned")
            return
        count, window = call.settings.number("retention_count"), call.settings.number("retention_window")
        policy = RetentionPolicy(count=count or None, window=dt.timedelta(seconds=window) if window else None)
        report = expire(cluster, policy, now=dt.datetime.now(dt.UTC), dry_run=dry_run)
    for note in report.plan.notes:
        warn(note)
    if as_json:
        print_json(_document(call.cluster_name, report))
        return
    verb = "would remove" if dry_run else "removed"
    for verdict in report.plan.verdicts:
        if verdict.keep:
            print_line(f"keep {verdict.backup_id}: {verdict.reason}")
    for removed in (*report.backups, *report.leftovers):
        print_line(f"{verb} {removed.backup_id}: {removed.reason} ({size_text(removed.stored_bytes)})")
    print_line(f"{verb} {report.wal_files} WAL files ({size_text(report.wal_bytes)})")


def _document(cluster: str, report: ExpireReport) -> dict[str, object]:
    def rows(removed: list[Removed]) -> list[dict[str, object]]:
        return [{"backup_id": r.backup_id, "reason": r.reason, "stored_bytes": r.stored_bytes} for r in removed]

    return {
        "cluster": cluster,
        "dry_run": report.dry_run,
        "kept": [{"backup_id": v.backup_id, "reason": v.reason} for v in report.plan.verdicts if v.keep],
        "notes": list(report.plan.notes),
        "removed": rows(report.backups),
        "leftovers": rows(report.leftovers),
        "wal_files": report.wal_files,
        "wal_bytes": report.wal_bytes,
    }
