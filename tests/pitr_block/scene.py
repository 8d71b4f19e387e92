"""What the tests of mode pitr_block play with: a vault, and plans made in this process, which cost no backup."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from pgkeep.modes.contract import BackupRequest
from pgkeep.modes.physical_wal import WalOptions
from pgkeep.modes.pitr_block import PitrBlockMode, PitrBlockOptions, PitrBlockPlan
from pgkeep.server.connection import Server
from pgkeep.streams.record import Level
from pgkeep.vault.history import VaultHistory
from pgkeep.vault.vault import Vault
from tests.lab.cluster import Cluster
from tests.restore.keeper import Keeper, Outcome
from tests.server.conftest import target_of


@dataclass
class Planned:
    """What a job would do, and what it said: *plan* is None when it was refused."""

    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    plan: PitrBlockPlan | None = None

    @property
    def is_incremental(self) -> bool:
        """Whether it builds on a base, with nothing to remark."""
        return self.plan is not None and self.plan.base is not None and not self.plan.reason

    @property
    def reason(self) -> str:
        """Why it would be a Full instead."""
        assert self.plan is not None
        assert (self.plan.level, self.plan.base) == (Level.FULL, None)
        prefix = "making a Full instead of the Incremental asked for: "
        assert self.plan.reason.startswith(prefix), self.plan.reason
        return self.plan.reason.removeprefix(prefix)


def backup(keeper: Keeper, level: str, *arguments: str, cluster: Cluster | None = None) -> Outcome:
    """Make a backup of mode pitr_block; it must succeed."""
    return keeper.must("backup", *backup_options(keeper, level, cluster=cluster), *arguments)


def backup_options(keeper: Keeper, level: str, *, cluster: Cluster | None = None, user: str = "postgres") -> list[str]:
    """Return the options of a backup of mode pitr_block."""
    fixed = ["--json", "--mode=pitr_block", "--start-fast", f"--level={level}"]
    return [*fixed, *keeper.server_options(cluster, user=user)]


def planned(
    keeper: Keeper, level: Level = Level.INCREMENTAL, *, cluster: Cluster | None = None, **options: Any
) -> Planned:
    """Return what a job of *level* would do; *options* are those of the mode."""
    found = Planned()
    wal = WalOptions(timeout_seconds=options.pop("timeout_seconds", 60))
    request = BackupRequest(
        cluster=keeper.name,
        prefix="@postgresql",
        mode="pitr_block",
        level=level,
        begin=dt.datetime.now(dt.UTC),
        options=PitrBlockOptions(**options, wal=wal),
        say=found.said.append,
        warn=found.warned.append,
    )
    with (
        Vault.open(keeper.vault).cluster(keeper.name) as vault,
        Server.open(target_of(cluster or keeper.cluster)) as server,
    ):
        found.plan = PitrBlockMode().plan(request, server=server, history=VaultHistory(vault))
    return found
