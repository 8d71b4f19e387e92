"""What is judged by the tests is judged by all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.pg(">=99")
def test_no_major(major): pass

def test_lacks_something(): pytest.skip("something is not installed")

@pytest.mark.xfail
def test_is_known_to_fail(): assert False

def test_runs(): pass
"""


@pytest.mark.parametrize(
    ("ci", "status", "summary"),
    [("", 0, "1 passed, 1 skipped, 1 deselected, 1 xfailed"), ("1", 1, "1 failed, 1 passed, 1 deselected, 1 xfailed")],
)
def test_nothing_is_skipped_where_a_change_is_judged(ci: str, status: int, summary: str, tmp_path: Path) -> None:
    """A test that lacks something fails there, and is told of elsewhere; one for no chosen major is left out."""
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "tests.conftest", "-q", file]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    done = subprocess.run(
        [*map(str, command), "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment | {"CI": ci},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == status, done.stdout
    assert lines[-1].startswith(summary), done.stdout
    assert "something is not installed" in done.stdout
