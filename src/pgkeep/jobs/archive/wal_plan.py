"""
What a recovery certainly needs from the archive, written down so that ``archive-get`` knows an accident from the end.

Without a plan, a segment that is proved absent is simply the end of the WAL. With one, a segment inside the plan that
is absent is an error, and the server stops instead of opening a cluster that lacks what was promised.

The file is JSON::

    {"format": 1, "system_identifier": "7312345678901234567", "segment_size": 16777216,
     "needed": [["000000010000000000000003", "000000010000000000000007"]],
     "histories": ["00000002.history"],
     "partials": ["000000010000000000000008"],
     "excluded": ["000000010000000000000009"], "last_timeline": 2}

The last two are there for a standby only: it must not replay what its primary never wrote.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.pg.wal import WalSegment, is_history_name, is_segment_name

PLAN_FORMAT = 1


@dataclass(frozen=True, slots=True)
class WalPlan:
    """
    The WAL of one recovery.

    Attributes:
        system_identifier: Of the cluster that is restored.
        segment_size: Bytes.
        needed: First and last name of each run of segments that must be there, both included, of one timeline each.
        histories: History files that must be there.
        partials: Segments of which the partial form is delivered when the complete one is absent.
        excluded: Segments that are not delivered, nor any later one of the same timeline, though they be there.
        last_timeline: Nothing of a later timeline is delivered either, nor the history of this one; 0 for no limit.
    """

    system_identifier: SystemIdentifier
    segment_size: int
    needed: tuple[tuple[str, str], ...] = ()
    histories: tuple[str, ...] = ()
    partials: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    last_timeline: int = 0

    def excludes(self, name: str) -> bool:
        """Tell whether the file *name* is not for this recovery, whatever the archive holds."""
        if not is_segment_name(name) and not is_history_name(name):
            return False
        timeline = int(name[:8], 16)
        # The history of the last one is there already, from the primary: another of that number may be archived.
        if self.last_timeline and (timeline > self.last_timeline or name == f"{self.last_timeline:08X}.history"):
            return True
        return is_segment_name(name) and any(first[:8] == name[:8] and first <= name for first in self.excluded)

    def needs(self, name: str) -> bool:
        """Tell whether the recovery cannot do without the file *name*."""
        if name in self.histories or name in self.partials:
            return True
        # Names of one timeline sort as their segments do.
        return is_segment_name(name) and any(
            first[:8] == name[:8] and first <= name <= last for first, last in self.needed
        )

    def render(self) -> str:
        """Return the plan as text."""
        document = {
            "format": PLAN_FORMAT,
            "system_identifier": str(int(self.system_identifier)),
            "segment_size": self.segment_size,
            "needed": [list(run) for run in self.needed],
            "histories": list(self.histories),
            "partials": list(self.partials),
        }
        if self.excluded or self.last_timeline:
            document |= {"excluded": list(self.excluded), "last_timeline": self.last_timeline}
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> WalPlan:
        """Return the plan that *text* holds; raise FormatError when it is not one."""
        try:
            document = json.loads(text)
            if document["format"] != PLAN_FORMAT:
                raise FormatError(f"WAL plan has format {document['format']}, expected {PLAN_FORMAT}")
            return cls(
                SystemIdentifier(int(document["system_identifier"])),
                int(document["segment_size"]),
                tuple(_run(run, int(document["segment_size"])) for run in document["needed"]),
                tuple(_checked(name, is_history_name(name)) for name in document["histories"]),
                tuple(_checked(name, is_segment_name(name)) for name in document["partials"]),
                tuple(_checked(name, is_segment_name(name)) for name in document.get("excluded", ())),
                int(document.get("last_timeline", 0)),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not a WAL plan: {type(error).__name__} {error}") from error

    @classmethod
    def read(cls, path: Path) -> WalPlan:
        """Return the plan in the file *path*; raise FormatError when it is not one or cannot be read."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FormatError(f"cannot read the WAL plan {path}: {error.strerror}") from error

    def write(self, path: Path) -> None:
        """Write the plan to *path*, whole or not at all, and durably."""
        temporary = path.with_name(f"{path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.render())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _run(run: Any, size: int) -> tuple[str, str]:
    first, last = (WalSegment.parse(name, size=size) for name in run)
    if first.timeline != last.timeline or first.number > last.number:
        raise FormatError(f"not a run of WAL segments: {first.name} to {last.name}")
    return first.name, last.name


def _checked(name: str, is_right: bool) -> str:  # noqa: FBT001 - the answer to a question asked beside the name
    if not is_right:
        raise FormatError(f'WAL plan has the unexpected name "{name}"')
    return name
