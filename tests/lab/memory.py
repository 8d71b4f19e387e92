"""How much fits into a file system that is in memory: its own bound, the machine's, and that of the control groups."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

# By generation of control groups: bound, use, and what of that the kernel gives back when asked.
_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("memory.max", "memory.current", "inactive_file"),
}


def free_bytes(directory: Path, *, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes may be written into *directory*, which is in memory."""
    table = (proc / "meminfo").read_text()
    available = next(line.split()[1] for line in table.splitlines() if line.startswith("MemAvailable:"))
    return min([shutil.disk_usage(directory).free, int(available) << 10, *_left_in_groups(proc, groups)])


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Yield what is left in this process's control group and in those around it; nothing where there is no bound."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in _FILES:
            continue
        root = groups / controllers
        group = root / path.lstrip("/")
        for place in (group, *group.parents):
            if place.is_relative_to(root):
                yield from _left_in(place, *_FILES[controllers])


def _left_in(group: Path, bound: str, use: str, given_back: str) -> Iterator[int]:
    try:
        most = (group / bound).read_text().strip()
        used = int((group / use).read_text())
        figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        # The outermost has none, and in a container those outside of it are not to be seen.
        return
    if most != "max":
        yield max(0, int(most) - used + int(figures.get(given_back, 0)))
