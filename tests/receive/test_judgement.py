"""What counts as trouble, and that it is said once."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pgkeep.jobs.receiving.backlog import Backlog
from pgkeep.jobs.receiving.judgement import Figures, is_in_danger, judge
from pgkeep.jobs.receiving.troubles import Trouble, Troubles
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.server.slots import ReplicationSlot
from pgkeep.vault.wal_holes import WalHole

SLOT = ReplicationSlot(
    name="pgkeep_main",
    is_physical=True,
    database="",
    plugin="",
    is_temporary=False,
    is_active=True,
    restart_lsn=Lsn(0x3000000),
    confirmed_flush_lsn=None,
    wal_status="reserved",
    safe_wal_bytes=None,
)
FINE = Figures(
    receiving="",
    shipping="",
    server_end=Lsn(0x5000000),
    received=Lsn(0x4000000),
    shipped=Lsn(0x3000000),
    ships_to="the vault",
    unreceived_seconds=59.0,
    unshipped_seconds=359.0,
    window_seconds=300.0,
    slot=SLOT,
    unanswered="",
    idle_slot_seconds=59.0,
    asks_in_danger=1,
    holes=[],
)


def troubles(**changes: Any) -> dict[str, str]:
    """Return what is wrong with figures that have *changes*."""
    return {trouble.name: trouble.message for trouble in judge(dataclasses.replace(FINE, **changes))}


def test_within_the_bounds_nothing_is_wrong() -> None:
    """Ages up to their bounds are no trouble, nor is a server that cannot be asked."""
    assert troubles() == {}
    assert troubles(slot=None, server_end=None, idle_slot_seconds=None, unreceived_seconds=None) == {}


def test_each_trouble_has_its_line() -> None:
    """A stall, WAL that waits, a slot that is idle, in danger or lost, and a hole are each said with figures."""
    assert troubles(unreceived_seconds=61.0) == {
        "stalled": "STALLED: the server has WAL up to 0/05000000, received is up to 0/04000000, and nothing came for "
        "0:01:01"
    }
    assert troubles(unshipped_seconds=3600.0) == {
        "unshipped": "UNSHIPPED: WAL from 0/03000000 to 0/04000000 has waited for 1:00:00 to get into the vault, "
        "expected 300 s"
    }
    assert troubles(idle_slot_seconds=90.0) == {
        "inactive": 'slot "pgkeep_main" has been inactive for 0:01:30 and keeps 32.0 MiB on the server'
    }
    unreserved = dataclasses.replace(SLOT, wal_status="unreserved")
    assert troubles(slot=unreserved, asks_in_danger=2) == {
        "slot": 'slot "pgkeep_main" keeps 32.0 MiB on the server, and loses WAL at the next checkpoint'
    }
    nearly = dataclasses.replace(SLOT, wal_status="extended", safe_wal_bytes=13 << 20)
    assert troubles(slot=nearly, asks_in_danger=2) == {
        "slot": 'slot "pgkeep_main" keeps 32.0 MiB on the server, and loses WAL after another 13.0 MiB'
    }
    lost = dataclasses.replace(SLOT, wal_status="lost", restart_lsn=None)
    assert troubles(slot=lost) == {"slot": 'slot "pgkeep_main" is lost: the server has given up WAL for it'}
    assert troubles(unanswered="too many connections") == {
        "unanswered": "the server does not say how the slot stands: too many connections"
    }
    hole = WalHole(timeline=1, start="0/1000000", stop="0/2000000", time="2026-11-20T20:48:00+00:00", reason="gone")
    assert troubles(holes=[hole]) == {
        "hole": "NO BASE BACKUP behind the hole in the WAL from 0/1000000 to 0/2000000: make one now"
    }


def test_a_slot_is_in_danger_from_seventy_percent_on() -> None:
    """A slot that has used 70 % of its bound is in danger, one without a bound is not."""
    end = Lsn(SLOT.restart_lsn + (70 << 20)) if SLOT.restart_lsn is not None else None
    assert not is_in_danger(SLOT, end)
    assert not is_in_danger(dataclasses.replace(SLOT, safe_wal_bytes=30 << 20), end)
    assert is_in_danger(dataclasses.replace(SLOT, safe_wal_bytes=(30 << 20) - 1), end)
    assert is_in_danger(dataclasses.replace(SLOT, wal_status="unreserved"), end)
    assert not is_in_danger(None, end)


def test_a_trouble_is_said_once_when_it_changes_and_when_it_is_over() -> None:
    """Figures that change are not said again; another state is, and the end; what others say is only kept."""
    lines: list[str] = []
    log = Troubles(say=lines.append, warn=lambda text: lines.append(f"warning: {text}"))
    said_by_others = Trouble("receiving", "the spool is full", is_said=True)
    log.update([Trouble("slot", "keeps 1", "extended"), said_by_others])
    log.update([Trouble("slot", "keeps 2", "extended"), said_by_others])
    assert log.messages() == {"slot": "keeps 2", "receiving": "the spool is full"}
    log.update([Trouble("slot", "keeps 3", "unreserved")])
    log.update([])
    log.update([])
    assert lines == ["warning: keeps 1", "warning: keeps 3", "is over: keeps 3"]
    assert log.messages() == {}


def position(lsn: int, timeline: int = 1) -> WalPosition:
    """Return a position."""
    return WalPosition(Timeline(timeline), Lsn(lsn))


def test_a_backlog_knows_since_when() -> None:
    """The age is that of the oldest WAL that is left, on whichever timeline."""
    backlog = Backlog()
    assert backlog.since is None
    backlog.note(position(100), 1.0)
    backlog.note(position(100), 2.0)
    backlog.note(position(200), 3.0)
    backlog.settle(None)
    assert backlog.since == 1.0
    backlog.settle(position(100))
    assert backlog.since == 3.0
    backlog.note(position(50, 2), 4.0)
    assert backlog.since == 3.0
    backlog.settle(position(200))
    assert backlog.since == 4.0
    backlog.settle(position(50, 2))
    assert backlog.since is None


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=2000))
def test_a_backlog_never_says_younger_by_more_than_it_forgot(steps: list[tuple[int, bool]]) -> None:
    """Whatever comes in and is done, something is left exactly when WAL is, and it is not older than its WAL."""
    backlog, end, done = Backlog(), 0, 0
    arrived: dict[int, float] = {}
    for now, (more, is_settled) in enumerate(steps):
        if more:
            end += more
            arrived[end] = float(now)
        backlog.note(position(end), float(now))
        if is_settled:
            done = (done + end + 1) // 2
        backlog.settle(position(done))
        since = backlog.since
        assert (since is not None) == (end > done)
        if since is not None:
            assert since >= min(moment for reached, moment in arrived.items() if reached > done)
