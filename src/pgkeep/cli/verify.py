"""``pgkeep verify``."""

from __future__ import annotations

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, print_line
from pgkeep.cli.progress import Meter
from pgkeep.errors import CheckFailed
from pgkeep.jobs.amount import size_text
from pgkeep.vault.verify import verify
from pgkeep.vault.verify_report import VerifyReport


def run(call: Call, *, as_json: bool) -> None:
    """Verify a cluster's backups and WAL; raise CheckFailed when something is wrong."""
    chosen = call.settings.text("backup_id")
    with call.cluster() as cluster, Meter("verifying") as meter:
        report = verify(
            cluster,
            backup_ids=[chosen] if chosen else [],
            workers=call.workers,
            progress=lambda _what, size: meter.add(size),
        )
    if as_json:
        print_json(_document(call.cluster_name, report))
    else:
        for finding in report.findings:
            print_line(f"damaged: {finding}")
        print_line(
            f"verified {len(report.backups)} backups: {report.files} files, {size_text(report.bytes)}, "
            f"{report.pages_checked} pages, {report.wal_files} WAL files"
        )
        if report.pages_known:
            print_line(f"{report.pages_known} pages were bad on the server already, as the records say")
    if not report.is_clean:
        raise CheckFailed(
            f"{report.findings_count} things are wrong in cluster {call.cluster_name}",
            hint="restore from a backup that is not named above, and make a Full now",
        )


def _document(cluster: str, report: VerifyReport) -> dict[str, object]:
    return {
        "cluster": cluster,
        "is_clean": report.is_clean,
        "backups": report.backups,
        "files": report.files,
        "bytes": report.bytes,
        "pages_checked": report.pages_checked,
        "pages_after_start": report.pages_after_start,
        "pages_known": report.pages_known,
        "wal_files": report.wal_files,
        "findings_count": report.findings_count,
        "findings": [
            {"backup_id": f.backup_id, "file": f.file, "path": f.path, "what": f.what, "blocks": list(f.blocks)}
            for f in report.findings
        ],
    }
