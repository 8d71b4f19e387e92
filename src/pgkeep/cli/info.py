"""``pgkeep info``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import msgspec

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, print_line, warn
from pgkeep.errors import UsageError
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.info import BackupInfo, ClusterInfo, cluster_info
from pgkeep.jobs.metrics import metrics_text, write_metrics
from pgkeep.jobs.recovery.history import HISTORY_ADVICE
from pgkeep.jobs.recovery.windows import Hole, Window
from pgkeep.spool.state import ReceiverState


def run(call: Call, *, as_json: bool, as_metrics: bool = False, metrics_file: str = "") -> None:
    """
    Show one cluster, or all.

    Raises:
        UsageError: Two forms are asked for at once.
        VaultError: The vault, or the file of metrics, does not do.
    """
    if as_json + as_metrics + bool(metrics_file) > 1:
        raise UsageError("expected one of --json, --metrics and --metrics-file")
    vault, spool_dir = call.vault(), Path(call.settings.require("spool_dir"))
    infos = []
    for name in [call.cluster_name] if call.cluster_name else vault.clusters():
        with vault.cluster(name) as cluster:
            infos.append(cluster_info(cluster, spool=spool_dir / name, warn=warn))
    if metrics_file:
        write_metrics(Path(metrics_file), metrics_text(infos, now=dt.datetime.now(dt.UTC)))
        return
    if as_metrics:
        print_line(metrics_text(infos, now=dt.datetime.now(dt.UTC)).rstrip("\n"))
        return
    if as_json:
        print_json([_document(info) for info in infos])
        return
    for info in infos:
        _print(info)
    if not infos:
        print_line("the vault holds no cluster")


def _print(info: ClusterInfo) -> None:
    print_line(f"cluster {info.name}: {info.status}")
    print_line(f"  PostgreSQL {info.major}, system identifier {info.system_identifier}")
    for window in info.windows:
        _print_window(window)
    _print_proofs(info)
    for gap in info.gaps:
        print_line(f"  gap: WAL {gap.start} .. {gap.stop} on timeline {gap.timeline} is missing")
    for hole in info.holes:
        print_line(f"  hole: WAL {hole.start} .. {hole.stop} on timeline {hole.timeline}: {_why(hole)}")
    if info.receiver is not None:
        _print_receiver(info.receiver)
    _print_wal(info)
    if info.backups:
        print_line("  backups:")
    for backup in info.backups:
        _print_backup(backup)
    for backup_id, reason in info.unreadable:
        print_line(f"    {backup_id}  UNREADABLE: {reason}")
    for backup_id in info.leftovers:
        print_line(f"    {backup_id}  left by a killed job; pgkeep expire removes it")


def _print_wal(info: ClusterInfo) -> None:
    for held in info.wal:
        print_line(f"  wal: {held.first.name} .. {held.last.name} ({held.segments} segments)")
    for timeline in info.without_history:
        name = timeline.history_file_name
        print_line(f"  wal of timeline {timeline} CANNOT BE USED: {name} is not held")
        print_line(f"    {HISTORY_ADVICE}")


def _print_window(window: Window) -> None:
    print_line(
        f"  recoverable: {_short(window.start_time)} .. {_short(window.end_time)}, "
        f"{window.start_lsn} .. {window.end_lsn}, timeline {window.timeline}"
    )
    if window.last_commit_time:
        where = " (its segment was received in part)" if window.ends_in_partial else ""
        print_line(f"  last commit: {window.last_commit_time[:10]} {window.last_commit_time[11:23]}Z{where}")


def _print_proofs(info: ClusterInfo) -> None:
    proved, last = info.proved, info.last_drill
    if proved is not None:
        reached = _short(proved.reached_time) if proved.reached_time else "no transaction"
        where = f"{proved.reached_lsn} on timeline {proved.timeline}"
        print_line(f"  proved: {reached}, {where}, by the drill of {_short(proved.time)} ({proved.backup_id})")
    if last is not None and last.result == "failed":
        print_line(f"  DRILL FAILED: {_short(last.time)}, {last.target} from {last.backup_id}")


def _why(hole: Hole) -> str:
    noticed = f" ({_short(hole.time)})" if hole.time else ""
    advice = "" if hole.is_before_base else "; make a base backup now"
    match hole.kind:
        case "lost":
            return f"lost, it was not received{noticed}{advice}"
        case "delayed":
            return f"delayed, {hole.reason}"
        case _:
            return f"never received{advice}"


def _print_receiver(state: ReceiverState) -> None:
    how = "streaming" if state.is_streaming else "NOT streaming"
    print_line(
        f"  receiver at {_short(state.time)}: {how}, server {state.server_lsn or '?'}, "
        f"received {state.received_lsn or '?'}, shipped {state.shipped_lsn or '?'}"
    )
    for trouble in state.troubles.values():
        print_line(f"    TROUBLE: {trouble}")


def _print_backup(backup: BackupInfo) -> None:
    head, tail = backup.head, backup.tail
    stop = head.stop_lsn or (head.wal.stop if head.wal is not None else "")
    notes = [f"based on {head.base}"] if head.base else []
    if merged_from := head.details.get("merged_from"):
        notes.append(f"merged from {', '.join(merged_from)}")
    if backup.is_pinned:
        notes.append("pinned")
    if backup.missing:
        notes.append(f"MISSING: backup {backup.missing}, which it needs")
    if head.is_damaged:
        notes.append(f"DAMAGED PAGES: {sum(damaged.count for damaged in head.damaged)}")
    print_line(
        f"    {head.backup_id}  {head.mode:5} {head.level.word:12} {_short(head.stop_time or head.end_time)}  "
        f"{size_text(tail.bytes):>11}  stored {size_text(tail.stored_bytes):>11}"
        f"{'  to ' + stop if stop else ''}{'  ' + ', '.join(notes) if notes else ''}"
    )
    for damaged in head.damaged:
        blocks = ", ".join(str(block) for block in damaged.blocks[:10])
        print_line(f"      damaged: {damaged.path} block {blocks}")
    if head.replication is not None:
        print_line(f"      {head.replication.server.word}, {head.replication.summary}")
    if head.mode.endswith("dump"):
        for database in head.databases:
            print_line(f'      database "{database.name}": {size_text(database.size_bytes)}')


def _short(moment: str) -> str:
    return f"{moment[:10]} {moment[11:19]}Z" if moment else "?"


def _document(info: ClusterInfo) -> dict[str, object]:
    return {
        "cluster": info.name,
        "status": info.status,
        "system_identifier": info.system_identifier,
        "major": info.major,
        "windows": [
            {
                "start_time": w.start_time,
                "end_time": w.end_time,
                "start_lsn": w.start_lsn,
                "end_lsn": w.end_lsn,
                "timeline": w.timeline,
                "base": w.base,
                "newest_base": w.newest_base,
                "last_commit_time": w.last_commit_time,
                "ends_in_partial": w.ends_in_partial,
            }
            for w in info.windows
        ],
        "proved": msgspec.to_builtins(info.proved),
        "last_drill": msgspec.to_builtins(info.last_drill),
        "receiver": msgspec.to_builtins(info.receiver),
        "gaps": [{"timeline": g.timeline, "start_lsn": g.start, "end_lsn": g.stop} for g in info.gaps],
        "holes": [msgspec.to_builtins(hole) for hole in info.holes],
        "wal": [
            {"timeline": int(h.timeline), "first": h.first.name, "last": h.last.name, "segments": h.segments}
            for h in info.wal
        ],
        "timelines_without_history": [int(timeline) for timeline in info.without_history],
        "backups": [_backup_document(backup) for backup in info.backups],
        "unreadable": [{"backup_id": backup_id, "reason": reason} for backup_id, reason in info.unreadable],
        "leftovers": info.leftovers,
    }


def _backup_document(backup: BackupInfo) -> dict[str, object]:
    head, tail = backup.head, backup.tail
    return {
        "backup_id": head.backup_id,
        "mode": head.mode,
        "level": head.level.word,
        "base": head.base,
        "missing": backup.missing,
        "merged_from": head.details.get("merged_from", []),
        "references": head.references,
        "begin_time": head.begin_time,
        "end_time": head.end_time,
        "stop_time": head.stop_time,
        "start_lsn": head.start_lsn,
        "stop_lsn": head.stop_lsn,
        "wal_start": head.wal.start if head.wal is not None else "",
        "wal_stop": head.wal.stop if head.wal is not None else "",
        "timeline": head.timeline,
        "server_version": head.server_version_text,
        "transport": head.transport,
        "files": tail.files,
        "bytes": tail.bytes,
        "sent_bytes": tail.sent_bytes,
        "stored_bytes": tail.stored_bytes,
        "pinned": backup.is_pinned,
        "pages_checked": head.pages_checked,
        "pages_after_start": head.pages_after_start,
        "damaged": [{"path": d.path, "count": d.count, "blocks": d.blocks} for d in head.damaged],
        "databases": [{"name": d.name, "size_bytes": d.size_bytes} for d in head.databases],
        "replication": msgspec.to_builtins(head.replication),
        "warnings": head.warnings,
    }
