"""From which backup, and how far through the archive, a restored standby goes; without a server."""

from __future__ import annotations

import msgspec
import pytest

from pgkeep.errors import RestoreRefused, UsageError
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.jobs.recovery.standby_plan import StandbyPlan, plan_standby_recovery
from pgkeep.pg.lsn import SystemIdentifier, Timeline
from pgkeep.pg.timeline import TimelineHistory
from pgkeep.server.primary import Primary, primary_place
from pgkeep.streams.record import RecordHead
from tests.restore.holdings import SEGMENT, Holdings, fork, head, lsn

SYSTEM = SystemIdentifier(7312345678901234567)
FULL, SECOND, THIRD = (
    msgspec.structs.replace(head(f"20261120T{hour}0000Z-F", stop=stop), server_version=180006)
    for hour, stop in ((14, 2), (16, 4), (18, 6))
)


def standby(*, timeline: int = 1, left_at: float = 0, at: float, system: int = SYSTEM, major: int = 18) -> StandbyPlan:
    """Return a standby of a primary at segment *at*, which left timeline 1 at *left_at* if it is on another one."""
    history = fork(timeline, 1, left_at).render() if timeline > 1 else ""
    primary = Primary("db1:5432", SystemIdentifier(system), Timeline(timeline), history, lsn(at), major)
    return StandbyPlan("host=db1", "db1:5432", primary)


@pytest.mark.parametrize(
    ("plan", "base", "archived"),
    [
        (standby(at=9), THIRD, 8),
        (standby(at=5), SECOND, 8),
        # The segment of the fork comes from the primary, whatever the archive has under the old timeline's name.
        (standby(timeline=2, left_at=4.5, at=9), SECOND, 4),
        (standby(timeline=2, left_at=5.5, at=9), SECOND, 5),
        (standby(timeline=2, left_at=6.25, at=9), THIRD, 6),
    ],
)
def test_newest_backup_on_the_primarys_history(plan: StandbyPlan, base: RecordHead, archived: float) -> None:
    """A base lies on the primary's history and not beyond its WAL; the archive serves up to the fork."""
    found = plan_standby_recovery(plan, [FULL, SECOND, THIRD], Holdings({1: 8}))
    assert (found.base.backup_id, found.archived_end) == (base.backup_id, lsn(archived))
    assert found.timeline == plan.primary.timeline if plan.primary is not None else False


def test_fork_in_the_last_segment_of_a_backup() -> None:
    """A primary that was restored to just behind a backup has that backup's last segment under the new name only."""
    late = msgspec.structs.replace(head("20261120T190000Z-F", stop=6.5, start_lsn=str(lsn(6.1))), server_version=180006)
    found = plan_standby_recovery(standby(timeline=2, left_at=6.6, at=9), [late], Holdings({1: 8}))
    assert (found.base.backup_id, found.archived_end) == (late.backup_id, lsn(6))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            standby(at=9, system=42),
            f"the primary at db1:5432 is another cluster: its system identifier is 42, that of the backups {SYSTEM}",
        ),
        (standby(at=9, major=17), "the primary at db1:5432 is PostgreSQL 17, the backups are of 18"),
        (
            standby(at=1.5),
            "backup 20261120T140000Z-F ends at 0/02000000, the primary at db1:5432 has WAL up to 0/01800000 only",
        ),
        (standby(timeline=2, left_at=1.5, at=9), "no base backup lies on timeline 2"),
    ],
)
def test_primary_that_nothing_leads_to(plan: StandbyPlan, message: str) -> None:
    """A primary of another cluster or version, or of before all backups, is refused in phase 1."""
    with pytest.raises(RestoreRefused) as caught:
        plan_standby_recovery(plan, [FULL, SECOND, THIRD], Holdings({1: 8}))
    assert caught.value.message == message


def test_hole_in_the_wal_of_the_backup() -> None:
    """A base that could not become consistent is refused."""
    with pytest.raises(RestoreRefused, match="WAL is missing from 0/05000000 on: backup 20261120T180000Z-F needs it"):
        plan_standby_recovery(standby(at=9), [FULL, SECOND, THIRD], Holdings({1: 0}))


def test_what_the_primary_never_wrote() -> None:
    """A standby's WAL plan leaves out the old timeline from the fork on, and timelines that are not the primary's."""
    plan = WalPlan(SYSTEM, SEGMENT, histories=("00000002.history",))
    limited = standby(timeline=2, left_at=4.5, at=9).limit(plan)
    assert limited == WalPlan(SYSTEM, SEGMENT, excluded=("000000010000000000000004",), last_timeline=2)
    assert WalPlan.parse(limited.render()) == limited
    excluded = {name for name in _NAMES if limited.excludes(name)}
    kept = {"000000010000000000000003", "000000020000000000000004", "00000001.history"}
    assert excluded == set(_NAMES) - kept
    assert not any(plan.excludes(name) for name in _NAMES)


_NAMES = (
    "000000010000000000000003",
    "000000010000000000000004",
    "0000000100000001000000FF",
    "000000020000000000000004",
    "000000030000000000000005",
    "00000001.history",
    "00000002.history",
    "00000003.history",
)


@pytest.mark.parametrize(
    ("conninfo", "place"),
    [
        ("host=db1 port=5433 user=replicator passfile=/x password=geheim", "db1:5433 as replicator"),
        ("postgresql://replicator:geheim@db1/x", "db1 as replicator"),
        ("service=primary", "service primary"),
        ("hostaddr=10.0.0.1", "10.0.0.1"),
    ],
)
def test_place_of_a_primary(conninfo: str, place: str) -> None:
    """Messages say where a primary is, and never a password."""
    assert primary_place(conninfo) == place


@pytest.mark.parametrize(
    ("conninfo", "message"),
    [
        ("user=replicator", "primary_conninfo names no server"),
        ("db1 geheim", "primary_conninfo is not a connection string: a keyword without a value"),
    ],
)
def test_primary_that_cannot_be_read(conninfo: str, message: str) -> None:
    """What is no way to a server is refused, and not repeated: a password may be in it."""
    with pytest.raises(UsageError) as caught:
        primary_place(conninfo)
    assert caught.value.message == message


def test_history_is_the_primarys() -> None:
    """The history is read as the primary keeps it."""
    primary = standby(timeline=2, left_at=4.5, at=9).primary
    assert primary is not None
    assert primary.history == TimelineHistory(Timeline(2), fork(2, 1, 4.5).entries)
