"""Which backup and which timeline a restore takes: decided without a server."""

from __future__ import annotations

import pytest

from pgkeep.errors import RestoreRefused
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from tests.restore.holdings import Holdings, fork, head, plan


def test_timeline_after_a_restore_to_before_the_newest_backup() -> None:
    """After an in-place restore to before the newest backup, the timeline that the cluster writes now is taken."""
    heads = [head("full", stop=2), head("differential", stop=9)]
    holdings = Holdings({1: 10, 2: 7}, fork(2, 1, 5), at={2: 13})
    found = plan(heads, holdings)
    assert (found.timeline, found.base.backup_id) == (2, "full")
    [note] = found.notes
    assert note == (
        "timeline 2 was written after the newest backup differential, which is on timeline 1: --target-timeline=1 "
        "leads there"
    )


def test_old_timeline_that_is_still_written() -> None:
    """A server that was promoted once for a drill does not take over from the one that is backed up."""
    heads = [head("full", stop=2), head("branch", stop=6, timeline=2, at=5), head("again", stop=9)]
    found = plan(heads, Holdings({1: 10, 2: 6}, fork(2, 1, 4), at={2: 5}))
    assert (found.timeline, found.base.backup_id, found.notes) == (1, "again", [])


def test_newest_timeline_that_the_newest_backup_leads_to() -> None:
    """A promoted server goes on where the newest backup is, even before any of its own WAL is archived."""
    found = plan([head("full", stop=2)], Holdings({1: 4}, fork(2, 1, 4)))
    assert (found.timeline, found.notes) == (2, [])


def test_a_backup_that_is_named_but_on_another_timeline() -> None:
    """What is left of a past that a restore left is in reach: the hint says by which timeline, and it is so."""
    heads = [head("full", stop=2), head("left", stop=6), head("again", stop=9, timeline=2, at=8)]
    holdings = Holdings({1: 10, 2: 9}, fork(2, 1, 4))
    with pytest.raises(RestoreRefused) as refused:
        plan(heads, holdings, RecoveryTarget(kind=TargetKind.LATEST, timeline="2"), backup_id="left")
    assert refused.value.message == "backup left does not lie on timeline 2"
    assert refused.value.hint == "add --target-timeline=1, on which it was made"
    found = plan(heads, holdings, RecoveryTarget(kind=TargetKind.LATEST, timeline="1"), backup_id="left")
    assert (found.timeline, found.base.backup_id) == (1, "left")


def test_settings_raised_after_the_base() -> None:
    """A setting that a later backup found raised is raised for the replay from an earlier one."""
    heads = [
        head("full", stop=2, settings={"max_connections": "100", "max_wal_senders": "10", "port": "5432"}),
        head("later", stop=9, settings={"max_connections": "300", "max_wal_senders": "5"}),
    ]
    found = plan(heads, Holdings({1: 10}), backup_id="full")
    assert found.minimums == {"max_connections": 300, "max_wal_senders": 10}


def test_backup_without_some_tablespaces() -> None:
    """A backup that left tablespaces out is taken only when it is named, and says what will be missing."""
    lacking = head("lacking", stop=4, details={"left_out": [16400]})
    holdings = Holdings({1: 5})
    assert plan([head("full", stop=2), lacking], holdings).base.backup_id == "full"
    [note] = plan([head("full", stop=2), lacking], holdings, backup_id="lacking").notes
    assert note == "backup lacking was made without tablespace 16400: what is in it will be missing"
    with pytest.raises(RestoreRefused) as refused:
        plan([lacking], holdings)
    assert refused.value.message == "every base backup on timeline 1 was made without some tablespaces"
    assert refused.value.hint == "to do without them, name one: --backup-id=lacking"


def test_a_timeline_whose_history_was_never_archived() -> None:
    """A server that archives only since after its promotion keeps the file to itself: the hint says what is wanted."""
    asked = RecoveryTarget(kind=TargetKind.LATEST, timeline="2")
    with pytest.raises(RestoreRefused) as refused:
        plan([head("full", stop=2)], Holdings({1: 4, 2: 6}), asked)
    assert refused.value.message == "timeline 2 is not known: expected one of 1"
    assert refused.value.hint == (
        "WAL of it is held, but not 00000002.history, which says where it began: the server that wrote the WAL has it "
        "in pg_wal; give it to pgkeep archive-push"
    )
    with pytest.raises(RestoreRefused) as refused:
        plan([head("full", stop=2)], Holdings({1: 4}), asked)
    assert (refused.value.message, refused.value.hint) == ("timeline 2 is not known: expected one of 1", "")
    found = plan([head("full", stop=2)], Holdings({1: 4, 2: 6}))
    assert found.timeline == 1
    [note] = found.notes
    assert note.startswith("WAL of timeline 2 is held, but not 00000002.history: nobody knows where it began, ")
    assert plan([head("full", stop=2)], Holdings({1: 4})).notes == []
