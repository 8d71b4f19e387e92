"""File systems that are mounted beneath a directory: what is in them is not the directory's to lose."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TABLE = Path("/proc/self/mountinfo")
_MOUNT_POINT = 4
_ESCAPED = re.compile(r"\\([0-7]{3})")


def mounts_beneath(directory: Path) -> list[Path]:
    """
    Return the mount points within *directory*, itself not among them; none where the kernel does not tell.

    Source:
        proc_pid_mountinfo(5): the fifth field, in which space, tab, newline and backslash are octal.
    """
    try:
        rows = _TABLE.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    above = os.path.realpath(directory).rstrip("/") + "/"
    places = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), row.split(" ")[_MOUNT_POINT]) for row in rows)
    return sorted({Path(place) for place in places if place.startswith(above)})
