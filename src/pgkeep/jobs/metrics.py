"""
What ``info`` knows, as metrics: the text format of Prometheus, for node_exporter's textfile collector and its like.

Source:
    ``prometheus/docs``: "Exposition formats", and "Metric and label naming": base units, ``_seconds`` and ``_bytes``,
    times as seconds since 1970.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from pgkeep.errors import VaultError
from pgkeep.jobs.info import ClusterInfo
from pgkeep.jobs.recovery.windows import Kind
from pgkeep.pg.lsn import Lsn
from pgkeep.spool.state import ReceiverState
from pgkeep.vault.unnamed_file import UnnamedFile, write_all

_STATUSES = ("ok", "gap", "damaged", "no backup")
# A collector runs as somebody else, and there is no secret in it.
_FILE_MODE = 0o644

_HELP = {
    "pgkeep_info_timestamp_seconds": "When these metrics were made.",
    "pgkeep_cluster_status": "1 for the status that the cluster has in the vault, 0 for the others.",
    "pgkeep_backups": "Backups in the vault whose record can be read.",
    "pgkeep_backup_newest_timestamp_seconds": "End of the newest backup.",
    "pgkeep_recovery_windows": "Stretches that can be recovered to; more than one when WAL is missing between them.",
    "pgkeep_recovery_window_start_timestamp_seconds": "Begin of the newest recovery window.",
    "pgkeep_recovery_window_end_timestamp_seconds": "A time certainly not after the newest recovery window's end.",
    "pgkeep_recovery_window_last_commit_timestamp_seconds": "The last commit of the newest recovery window.",
    "pgkeep_recovery_window_start_lsn_bytes": "Begin of the newest recovery window, as a byte position in WAL.",
    "pgkeep_recovery_window_end_lsn_bytes": "End of the newest recovery window, as a byte position in WAL.",
    "pgkeep_recovery_window_timeline": "Timeline at the end of the newest recovery window.",
    "pgkeep_wal_holes": "Stretches of WAL that are missing, by why.",
    "pgkeep_wal_holes_without_base_backup": "Those, delayed ones apart, behind which no base backup was made yet.",
    "pgkeep_proved_point_timestamp_seconds": "The last transaction of the newest point that a drill proved.",
    "pgkeep_proved_timestamp_seconds": "When a drill proved something last.",
    "pgkeep_drill_last_timestamp_seconds": "When the last drill ended.",
    "pgkeep_drill_last_success": "1 when the last drill proved what it was asked.",
    "pgkeep_receive_state_timestamp_seconds": "When the receiver last wrote how it stands.",
    "pgkeep_receive_streaming": "1 when the server sends WAL to the receiver.",
    "pgkeep_receive_unreceived_bytes": "WAL of the server that was not received.",
    "pgkeep_receive_unreceived_seconds": "For how long the server has had WAL that was not received.",
    "pgkeep_receive_unshipped_bytes": "WAL that was received and is not in the vault.",
    "pgkeep_receive_unshipped_seconds": "For how long the spool has had WAL that is not in the vault.",
    "pgkeep_receive_spool_bytes": "What the spool takes.",
    "pgkeep_receive_spool_max_bytes": "What the spool may take.",
    "pgkeep_receive_slot_active": "1 when the server says that somebody streams from the slot.",
    "pgkeep_receive_slot_kept_bytes": "WAL that the server keeps for the slot.",
    "pgkeep_receive_slot_safe_bytes": "WAL that may yet be written before the slot loses some.",
    "pgkeep_receive_troubles": "Troubles that the receiver has now.",
}

_Sample = tuple[str, dict[str, str], float]


def metrics_text(infos: Iterable[ClusterInfo], *, now: dt.datetime) -> str:
    """Return the metrics of *infos*; *now* is aware."""
    samples: list[_Sample] = [("pgkeep_info_timestamp_seconds", {}, now.timestamp())]
    for info in infos:
        mine = [*_cluster(info), *_window(info), *_proofs(info)]
        mine += _receiver(info.receiver, now=now) if info.receiver is not None else []
        samples += [(name, {"cluster": info.name} | labels, value) for name, labels, value in mine]
    lines = []
    for name, text in _HELP.items():
        found = [(labels, value) for sample, labels, value in samples if sample == name]
        if found:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in found]
    return "\n".join(lines) + "\n"


def write_metrics(path: Path, text: str) -> None:
    """Write *text* to *path* in one step: whoever reads it sees the old or the new one; raise VaultError."""
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with UnnamedFile(fd, file_mode=_FILE_MODE) as file:
                write_all(file.fd, text.encode())
                file.publish_over(path.name)
        finally:
            os.close(fd)
    except OSError as error:
        raise VaultError(f"cannot write {path}: {error.strerror}") from error


def _cluster(info: ClusterInfo) -> Iterator[_Sample]:
    for status in _STATUSES:
        yield "pgkeep_cluster_status", {"status": status}, info.status == status
    yield "pgkeep_backups", {}, len(info.backups)
    if info.backups:
        head = info.backups[-1].head
        yield from _time("pgkeep_backup_newest_timestamp_seconds", head.stop_time or head.end_time)
    for kind in get_args(Kind):
        yield "pgkeep_wal_holes", {"kind": kind}, sum(hole.kind == kind for hole in info.holes)
    yield "pgkeep_wal_holes_without_base_backup", {}, sum(hole.is_open for hole in info.holes)


def _window(info: ClusterInfo) -> Iterator[_Sample]:
    yield "pgkeep_recovery_windows", {}, len(info.windows)
    if info.windows:
        window = info.windows[-1]
        yield from _time("pgkeep_recovery_window_start_timestamp_seconds", window.start_time)
        yield from _time("pgkeep_recovery_window_end_timestamp_seconds", window.end_time)
        yield from _time("pgkeep_recovery_window_last_commit_timestamp_seconds", window.last_commit_time)
        yield "pgkeep_recovery_window_start_lsn_bytes", {}, Lsn.parse(window.start_lsn)
        yield "pgkeep_recovery_window_end_lsn_bytes", {}, Lsn.parse(window.end_lsn)
        yield "pgkeep_recovery_window_timeline", {}, window.timeline


def _proofs(info: ClusterInfo) -> Iterator[_Sample]:
    if info.proved is not None:
        yield from _time("pgkeep_proved_point_timestamp_seconds", info.proved.reached_time)
        yield from _time("pgkeep_proved_timestamp_seconds", info.proved.time)
    if info.last_drill is not None:
        yield from _time("pgkeep_drill_last_timestamp_seconds", info.last_drill.time)
        yield "pgkeep_drill_last_success", {}, info.last_drill.result == "proved"


def _receiver(state: ReceiverState, *, now: dt.datetime) -> Iterator[_Sample]:
    yield from _time("pgkeep_receive_state_timestamp_seconds", state.time)
    yield "pgkeep_receive_streaming", {}, state.is_streaming
    for name, since in (("unreceived", state.unreceived_since), ("unshipped", state.unshipped_since)):
        seconds = (now - dt.datetime.fromisoformat(since)).total_seconds() if since else 0.0
        yield f"pgkeep_receive_{name}_seconds", {}, max(0.0, seconds)
    if state.received_lsn:
        received = Lsn.parse(state.received_lsn)
        if state.server_lsn:
            yield "pgkeep_receive_unreceived_bytes", {}, max(0, Lsn.parse(state.server_lsn) - received)
        if state.shipped_lsn:
            yield "pgkeep_receive_unshipped_bytes", {}, max(0, received - Lsn.parse(state.shipped_lsn))
    yield "pgkeep_receive_spool_bytes", {}, state.spool_bytes
    yield "pgkeep_receive_spool_max_bytes", {}, state.spool_max_bytes
    for name, value in (
        ("active", state.slot_is_active),
        ("kept_bytes", state.slot_kept_bytes),
        ("safe_bytes", state.slot_safe_bytes),
    ):
        if value is not None:
            yield f"pgkeep_receive_slot_{name}", {}, value
    yield "pgkeep_receive_troubles", {}, len(state.troubles)


def _time(name: str, moment: str) -> Iterator[_Sample]:
    if moment:
        yield name, {}, dt.datetime.fromisoformat(moment).timestamp()


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}"
