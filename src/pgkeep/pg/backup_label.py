"""
``backup_label``: from where a server that finds it replays WAL; and the backup history file, which repeats it.

The server writes the label itself (``build_backup_content`` in ``src/backend/access/transam/xlogbackup.c``, before
PostgreSQL 15 in ``xlog.c``); a restore lays down the server's own bytes. What is parsed here is for decisions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, Timeline

_LSN = "([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})"
_WAL_LOCATION = re.compile(_LSN + r" \(file ([0-9A-F]{24})\)")
# The lines in the order in which the server writes them. The label comes late, and is the user's: it may hold line
# ends, even lines that look like the server's, so what stands before it is taken first and what follows it last.
_BEFORE_LABEL = (
    "START WAL LOCATION",
    "STOP WAL LOCATION",
    "CHECKPOINT LOCATION",
    "BACKUP METHOD",
    "BACKUP FROM",
    "START TIME",
)
_AFTER_LABEL = ("START TIMELINE", "STOP TIME", "STOP TIMELINE", "INCREMENTAL FROM LSN", "INCREMENTAL FROM TLI")
_INCREMENTAL = ("INCREMENTAL FROM LSN: ", "INCREMENTAL FROM TLI: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupLabel:
    """
    What a backup label says.

    Attributes:
        start_lsn: Where replay starts.
        start_wal_file: Name of the segment that holds it.
        checkpoint_lsn: The checkpoint's record.
        backup_method: ``streamed``, or ``pg_start_backup`` for an exclusive backup.
        backup_from: ``primary`` (``master`` up to PostgreSQL 13) or ``standby``.
        start_time: As the server wrote it, in its ``log_timezone``.
        label: The name that the user gave; may hold line ends.
        start_timeline: The timeline at the start.
        incremental_from_lsn: For an incremental backup, where the backup that it builds on starts.
        incremental_from_timeline: Its timeline.
        stop_lsn: Only in a backup history file.
        stop_wal_file: Only in a backup history file.
        stop_time: Only in a backup history file.
        stop_timeline: Only in a backup history file.
    """

    start_lsn: Lsn
    start_wal_file: str
    checkpoint_lsn: Lsn
    backup_method: str
    backup_from: str
    start_time: str
    label: str
    start_timeline: Timeline
    incremental_from_lsn: Lsn | None = None
    incremental_from_timeline: Timeline | None = None
    stop_lsn: Lsn | None = None
    stop_wal_file: str = ""
    stop_time: str = ""
    stop_timeline: Timeline | None = None

    @property
    def is_from_standby(self) -> bool:
        """Whether the backup was taken from a standby."""
        return self.backup_from == "standby"

    @property
    def is_incremental(self) -> bool:
        """Whether the backup cannot be started before it is combined with its base."""
        return self.incremental_from_lsn is not None

    def render(self) -> str:
        """Return the text that the server would write."""
        lines = [f"START WAL LOCATION: {_server_form(self.start_lsn)} (file {self.start_wal_file})"]
        if self.stop_lsn is not None:
            lines.append(f"STOP WAL LOCATION: {_server_form(self.stop_lsn)} (file {self.stop_wal_file})")
        lines += [
            f"CHECKPOINT LOCATION: {_server_form(self.checkpoint_lsn)}",
            f"BACKUP METHOD: {self.backup_method}",
            f"BACKUP FROM: {self.backup_from}",
            f"START TIME: {self.start_time}",
            f"LABEL: {self.label}",
            f"START TIMELINE: {self.start_timeline}",
        ]
        if self.stop_time:
            lines.append(f"STOP TIME: {self.stop_time}")
        if self.stop_timeline is not None:
            lines.append(f"STOP TIMELINE: {self.stop_timeline}")
        if self.incremental_from_lsn is not None:
            lines.append(f"INCREMENTAL FROM LSN: {_server_form(self.incremental_from_lsn)}")
            lines.append(f"INCREMENTAL FROM TLI: {self.incremental_from_timeline}")
        return "\n".join(lines) + "\n"


def parse_backup_label(text: str) -> BackupLabel:
    """
    Return what *text*, the content of ``backup_label`` or of a backup history file, says.

    Raises:
        FormatError: A line that the server needs is missing or garbled, or the first WAL file is of another timeline.
    """
    before, label, after = _split(text)
    start_lsn, start_wal_file = _wal_location(before, "START WAL LOCATION")
    stop_lsn, stop_wal_file = None, ""
    if "STOP WAL LOCATION" in before:
        stop_lsn, stop_wal_file = _wal_location(before, "STOP WAL LOCATION")
    start_timeline = _timeline(after, "START TIMELINE")
    if int(start_wal_file[:8], 16) != start_timeline:
        raise FormatError(f"backup label starts on timeline {start_timeline}, but with the WAL file {start_wal_file}")
    incremental = "INCREMENTAL FROM LSN" in after
    if incremental != ("INCREMENTAL FROM TLI" in after):
        raise FormatError("backup label has one of INCREMENTAL FROM LSN and INCREMENTAL FROM TLI, expected both")
    return BackupLabel(
        start_lsn=start_lsn,
        start_wal_file=start_wal_file,
        checkpoint_lsn=_lsn(before, "CHECKPOINT LOCATION"),
        backup_method=before.get("BACKUP METHOD", ""),
        backup_from=before.get("BACKUP FROM", ""),
        start_time=before.get("START TIME", ""),
        label=label,
        start_timeline=start_timeline,
        incremental_from_lsn=_lsn(after, "INCREMENTAL FROM LSN") if incremental else None,
        incremental_from_timeline=_timeline(after, "INCREMENTAL FROM TLI") if incremental else None,
        stop_lsn=stop_lsn,
        stop_wal_file=stop_wal_file,
        stop_time=after.get("STOP TIME", ""),
        stop_timeline=_timeline(after, "STOP TIMELINE") if "STOP TIMELINE" in after else None,
    )


def without_incremental_lines(text: str) -> str:
    """Return a label's *text* as it is once the backup is combined with its base (``pg_combinebackup``)."""
    lines = text.splitlines(keepends=True)
    end = len(lines)
    while end and lines[end - 1].startswith(_INCREMENTAL):
        end -= 1
    return "".join(lines[:end])


