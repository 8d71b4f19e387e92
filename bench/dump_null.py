"""A parallel dump of one database to nowhere: HOST PORT DATABASE WORKERS; started by ``bench/dumps.py``."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

from pgkeep.modes.contract import BackupRequest
from pgkeep.modes.parallel_dump import ParallelDumpMode
from pgkeep.modes.parallel_dump_plan import ParallelDumpOptions
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.streams.record import Level, new_backup_id


class _NoHistory:
    """The history of a cluster that was never backed up."""

    def new_backup_id(self, begin: dt.datetime, level: Level) -> str:
        return new_backup_id(begin, level)

    def newest(self, **_: object) -> None:
        return None

    def wal_held(self) -> None:
        return None


def main(host: str, port: str, database: str, workers: str) -> None:
    """Read every item, keep none."""
    options = ParallelDumpOptions(
        databases=(database,),
        include_globals=False,
        workers=int(workers),
        jobs=1,
        threshold_bytes=64 << 20,
        bin_dir=Path(sys.argv[5]),
    )
    request = BackupRequest(
        cluster="bench",
        prefix="@postgresql",
        mode="parallel_dump",
        level=Level.FULL,
        begin=dt.datetime.now(dt.UTC),
        options=options,
        say=lambda _: None,
        warn=lambda _: None,
    )
    mode = ParallelDumpMode()
    size = 0
    with Server.open(ConnectionTarget(host=host, port=int(port), user="postgres")) as server:
        plan = mode.plan(request, server=server, history=_NoHistory())
        with mode.open(plan, server=server) as source:
            for item in source.items():
                for chunk in item.chunks():
                    size += len(chunk)
            source.finish()
    print(size)


if __name__ == "__main__":
    main(*sys.argv[1:5])
