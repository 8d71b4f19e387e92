"""Run pgkeep, and write the most memory that it ever had, in KiB, to the file that the first argument names."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def main() -> None:
    """Take the file off the command line; the rest is pgkeep's."""
    report = Path(sys.argv.pop(1))
    from pgkeep.cli.app import main as pgkeep

    try:
        pgkeep()
    finally:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak is not None
        report.write_text(peak[1])


if __name__ == "__main__":
    main()
