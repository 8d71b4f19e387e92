"""The table: what is asked for, and what comes of it, the same by shell and by bconsole."""

from __future__ import annotations

import itertools
import re

import pytest

from tests.lab.cluster import free_port
from tests.scenarios.conftest import Story
from tests.scenarios.doors import Attempt

pytestmark = pytest.mark.bacula

_NUMBERS = itertools.count(1)

PHASES = [
    "RESTORE PHASE 1/6 pre-check",
    "RESTORE PHASE 2/6 lay-down",
    "RESTORE PHASE 3/6 recovery-config",
    "RESTORE PHASE 4/6 start-and-replay",
    "RESTORE PHASE 5/6 topology",
    "RESTORE PHASE 6/6 verify-and-cleanup",
]

# What is asked for, and whose rows come: those of a mark, or of the moment just before its own.
MOMENTS: dict[str, tuple[dict[str, str], str]] = {
    "the end": ({}, "end"),
    "the moment before the accident": ({"target_time": "{last_good_time}"}, "last_good"),
    "an LSN": ({"target_lsn": "{early_lsn}"}, "early"),
    "a transaction": ({"target_xid": "{last_good_xid}"}, "last_good"),
    "just before a transaction": ({"target_xid": "{early_xid}", "target_inclusive": "no"}, "-early"),
    "a restore point": ({"target_name": "last good"}, "last_good"),
    "consistency": ({"skip_wal_replay": "yes"}, "before"),
}

# What is asked for, and the refusal, of which a part is a pattern.
REFUSALS: dict[str, tuple[dict[str, str], str]] = {
    "two targets": (
        {"target_lsn": "{early_lsn}", "target_name": "early"},
        r"one recovery target is possible, found target_lsn .* and target_name .* \(leave one of them\)",
    ),
    "a time in the future": (
        {"target_time": "2126-01-01T00:00:00Z"},
        (
            r"target time 2126-01-01 00:00:00\+00:00 is in the future \(the latest reachable moment is .*; leave the "
            r"target out to recover to the end of the WAL held\)"
        ),
    ),
    "a time before the end of the backup": (
        {"target_time": "{before_time}"},
        (
            r"target time .* is before the end of backup .*-F, which became consistent at .* \(the earliest reachable "
            r"moment is .*\)"
        ),
    ),
    "an LSN before the end of the backup": (
        {"target_lsn": "{before_lsn}"},
        r"target LSN .* is before the end of backup .*-F at .* \(the earliest reachable LSN is .*\)",
    ),
    "an LSN that is not held": ({"target_lsn": "FF/10"}, r"target LSN FF/00000010 is beyond the WAL held, .*\(.*\)"),
    "a transaction that is not held": (
        {"target_xid": "1000000"},
        (
            r"transaction 1000000 does not end in the WAL held, from .* to .* \(the last commit held is that of "
            r"transaction \d+ at .*\)"
        ),
    ),
    "a restore point that is not held": (
        {"target_name": "late"},
        (
            r'restore point "late" is not in the WAL held, from .* to .* \(restore points that can be reached: "early" '
            r'at .*, "last good" at .*, "end" at .*\)'
        ),
    ),
    "a timeline that nobody knows": (
        {"target_timeline": "7"},
        r"timeline 7 is not known: expected one of 1",
    ),
    "programs of another major": (
        {"bin_dir": "{other_bin_dir}", "start_postgresql_after_restore": "yes"},
        r"no server programs of PostgreSQL 18: found 15\..* \(install PostgreSQL 18 .*\)",
    ),
    "a server that runs there": (
        {"pgdata_dir": "{data}"},
        r"a server runs in .*data: process \d+ \(.*\)",
    ),
}


def ask(story: Story, options: dict[str, str]) -> Attempt:
    """Restore into a directory of its own, unless *options* say another."""
    place = {"pgdata_dir": str(story.door.directory / f"copy{next(_NUMBERS)}")}
    return story.door.restore(place | {name: value.format(**story.facts) for name, value in options.items()})


@pytest.mark.parametrize("name", MOMENTS)
def test_moment(story: Story, name: str) -> None:
    """All six phases run, and the server that is open then has the rows of that moment."""
    options, expected = MOMENTS[name]
    attempt = ask(story, options | {"start_postgresql_after_restore": "yes", "port": str(free_port())}).must()
    assert attempt.phases == PHASES
    mark = getattr(story, expected.removeprefix("-"))
    if expected.startswith("-"):
        attempt.restored.assert_is_before(mark)
    else:
        attempt.restored.assert_is_at(mark)
    attempt.restored.stop()


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(story: Story, name: str) -> None:
    """It is refused with what would work, nothing is started, and no other directory is left ready to start."""
    options, expected = REFUSALS[name]
    attempt = ask(story, options)
    assert not attempt.is_ok
    assert re.fullmatch(expected, attempt.refusal), attempt.refusal
    if "pgdata_dir" not in options:
        assert attempt.restored.postmaster() == []
        assert not (attempt.restored.data_directory / "recovery.signal").exists()
    assert story.door.cluster.value("SELECT count(*) FROM ledger_mark") == 4


