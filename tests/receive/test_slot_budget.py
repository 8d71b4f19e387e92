"""A slot that keeps too much is dropped only where nobody is about to use it, and only at its own cluster's server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pgkeep.jobs.receiving.slot_budget import SlotBudget
from pgkeep.jobs.receiving.source import SourceOptions
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline, WalPosition
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.server.slots import advance_slot, find_slot
from pgkeep.vault.wal_holes import WalHole
from tests.lab.cluster import SUPERUSER, Cluster, MakeCluster
from tests.receive.test_judgement import SLOT
from tests.receive.test_trouble import SEGMENT, SMALL, write

KEPT, MAX = 2 << 20, 1 << 20
NAME = "pgkeep_main"


class Scene:
    """A budget of 1 MiB, its clock, and what it has written down and said."""

    def __init__(self, cluster: Cluster | None = None, system: int | None = None) -> None:
        self.now = 100.0
        self.holes: list[WalHole] = []
        self.warnings: list[str] = []
        self.target = ConnectionTarget(user=SUPERUSER)
        if cluster is not None:
            system = system or int(cluster.value("SELECT system_identifier FROM pg_control_system()"))
            self.target = ConnectionTarget(host=str(cluster.socket_directory), port=cluster.port, user=SUPERUSER)
        self.budget = SlotBudget(
            SourceOptions(
                target=self.target,
                slot=NAME,
                allow_unbounded_slot=False,
                system_identifier=SystemIdentifier(system or 7),
                segment_size=SEGMENT,
            ),
            max_bytes=MAX,
            segment_size=SEGMENT,
            record_hole=self.holes.append,
            warn=self.warnings.append,
            clock=lambda: self.now,
        )

    def answers(self, number: int, *, seconds: float = 5.0, is_received: bool = False, **changes: Any) -> bool:
        """Let the server answer so often, every few *seconds*; return whether the slot keeps too much."""
        for _ in range(number):
            self.now += seconds
            self.budget.note(dataclasses.replace(SLOT, is_active=False, **changes), is_received=is_received)
        return self.budget.is_exceeded(KEPT)

    def asks(self) -> bool:
        """Ask the real server until the slot has stood still for long; return whether it keeps too much."""
        for _ in range(3):
            self.now += 5
            with Server.open(self.target) as server:
                self.budget.note(find_slot(server, NAME), is_received=False)
        return self.budget.is_exceeded(KEPT)


def test_a_slot_must_stand_still_in_several_answers() -> None:
    """One that was idle in two answers, or for less than ten seconds, or keeps what it may, is left alone."""
    assert not Scene().answers(2, seconds=3600.0)
    assert not Scene().answers(9, seconds=1.0)
    scene = Scene()
    assert scene.answers(3)
    assert not scene.budget.is_exceeded(MAX)
    assert not scene.budget.is_exceeded(None)


@pytest.mark.parametrize(
    "interrupt",
    [
        lambda scene: scene.budget.note(dataclasses.replace(SLOT, is_active=True), is_received=False),
        lambda scene: scene.budget.note(None, is_received=False),
        lambda scene: scene.answers(1, is_received=True),
        lambda scene: scene.answers(1, restart_lsn=Lsn(0x3000001)),
    ],
    ids=["is used", "is gone", "its WAL is received", "has moved"],
)
def test_a_slot_that_moves_begins_anew(interrupt: Callable[[Scene], object]) -> None:
    """A slot that somebody used in between, or that has moved, gets its ten seconds once more."""
    scene = Scene()
    assert scene.answers(3)
    interrupt(scene)
    assert not scene.answers(2)
    assert scene.answers(1)


def test_only_the_slot_that_was_judged_is_dropped(make_cluster: MakeCluster) -> None:
    """Not that of another cluster, not one that has moved; where it is not to be had, the hole is written once."""
    cluster = make_cluster(settings=SMALL | {"max_slot_wal_keep_size": "1GB"}, wal_segment_size_mb=1)
    cluster.sql("SELECT pg_create_physical_replication_slot(%s, true)", [NAME])
    write(cluster, 4)
    received = WalPosition(Timeline(1), Lsn.parse(cluster.value("SELECT pg_current_wal_flush_lsn()::text")))
    write(cluster, 4)

    foreign = Scene(cluster, system=42)
    assert foreign.asks()
    for _ in range(2):
        assert not foreign.budget.give_up(received)
    [warning] = foreign.warnings
    assert warning.startswith(f'slot "{NAME}" keeps too much and cannot be dropped: PostgreSQL at ')
    assert warning.endswith(" the vault's cluster has 42")
    assert foreign.holes == []

    moved = Scene(cluster)
    assert moved.asks()
    with Server.open(moved.target) as server:
        advance_slot(server, NAME, received.lsn)
    assert not moved.budget.give_up(received)
    assert (moved.holes, moved.warnings) == ([], [])

    scene = Scene(cluster)
    assert scene.asks()
    # Written down before it is tried, and tried by a role that may not.
    cluster.sql("CREATE ROLE weak LOGIN")
    weak = scene.budget._options
    scene.budget._options = dataclasses.replace(weak, target=dataclasses.replace(weak.target, user="weak"))
    for _ in range(2):
        assert not scene.budget.give_up(received)
    assert len(scene.warnings) == 1
    scene.budget._options = weak
    assert scene.budget.give_up(received)
    assert cluster.sql("SELECT slot_name FROM pg_replication_slots") == []
    [hole] = scene.holes
    assert (hole.timeline, hole.start) == (1, str(received.lsn))
    assert Lsn.parse(hole.stop) % SEGMENT == 0
    assert scene.warnings[1].startswith(f'slot "{NAME}" was dropped: it kept ')
