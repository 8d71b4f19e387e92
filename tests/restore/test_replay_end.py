"""Whether a replay ended where it was to end: what its last lines and its last LSN say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.errors import RecoveryFailed, ServerError
from pgkeep.jobs.restoring.replay import ReplayEnd, check_pause, check_reached_end, is_lasting
from pgkeep.pg.lsn import Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind
from tests.restore.holdings import SEGMENT, lsn

LOG = Path("/srv/data.pgkeep-restore.log")
STOPPING = '2026-11-20 12:00:00 UTC [7] LOG:  recovery stopping after WAL location (LSN) "0/3000060"'
INSUFFICIENT = (
    "2026-11-20 12:00:00 UTC [7] WARNING:  hot standby is not possible because of insufficient parameter settings"
)


def test_replay_that_ends_at_a_damaged_record() -> None:
    """An end of the WAL before the last segment held is a failure; one within it is how WAL ends."""

    def check(place: float) -> None:
        end = ReplayEnd(lsn(place), Timeline(2), None, is_promoted=True)
        check_reached_end(end, lsn(9), segment_size=SEGMENT, log_path=LOG)

    for place in (8, 8.5, 9):
        check(place)
    with pytest.raises(RecoveryFailed) as failed:
        check(4.5)
    assert failed.value.message == f"replay ended at {lsn(4.5)}, but WAL is held to {lsn(9)}"


def test_pause_at_the_target() -> None:
    """A pause after the server said that it stops at the target is what was asked for."""
    target = RecoveryTarget(TargetKind.LSN, lsn(3), action=TargetAction.PAUSE)
    check_pause([STOPPING], target, lsn(3), log_path=LOG)


@pytest.mark.parametrize("action", [TargetAction.PAUSE, TargetAction.PROMOTE])
def test_pause_for_another_reason(action: TargetAction) -> None:
    """A pause because a setting is too low is a failure that names the reason, whatever was to follow the target."""
    target = RecoveryTarget(TargetKind.LSN, lsn(3), action=action)
    with pytest.raises(RecoveryFailed) as failed:
        check_pause([INSUFFICIENT], target, lsn(2), log_path=LOG)
    assert failed.value.message == (
        f"replay paused at {lsn(2)}, before lsn {lsn(3)}: hot standby is not possible because of insufficient "
        "parameter settings"
    )
    assert failed.value.hint == f"see {LOG}"


@pytest.mark.parametrize(
    ("reason", "lasts"),
    [
        ("the database system is starting up", False),
        ("the database system is not yet accepting connections", False),
        ("Connection refused", False),
        ('database "postgres" does not exist', True),
        ('role "postgres" is not permitted to log in', True),
        ('database "postgres" is not currently accepting connections', True),
    ],
)
def test_refusal_that_waiting_does_not_mend(reason: str, lasts: bool) -> None:
    """A server that does not let anybody in yet is asked again; one that never will is not."""
    assert is_lasting(ServerError(f"cannot connect to PostgreSQL at /run:5432 as postgres: {reason}")) == lasts
