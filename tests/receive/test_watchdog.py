"""What the watchdog of a receiver sees, says and writes down, look by look."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgkeep.jobs.receiving import watchdog
from pgkeep.jobs.receiving.source import SourceOptions
from pgkeep.jobs.receiving.watchdog import Watchdog
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.wal import WalSegment
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.server.slots import advance_slot
from pgkeep.spool.state import ReceiverState, read_state
from pgkeep.vault.wal_holes import WalHole, add_hole
from tests.archive.made_wal import wal_of
from tests.lab.cluster import SUPERUSER, Cluster, MakeCluster
from tests.receive.receiver import SLOT
from tests.receive.small_spool import SEGMENT, SYSTEM, small_archive, small_spool
from tests.receive.test_trouble import SMALL, write

KEPT = f'warning: slot "{SLOT}" keeps '


class Scene:
    """A watchdog over a receiver that is made up; its server is asked at every look."""

    def __init__(self, spool: Any, target: ConnectionTarget, cluster: Any = None) -> None:
        self.lines: list[str] = []
        self.path: Path = spool.path
        self.receiver = SimpleNamespace(trouble="", is_streaming=True, server_end=None, received=lambda: None)
        self.watchdog = Watchdog(
            cluster,
            spool,
            self.receiver,  # type: ignore[arg-type]
            None,
            SourceOptions(
                target=target,
                slot=SLOT,
                allow_unbounded_slot=False,
                system_identifier=SYSTEM,
                segment_size=SEGMENT,
            ),
            window_seconds=300,
            slot_wal_max=0,
            record_hole=lambda _: None,
            say=self.lines.append,
            warn=lambda text: self.lines.append(f"warning: {text}"),
        )

    def look(self, times: int = 1) -> ReceiverState:
        """Look so often; return what is written down then."""
        for _ in range(times):
            self.watchdog.look()
        state = read_state(self.path)
        assert state is not None
        return state


@pytest.fixture
def make_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that makes a scene; its spool is closed in the end."""
    monkeypatch.setattr(watchdog, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.0)
    with ExitStack() as stack:
        yield lambda target, cluster=None: Scene(stack.enter_context(small_spool(tmp_path)), target, cluster)


def allow_connections(cluster: Cluster, *, allowed: bool) -> None:
    """Let the server answer questions, or nothing but replication."""
    cluster.sql(f"ALTER DATABASE postgres ALLOW_CONNECTIONS {allowed}", dbname="template1")


def test_a_trouble_of_the_slot_is_not_over_because_nobody_answers(make_scene: Any, make_cluster: MakeCluster) -> None:
    """A slot in danger stays one while the server refuses questions, which is said once; then all of it is over."""
    cluster = make_cluster(settings=SMALL | {"max_slot_wal_keep_size": "8MB"}, wal_segment_size_mb=1)
    cluster.sql("SELECT pg_create_physical_replication_slot(%s, true)", [SLOT])
    write(cluster, 7)
    target = ConnectionTarget(host=str(cluster.socket_directory), port=cluster.port, user=SUPERUSER)
    scene = make_scene(target)
    state = scene.look(times=2)
    [danger] = scene.lines
    assert danger.startswith(KEPT)
    assert (state.slot_is_active, list(state.troubles)) == (False, ["slot"])
    assert state.slot_kept_bytes is not None

    allow_connections(cluster, allowed=False)
    state = scene.look()
    assert (scene.lines, list(state.troubles)) == ([danger], ["slot"])
    assert (state.slot_is_active, state.slot_wal_status, state.slot_kept_bytes) == (None, "", None)
    state = scene.look(times=3)
    assert list(state.troubles) == ["unanswered", "slot"]
    [_, refusal] = scene.lines
    assert refusal.startswith("warning: the server does not say how the slot stands: ")
    assert "not currently accepting connections" in refusal

    allow_connections(cluster, allowed=True)
    with Server.open(target) as server:
        advance_slot(server, SLOT, Lsn.parse(cluster.value("SELECT pg_current_wal_flush_lsn()::text")))
    assert scene.look().troubles == {}
    assert scene.lines[2].startswith("is over: the server does not say how the slot stands: ")
    assert scene.lines[3].startswith(f'is over: slot "{SLOT}" keeps ')


def test_a_server_that_is_away_is_for_the_receiver_to_tell(make_scene: Any, lab_directory: Path) -> None:
    """Where the receiver has said that it cannot reach the server, the watchdog does not say it again."""
    scene = make_scene(ConnectionTarget(host=str(lab_directory)))
    scene.receiver.trouble = "connection refused"
    assert scene.look(times=3).troubles == {"receiving": "connection refused"}
    assert scene.lines == []


def test_a_hole_that_somebody_fills_is_over(make_scene: Any, lab_directory: Path, tmp_path: Path) -> None:
    """What another archiver brings of the WAL that was not received ends the alarm; the half of it does not."""
    archive = small_archive(tmp_path)
    archive.root.mkdir()
    (tmp_path / "cluster.json").touch()
    cluster = SimpleNamespace(directory=tmp_path, archive=archive, backup_ids=list, scan_backups=list)
    first = WalSegment.containing(Lsn(3 * SEGMENT), timeline=Timeline(1), size=SEGMENT)
    time = "2026-11-20T20:48:00+00:00"
    hole = WalHole(timeline=1, start="0/300010", stop="0/500000", time=time, reason="gone")
    add_hole(tmp_path, hole)
    scene = make_scene(ConnectionTarget(host=str(lab_directory)), cluster)
    missing = "NO BASE BACKUP behind the hole in the WAL from 0/300010 to 0/500000: make one now"
    for segment in (first, first.next()):
        assert scene.look().troubles["hole"] == missing
        archive.put(segment.name, [wal_of(segment, system=SYSTEM)])
    assert "hole" not in scene.look().troubles
    assert f"is over: {missing}" in scene.lines


def test_a_fault_of_its_own_ends_no_watch(make_scene: Any, lab_directory: Path) -> None:
    """What the watchdog itself does wrong is said once, by kind and place, and it looks again."""
    scene = make_scene(ConnectionTarget(host=str(lab_directory)))
    stop, calls = threading.Event(), []

    def received() -> None:
        calls.append(1)
        if len(calls) == 3:
            stop.set()
        raise ValueError("a secret")

    scene.receiver.received = received
    scene.watchdog.run(stop)
    assert len(calls) == 3
    scene.watchdog.finish()
    assert [line.partition(".py:")[0] for line in scene.lines] == [
        "warning: cannot watch over it: internal error: ValueError in test_watchdog",
        "warning: cannot write down how it stands: internal error: ValueError in test_watchdog",
    ]
