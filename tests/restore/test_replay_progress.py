"""What a long replay says while it lasts."""

from __future__ import annotations

import datetime as dt
import re

from pgkeep.datadir.instance import Instance, PrivateAccess
from pgkeep.datadir.owner import Owner
from pgkeep.jobs.restoring.fence import Fence
from pgkeep.jobs.restoring.replay import watch_replay
from pgkeep.jobs.restoring.replay_progress import ReplayProgress
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import RecoveryTarget
from tests.lab.cluster import SUPERUSER
from tests.restore.conftest import MakeKeeper

MIB = 1 << 20
GIB = 1 << 30


def test_a_line_says_how_far_how_fast_and_how_long() -> None:
    """Not before it is time, and at the pace of the last stretch; nothing is promised that is not known."""
    said: list[str] = []
    now = [0.0]
    progress = ReplayProgress(Lsn(GIB), Lsn(5 * GIB), say=said.append, report_seconds=10, clock=lambda: now[0])
    progress.tell(Lsn(GIB + MIB))
    assert said == []
    now[0] = 10
    progress.tell(Lsn(GIB), note=" at least, not consistent yet")
    now[0] = 20
    progress.tell(Lsn(2 * GIB), dt.datetime(2026, 11, 21, 8, 30, tzinfo=dt.UTC))
    now[0] = 25
    progress.tell(Lsn(3 * GIB))
    now[0] = 30.0 + 86400
    progress.tell(Lsn(2 * GIB + 2048))
    now[0] += 10
    progress.tell(Lsn(6 * GIB))
    open_end = ReplayProgress(Lsn(0), None, say=said.append, report_seconds=10, clock=lambda: now[0])
    now[0] += 10
    open_end.tell(Lsn(MIB))
    assert said == [
        "replayed to 0/40000000 at least, not consistent yet, 0 bytes of at most 4.0 GiB of WAL",
        (
            "replayed to 0/80000000, 1.0 GiB of at most 4.0 GiB of WAL, 102.4 MiB/s, done in 30 s at most, "
            "last commit 2026-11-21 08:30:00+00:00"
        ),
        "replayed to 0/80000800, 1.0 GiB of at most 4.0 GiB of WAL, 0 bytes/s",
        "replayed to 1/80000000, 5.0 GiB of at most 5.0 GiB of WAL, 409.6 MiB/s",
        "replayed to 0/00100000, 1.0 MiB of WAL, 102.4 KiB/s",
    ]


def test_a_real_replay_is_followed(make_keeper: MakeKeeper) -> None:
    """The server is asked by SQL; its lines never go back, and end before the end of the WAL."""
    keeper = make_keeper(archive="vault")
    keeper.backup("full", "local")
    keeper.cluster.sql("CREATE TABLE t AS SELECT n, repeat('x', 500) AS filler FROM generate_series(1, 150000) AS n")
    keeper.wait_until_archived()
    restored = keeper.restore(start=False)
    access = PrivateAccess.make(Owner.of(restored.data_directory))
    instance = Instance(
        restored.data_directory,
        bin_directory=keeper.cluster.installation.bin_dir,
        log_path=keeper.directory / "replay.log",
    )
    said: list[str] = []
    end = Lsn.parse(keeper.cluster.current_lsn())
    try:
        Fence(instance, access, major=keeper.cluster.major, minimums={}, say=said.append).start()
        ended = watch_replay(
            instance,
            access,
            RecoveryTarget(),
            major=keeper.cluster.major,
            superuser=SUPERUSER,
            timeout_seconds=180,
            say=said.append,
            consistent_at=Lsn(4711),
            planned_end=end,
            report_seconds=0.05,
        )
    finally:
        instance.stop()
        access.remove()
    assert ended.lsn > Lsn(0)
    assert said.count(f"consistent recovery state reached at {Lsn(4711)}") == 1
    lines = [line for line in said if line.startswith("replayed to ")]
    pattern = r"replayed to (\S+?)( at least(, not consistent yet)?)?, \S+ \w+ of at most \S+ MiB of WAL(, .*)?"
    matches = [re.fullmatch(pattern, line) for line in lines]
    assert None not in matches
    positions = [Lsn.parse(match[1]) for match in matches if match is not None and not match[2]]
    assert len(positions) > 1, said
    assert positions == sorted(positions)
    assert positions[-1] <= ended.lsn <= end