def _split(text: str) -> tuple[dict[str, str], str, dict[str, str]]:
    """Return the values before the label, the label, and the values after it."""
    if not text.endswith("\n"):
        raise FormatError("backup label does not end with a line end")
    head, found, rest = text.partition("\nLABEL: ")
    if not found:
        raise FormatError("backup label has no line LABEL")
    lines = rest[:-1].split("\n")
    after: dict[str, str] = {}
    while len(lines) > 1:
        name, colon, value = lines[-1].partition(": ")
        if not colon or name not in _AFTER_LABEL or name in after:
            break
        after[name] = value
        del lines[-1]
        if name == "START TIMELINE":
            # The server's first line after the label: whatever stands before it is the user's.
            break
    before: dict[str, str] = {}
    for line in head.split("\n"):
        name, colon, value = line.partition(": ")
        if not colon or name not in _BEFORE_LABEL or name in before:
            raise FormatError(f'backup label has the unexpected line "{line}"')
        before[name] = value
    return before, "\n".join(lines), after


def _value(values: dict[str, str], name: str) -> str:
    if name not in values:
        raise FormatError(f"backup label has no line {name}")
    return values[name]


def _lsn(values: dict[str, str], name: str) -> Lsn:
    text = _value(values, name)
    try:
        return Lsn.parse(text)
    except FormatError:
        raise FormatError(f'backup label has no LSN in {name}: found "{text}"') from None


def _timeline(values: dict[str, str], name: str) -> Timeline:
    text = _value(values, name)
    if not re.fullmatch("[0-9]{1,10}", text):
        raise FormatError(f'backup label has no timeline in {name}: found "{text}"')
    return Timeline(int(text))


def _wal_location(values: dict[str, str], name: str) -> tuple[Lsn, str]:
    text = _value(values, name)
    match = _WAL_LOCATION.fullmatch(text)
    if match is None:
        raise FormatError(f'backup label has no LSN and WAL file in {name}: found "{text}"')
    return Lsn.parse(match[1]), match[2]


def _server_form(lsn: Lsn) -> str:
    # %X/%X, the form of every release that pgkeep supports.
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
