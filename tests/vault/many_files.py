"""A program that stores, refers to and reads many small files; prints their number and its peak memory in MiB."""

from __future__ import annotations

import sys
from pathlib import Path

from pgkeep.streams.item import UnchangedItem
from pgkeep.vault.vault import Vault
from tests.vault.made_items import DIFFERENTIAL, FULL, ROOT, MadeDetached, head_of, header_of


def main() -> None:
    """Store argv[2] files in the vault argv[1], refer to all of them in a Differential, and read that."""
    count = int(sys.argv[2])
    cluster = Vault.open(Path(sys.argv[1])).cluster("main")
    headers = (header_of(f"{ROOT}/base/{number // 1000}/{number:09}", 100) for number in range(count))
    with cluster.begin_backup(FULL) as sink:
        for header in headers:
            sink.accept(MadeDetached(header, header.path.encode().ljust(100)))
        sink.commit(head_of(FULL))
    with cluster.begin_backup(DIFFERENTIAL) as sink:
        for number in range(count):
            sink.accept(UnchangedItem(header_of(f"{ROOT}/base/{number // 1000}/{number:09}", 100), FULL))
        sink.commit(head_of(DIFFERENTIAL, base=FULL))
    files = 0
    with cluster, cluster.open_backup(DIFFERENTIAL) as backup:
        for item in backup.items():
            assert item.read_extent(0, 100) == item.header.path.encode().ljust(100)
            files += 1
    sys.stdout.write(f"{files} {peak_mebibytes()}\n")


def peak_mebibytes() -> float:
    """Return this program's peak memory; ru_maxrss would be that of the process that started it, if that is larger."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise LookupError("VmHWM")


if __name__ == "__main__":
    main()