def test_wal_that_is_lost(story: Story) -> None:
    """Without the WAL of one backup its end is out of reach, and what lies before the hole is not."""
    with story.door.without_middle_of_wal():
        attempt = ask(story, {})
        assert not attempt.is_ok
        assert attempt.refusal.startswith("WAL is missing from "), attempt.refusal
        behind = ask(story, {"target_time": story.end.time.isoformat()})
        assert re.match("target time .* is beyond the WAL held without a hole, ", behind.refusal), behind.refusal
        options = {"target_lsn": story.early.lsn, "start_postgresql_after_restore": "yes", "port": str(free_port())}
        before = ask(story, options).must()
    before.restored.assert_is_at(story.early)
    before.restored.stop()


def test_dry_run(story: Story) -> None:
    """The plan is said, with its target, and nothing is made."""
    attempt = ask(story, {"target_time": "{last_good_time}", "dry_run_restore": "yes"}).must()
    said = "\n".join([*attempt.lines, attempt.restored.outcome.stdout])
    assert f"recovery target: time {story.last_good.time:%Y-%m-%d}" in said
    assert not attempt.restored.data_directory.exists()


@pytest.mark.parametrize("action", ["pause", "shutdown"])
def test_what_comes_at_the_target(story: Story, action: str) -> None:
    """The server waits at the target, or is shut down there."""
    options = {"target_lsn": "{early_lsn}", "recovery_target_action": action, "port": str(free_port())}
    attempt = ask(story, options | {"start_postgresql_after_restore": "yes"}).must()
    assert attempt.phases == PHASES
    if action == "shutdown":
        assert attempt.restored.postmaster() == []
    else:
        attempt.restored.assert_is_at(story.early)
        assert attempt.restored.value("SELECT pg_is_in_recovery()")
        attempt.restored.stop()


def test_proofs_of_phase_6(story: Story) -> None:
    """The pages are read and the operator's SQL is run before anybody gets in, and its result is in the log."""
    questions = story.door.directory / "questions.sql"
    questions.write_text("SELECT count(*) AS precious_rows FROM precious;\n")
    questions.chmod(0o644)
    options = {
        "target_time": "{last_good_time}",
        "start_postgresql_after_restore": "yes",
        "verify_checksum_after": "yes",
        "post_restore_sql": str(questions),
        "port": str(free_port()),
    }
    attempt = ask(story, options).must()
    assert attempt.phases == PHASES
    said = "\n".join(attempt.lines)
    assert "precious_rows" in said, said
    assert "checksums" in said, said
    attempt.restored.assert_is_at(story.last_good)
    attempt.restored.stop()


def test_a_proof_that_fails(story: Story) -> None:
    """An error in the operator's SQL fails the restore, and the server stays down."""
    questions = story.door.directory / "wrong.sql"
    questions.write_text("SELECT count(*) FROM never_made;\n")
    questions.chmod(0o644)
    options = {"start_postgresql_after_restore": "yes", "post_restore_sql": str(questions), "port": str(free_port())}
    attempt = ask(story, options)
    assert not attempt.is_ok
    assert "never_made" in attempt.refusal, attempt.refusal
    assert attempt.restored.postmaster() == []


def test_finish_does_the_rest(story: Story) -> None:
    """A restore that started nothing is finished by the shell, whichever door it came through."""
    door = story.door
    options = {"pgdata_dir": f"{door.directory}/finished", "target_lsn": story.early.lsn, "port": str(free_port())}
    attempt = door.restore(options).must()
    assert attempt.phases == PHASES[:3]
    assert attempt.restored.postmaster() == []
    finished = door.after("finish", attempt)
    assert finished.status == 0, finished.lines
    assert [line.partition(":")[0] for line in finished.lines if line.startswith("RESTORE PHASE ")] == PHASES[3:]
    attempt.restored.assert_is_at(story.early)


def test_the_same_restore_again(story: Story) -> None:
    """The same restore goes on where the first run stopped; another one into the same place is refused."""
    door, mark = story.door, story.early
    options = {"pgdata_dir": f"{door.directory}/again", "target_lsn": mark.lsn, "port": str(free_port())}
    assert door.restore(options).must().phases == PHASES[:3]
    other = door.restore(options | {"target_lsn": "0/FF000000", "overwrite_existing": "yes"})
    assert not other.is_ok
    other = door.restore({**options, "target_inclusive": "no", "overwrite_existing": "yes"})
    assert not other.is_ok
    assert (
        "stopped behind phase 3 (recovery-config), and it was another one: inclusive True, now False" in other.refusal
    )
    again = door.restore(options | {"start_postgresql_after_restore": "yes"}).must()
    assert again.phases[-3:] == PHASES[3:]
    assert PHASES[1] not in again.phases
    again.restored.assert_is_at(mark)
