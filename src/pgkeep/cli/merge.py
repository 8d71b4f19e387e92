"""``pgkeep merge``."""

from __future__ import annotations

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, say
from pgkeep.cli.progress import ProgressSink
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.merge import Merged, merge


def run(call: Call, *, as_json: bool) -> None:
    """Merge a chain into a Full."""
    with call.cluster() as cluster:
        merged = merge(
            cluster,
            backup_id=call.settings.text("backup_id") or "",
            workers=call.workers,
            compression_level=call.settings.number("zstd_level"),
            say=say,
            watch=lambda sink: ProgressSink(sink, "merging"),
        )
    head, tail = merged.head, merged.tail
    say(
        f"backup {head.backup_id} is complete: {tail.files} files, {size_text(tail.bytes)}, "
        f"{size_text(tail.stored_bytes)} stored, {head.pages_checked} pages checked"
    )
    say(f"it needs none of {', '.join(merged.chain)} any more: pgkeep expire removes what the retention does not keep")
    if as_json:
        print_json(_document(merged))


def _document(merged: Merged) -> dict[str, object]:
    head, tail = merged.head, merged.tail
    return {
        "backup_id": head.backup_id,
        "cluster": head.cluster,
        "mode": head.mode,
        "level": head.level.word,
        "merged_from": list(merged.chain),
        "files": tail.files,
        "bytes": tail.bytes,
        "stored_bytes": tail.stored_bytes,
        "start_lsn": head.start_lsn,
        "stop_lsn": head.stop_lsn,
        "stop_time": head.stop_time,
        "wal_start": head.wal.start if head.wal is not None else "",
        "wal_stop": head.wal.stop if head.wal is not None else "",
        "pages_checked": head.pages_checked,
    }
