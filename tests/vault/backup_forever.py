"""A program that writes one backup without end, for tests that kill it; says ``writing`` when it has begun to."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

from pgkeep.vault.vault import Vault
from tests.vault.made_items import ROOT, MadeDetached, header_of


def main() -> None:
    """Write into the vault argv[1] the backup argv[2]."""
    cluster = Vault.open(Path(sys.argv[1])).cluster("main")
    with cluster.begin_backup(sys.argv[2]) as sink:
        for number in itertools.count():
            sink.accept(MadeDetached(header_of(f"{ROOT}/base/{number}", 3_000_000), random.randbytes(3_000_000)))
            if number == 40:
                sys.stdout.write("writing\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
