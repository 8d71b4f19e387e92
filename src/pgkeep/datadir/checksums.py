"""``pg_checksums`` over a data directory whose server was stopped in order."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from pgkeep.datadir.owner import Owner
from pgkeep.datadir.postmaster import read_control_file
from pgkeep.errors import CheckFailed, ToolError

PROGRAM = "pg_checksums"
_COUNT = re.compile(r"^(Files scanned|Blocks scanned|Bad checksums): *(\d+)", re.MULTILINE)


def check_page_checksums(data_directory: Path, *, program: Path) -> str:
    """
    Check every page of a stopped cluster, and return what was checked; empty for a cluster without page checksums.

    Args:
        data_directory: Of a server that is not running.
        program: ``pg_checksums`` of the server's own version.

    Raises:
        CheckFailed: A page is damaged, or the program cannot say.
        ToolError: The program cannot be run.
    """
    if not read_control_file(data_directory).has_data_checksums:
        return ""
    owner, is_root = Owner.of(data_directory), os.geteuid() == 0
    try:
        done = subprocess.run(
            [str(program), "--check", "-D", str(data_directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            check=False,
            user=owner.uid if is_root else None,
            group=owner.gid if is_root else None,
            extra_groups=owner.all_groups if is_root else None,
        )
    except OSError as error:
        raise ToolError(f"cannot run {program}: {error.strerror}") from error
    counts = dict(_COUNT.findall(done.stdout.decode(errors="replace")))
    if done.returncode != 0:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        words = said[0].partition("error: ")[2] or said[0] if said else f"it ended with status {done.returncode}"
        bad = f"{counts['Bad checksums']} bad pages, the first: " if "Bad checksums" in counts else ""
        raise CheckFailed(f"pg_checksums: {bad}{words}")
    return f"{counts.get('Blocks scanned', '0')} pages in {counts.get('Files scanned', '0')} files"
