"""How much the lab takes for what fits into memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.memory import free_bytes

MACHINE = 4 << 20
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def make_group(place: Path, names: tuple[str, str, str], bound: str, used: int, given_back: int) -> None:
    """Make a control group with a bound."""
    place.mkdir(parents=True, exist_ok=True)
    (place / names[0]).write_text(f"{bound}\n")
    (place / names[1]).write_text(f"{used}\n")
    (place / "memory.stat").write_text(f"anon 1\n{names[2]} {given_back}\n")


def left(tmp_path: Path, membership: str) -> int:
    """Return what is left for a process of such *membership*, on a machine with 4 MiB."""
    (tmp_path / "self").mkdir(exist_ok=True)
    (tmp_path / "self/cgroup").write_text(f"{membership}\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {MACHINE >> 10} kB\n")
    return free_bytes(tmp_path, proc=tmp_path, groups=tmp_path / "groups")


@pytest.mark.parametrize(
    ("names", "membership", "root", "none"),
    [(V1, "4:memory:/a/b", "groups/memory", str((1 << 63) - 4096)), (V2, "0::/a/b", "groups", "max")],
    ids=["v1", "v2"],
)
def test_the_narrowest_control_group_bounds_it(
    names: tuple[str, str, str], membership: str, root: str, none: str, tmp_path: Path
) -> None:
    """Of the process's group and those around it the one counts that has the least left; without any, the machine."""
    assert left(tmp_path, membership) == MACHINE
    inner, outer = tmp_path / root / "a" / "b", tmp_path / root / "a"
    make_group(inner, names, none, 500, 0)
    assert left(tmp_path, membership) == MACHINE
    make_group(inner, names, "1000", 500, 300)
    assert left(tmp_path, membership) == 800
    make_group(outer, names, "2000", 1999, 0)
    assert left(tmp_path, membership) == 1
    make_group(outer, names, "2000", 2100, 50)
    assert left(tmp_path, membership) == 0
