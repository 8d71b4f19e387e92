"""The library itself: what it needs, what it shows, and the parts that need no daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bridge.conftest import MakeDaemon
from tests.bridge.fake_daemon import BRIDGE, FLAGS, SANITIZERS

NEWEST_GLIBC = (2, 17)
ARM_COMPILER = "aarch64-linux-gnu-gcc"
SHARED = ["-shared", "-fPIC", "-fvisibility=hidden", "-O2", "-Wl,-z,defs"]
PARTS = ("file_item", "objects", "packet", "plugin_line", "text")


@pytest.fixture(scope="module", params=["cc", ARM_COMPILER])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin as it is delivered, for this machine and for arm64."""
    compiler = shutil.which(request.param)
    if not compiler:
        pytest.skip(f"{request.param} is not installed")
    path = tmp_path_factory.mktemp("library") / "pgkeep-fd.so"
    subprocess.run([compiler, *FLAGS, *SHARED, "-o", path, *sorted(BRIDGE.glob("*.c"))], check=True, timeout=300)
    return path


def symbols(library: Path) -> list[str]:
    """Return the lines of the table of dynamic symbols, from the type on."""
    output = subprocess.run(
        ["readelf", "--dyn-syms", "--wide", library], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    rows = [line.split(maxsplit=7) for line in output.splitlines() if re.match(r" *[0-9]+:", line)]
    return [" ".join(row[3:]) for row in rows if len(row) == 8]


def test_two_symbols_are_exported(library: Path) -> None:
    """Only what the daemon looks for can be seen."""
    shown = [line.split()[-1] for line in symbols(library) if " UND " not in line and " GLOBAL " in line]
    assert sorted(shown) == ["loadPlugin", "unloadPlugin"]


def test_needs_an_old_c_library_only(library: Path) -> None:
    """Every symbol that it needs is the C library's, and was there in glibc 2.17, of RHEL 7."""
    needed = [line.split(" UND ")[1] for line in symbols(library) if " UND " in line and " WEAK " not in line]
    assert len(needed) > 20
    for name in needed:
        found = re.fullmatch(r"(\w+)@GLIBC_([0-9.]+)(?: \([0-9]+\))?", name)
        assert found, f"{name} is not the C library's"
        assert tuple(map(int, found[2].split("."))) <= NEWEST_GLIBC, name


def test_needs_no_library_but_the_c_library(library: Path) -> None:
    """Nothing of Bacula is linked, so that one file serves every build of it."""
    output = subprocess.run(
        ["readelf", "--dynamic", "--wide", library], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", output) == ["libc.so.6"]


def test_what_the_daemon_is_told(make_daemon: MakeDaemon) -> None:
    """The daemon accepts exactly this."""
    assert make_daemon().information[:5] == ["information", "56", "23", "*FDPluginData*", "AGPLv3"]


def test_units(tmp_path: Path) -> None:
    """Packets, as the vectors say that both sides understand them, numbers, attributes and Plugin lines."""
    cc = shutil.which("cc")
    assert cc
    (tmp_path / "vectors.inc").write_bytes(
        subprocess.run(
            [sys.executable, BRIDGE / "tests" / "vectors.py"], check=True, capture_output=True, timeout=60
        ).stdout
    )
    program = tmp_path / "units"
    sources = [BRIDGE / "tests" / "units.c", *(BRIDGE / f"{part}.c" for part in PARTS)]
    subprocess.run([cc, *FLAGS, "-g", *SANITIZERS, f"-I{tmp_path}", "-o", program, *sources], check=True, timeout=300)
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "units: OK\n", "")
