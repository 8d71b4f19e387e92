"""What was selected for a restore from a stream: before the first file it is known whether a backup is all there."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass, field

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.streamed.restore import record_of
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import DEFAULT_SEGMENT_SIZE
from pgkeep.streams.record import RecordHead, RecordTail
from pgkeep.streams.scripts import is_script

NEEDED_FILES = ("pgdata/global/pg_control", "pgdata/PG_VERSION", "backup_label")

WHOLE_JOB_HINT = (
    "select everything of the job, as far back as the Full, or give a directory: where=/directory; where the catalog "
    "has lost the names of some jobs' files, purge those of the whole chain: purge files jobid="
)


class PartialSelection(RestoreRefused):
    """What was selected is not a whole backup."""


@dataclass
class Selection:
    """
    What the daemon says that it will restore, as far as phase 1 needs it: memory does not grow with the files.

    Attributes:
        root: Virtual path of the mode's directory; what lies elsewhere is not counted.
        files: How many files, directories and links, records left out.
        bytes: Sum of the sizes of those.
        wal: Name and time of each WAL file.
        records: Ids of the backups whose record comes.
        needed: Which of ``NEEDED_FILES`` come; for backups with a directory of their own, below its name.
        tops: What stands directly below the root, by name, and how much is below each; not what lies beside records.
    """

    root: str
    files: int = 0
    bytes: int = 0
    wal: list[tuple[str, dt.datetime]] = field(default_factory=list)
    records: set[str] = field(default_factory=set)
    needed: set[str] = field(default_factory=set)
    tops: Counter[str] = field(default_factory=Counter)

    def add(self, path: str, size: int, mtime: int) -> None:
        """Count the file at virtual *path*, of *size* bytes, modified at *mtime*, in seconds."""
        if not path.startswith(f"{self.root}/"):
            return
        backup_id = record_of(path, self.root)
        if backup_id:
            self.records.add(backup_id)
            return
        if is_script(path, self.root):
            return
        inside = path.removeprefix(f"{self.root}/")
        self.files += 1
        self.bytes += max(0, size)
        top, _, rest = inside.partition("/")
        self.tops[top] += bool(rest)
        if inside in NEEDED_FILES or rest in NEEDED_FILES:
            self.needed.add(inside)
        elif inside.startswith("wal/"):
            # Whole seconds are what is known of the time: rounded up, nothing in the file is later.
            self.wal.append((inside.removeprefix("wal/"), dt.datetime.fromtimestamp(mtime + 1, dt.UTC)))


def check_selection(base: RecordHead, tail: RecordTail, selection: Selection | None, *, below: str = "") -> None:
    """Refuse when not all of *base* comes; *below* is what stands before its paths where it has its own directory."""
    if selection is None:
        return
    if base.backup_id not in selection.records:
        raise PartialSelection(f"the record of backup {base.backup_id} is not selected", hint=WHOLE_JOB_HINT)
    absent = [name for name in NEEDED_FILES if below + name not in selection.needed]
    if absent:
        raise PartialSelection(f"{absent[0]} of backup {base.backup_id} is not selected", hint=WHOLE_JOB_HINT)
    # Of WAL more may come than the base names, which must not stand in for files that do not.
    files = selection.tops[base.backup_id] if below else selection.files - len(selection.wal)
    files += min(len(selection.wal), _wal_files(base))
    if files < tail.files:
        raise PartialSelection(
            f"{files} files are selected, backup {base.backup_id} has {tail.files}", hint=WHOLE_JOB_HINT
        )


def _wal_files(base: RecordHead) -> int:
    """Return how many WAL files are in the file list of *base*, at most: its segments, and a timeline's history."""
    size = base.wal.segment_size if base.wal is not None else DEFAULT_SEGMENT_SIZE
    segments = (Lsn.parse(base.stop_lsn) - 1) // size - Lsn.parse(base.start_lsn) // size + 1
    return segments + (base.timeline > 1)
