"""Retention: the rules that no policy overrides, as properties, and the decisions one by one."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import UsageError
from pgkeep.pg.lsn import Lsn
from pgkeep.streams.record import DamagedPages, Level, RecordHead, WalRange, new_backup_id
from pgkeep.vault.retention import RetentionPlan, RetentionPolicy, needs_of, plan_retention

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
MIB = 1 << 20


def made(
    day: float,
    level: Level,
    earlier: list[RecordHead],
    *,
    damaged: bool = False,
    wal_only: bool = True,
    mode: str = "pitr",
) -> RecordHead:
    """Return the head of a backup made on *day*, building on the *earlier* ones as pitr or pitr_block does."""
    begin = START + day * DAY
    backup_id = new_backup_id(begin, level)
    fulls = [head for head in earlier if head.level is Level.FULL]
    with_files = [head for head in earlier if head.has_files]
    if not fulls:
        backup_id, level = new_backup_id(begin, Level.FULL), Level.FULL
    base = ""
    files_from = backup_id
    references: list[str] = []
    if mode == "pitr_block" and level is not Level.FULL:
        # Each is restored from itself and all those that lead to its Full, and refers to no content of theirs.
        base = (fulls if level is Level.DIFFERENTIAL else earlier)[-1].backup_id
    elif level is Level.DIFFERENTIAL:
        base = fulls[-1].backup_id
        references = [base]
    elif level is Level.INCREMENTAL:
        base = earlier[-1].backup_id
        if wal_only:
            files_from = with_files[-1].backup_id
        else:
            references = sorted({with_files[-1].backup_id, *with_files[-1].references})
    start, stop = Lsn(int((day + 1) * 100) * MIB), Lsn(int((day + 1) * 100 + 10) * MIB)
    return RecordHead(
        backup_id=backup_id,
        cluster="main",
        mode=mode,
        level=level,
        base=base,
        files_from=files_from,
        references=references,
        start_lsn=str(start) if files_from == backup_id else "",
        stop_lsn=str(stop),
        stop_time=(begin + dt.timedelta(minutes=10)).isoformat(),
        wal=WalRange(timeline=1, start=str(start), stop=str(stop), segment_size=MIB),
        damaged=[DamagedPages(path="p", blocks=[1], count=1)] if damaged else [],
    )


@st.composite
def histories(draw: st.DrawFn) -> list[RecordHead]:
    """Draw a history of backups, oldest first."""
    heads: list[RecordHead] = []
    mode = draw(st.sampled_from(["pitr", "pitr_block"]))
    day = 0.0
    for _ in range(draw(st.integers(0, 14))):
        day += draw(st.sampled_from([0.25, 1.0, 3.0]))
        level = draw(st.sampled_from([Level.FULL, Level.DIFFERENTIAL, Level.INCREMENTAL, Level.INCREMENTAL]))
        damaged = draw(st.integers(0, 5)) == 0
        heads.append(made(day, level, heads, damaged=damaged, wal_only=draw(st.booleans()), mode=mode))
    return heads


POLICIES = st.builds(
    RetentionPolicy,
    count=st.none() | st.integers(1, 4),
    window=st.none() | st.integers(0, 20).map(lambda days: days * DAY),
)
NOW = START + 30 * DAY


def is_clean(head: RecordHead, by_id: dict[str, RecordHead]) -> bool:
    """Tell whether neither the backup nor anything that it needs is damaged."""
    return not head.is_damaged and all(is_clean(by_id[needed], by_id) for needed in needs_of(head))


@given(heads=histories(), policy=POLICIES, now=st.integers(0, 40), pins=st.sets(st.integers(0, 13), max_size=3))
def test_the_rules_hold_for_every_history(
    heads: list[RecordHead], policy: RetentionPolicy, now: int, pins: set[int]
) -> None:
    """What is kept can be restored: its needs are kept, its WAL is, and a clean backup is among it."""
    pinned = frozenset(head.backup_id for number, head in enumerate(heads) if number in pins)
    plan = plan_retention(heads, policy, now=START + now * DAY, pinned=pinned)
    by_id = {head.backup_id: head for head in heads}
    kept = set(plan.kept)
    assert kept | set(plan.deleted) == set(by_id)
    assert pinned <= kept
    for backup_id in kept:
        assert needs_of(by_id[backup_id]) <= kept
        head = by_id[backup_id]
        if head.has_files:
            assert plan.keeps_wal(Lsn.parse(head.start_lsn), Lsn.parse(head.stop_lsn))
    clean_fulls = [head for head in heads if head.level is Level.FULL and is_clean(head, by_id)]
    if policy.count is not None:
        assert {head.backup_id for head in clean_fulls[-policy.count :]} <= kept
    if any(is_clean(head, by_id) for head in heads if head.has_files):
        assert any(is_clean(by_id[backup_id], by_id) for backup_id in kept if by_id[backup_id].has_files)
    # A backup goes before those that it needs, so that a killed expire leaves no dangling reference.
    order = {backup_id: number for number, backup_id in enumerate(plan.deleted)}
    for backup_id, number in order.items():
        assert all(order[needed] > number for needed in needs_of(by_id[backup_id]) if needed in order)


@given(heads=histories(), policy=POLICIES)
def test_wal_is_continuous_from_every_base_that_a_policy_keeps(
    heads: list[RecordHead], policy: RetentionPolicy
) -> None:
    """Without pins, no segment at or after the start of a kept base backup goes."""
    plan = plan_retention(heads, policy, now=NOW)
    starts = [Lsn.parse(h.start_lsn) for h in heads if h.backup_id in plan.kept and h.has_files]
    for start in starts:
        for later in range(start, start + 2000 * MIB, 100 * MIB):
            assert plan.keeps_wal(Lsn(later), Lsn(later + MIB))


@given(heads=histories(), days=st.integers(0, 25))
def test_every_moment_of_the_window_stays_in_reach(heads: list[RecordHead], days: int) -> None:
    """If a clean backup could reach a moment in the window before, one can afterwards."""
    plan = plan_retention(heads, RetentionPolicy(window=days * DAY), now=NOW)
    by_id = {head.backup_id: head for head in heads}
    clean = [head for head in heads if head.has_files and is_clean(head, by_id)]
    for hours in range(0, days * 24, 12):
        moment = NOW - dt.timedelta(hours=hours)
        before = [h for h in clean if dt.datetime.fromisoformat(h.stop_time) <= moment]
        assert not before or any(head.backup_id in plan.kept for head in before)


@given(heads=histories(), policy=POLICIES, later=st.integers(0, 20))
def test_what_is_deleted_does_not_come_back(heads: list[RecordHead], policy: RetentionPolicy, later: int) -> None:
    """Expiring what is left after expiring, at the same moment, deletes nothing more."""
    now = START + later * DAY
    plan = plan_retention(heads, policy, now=now)
    again = plan_retention([head for head in heads if head.backup_id in plan.kept], policy, now=now)
    assert again.deleted == []


def a_month() -> list[RecordHead]:
    """Return four weeks: a Full each week, a Differential in its middle, Incrementals on the other days."""
    heads: list[RecordHead] = []
    for day in range(28):
        level = Level.FULL if day % 7 == 0 else Level.DIFFERENTIAL if day % 7 == 3 else Level.INCREMENTAL
        heads.append(made(day, level, heads))
    return heads


def days_kept(plan: RetentionPlan) -> list[int]:
    """Return the days of January 2026, counted from 0, whose backups are kept."""
    return [int(backup_id[6:8]) - 1 for backup_id in plan.kept]


def test_count_keeps_the_newest_fulls_and_all_that_follows() -> None:
    """Two Fulls keep two weeks."""
    plan = plan_retention(a_month(), RetentionPolicy(count=2), now=NOW)
    assert days_kept(plan) == list(range(14, 28))
    assert plan.verdicts[0].reason == "older than the newest 2 clean Fulls"
    assert plan.verdicts[14].reason == "within the newest 2 clean Fulls"


def test_a_window_begins_at_a_backup_before_it() -> None:
    """Ten days back is day 18 at noon: the Differential of day 17 reaches it, and needs the Full of day 14."""
    now = START + 28.5 * DAY
    plan = plan_retention(a_month(), RetentionPolicy(window=10 * DAY), now=now)
    assert days_kept(plan) == [14, *range(17, 28)]
    assert plan.verdicts[14].reason == "needed by 20260118T000000Z-D"
    assert plan.verdicts[13].reason == "older than the window of 10d"
    assert plan.wal is not None
    assert plan.wal[0].start == Lsn(15 * 100 * MIB)


def a_month_of_blocks() -> list[RecordHead]:
    """Return the same four weeks in mode pitr_block."""
    heads: list[RecordHead] = []
    for day in range(28):
        level = Level.FULL if day % 7 == 0 else Level.DIFFERENTIAL if day % 7 == 3 else Level.INCREMENTAL
        heads.append(made(day, level, heads, mode="pitr_block"))
    return heads


def test_a_chain_of_blocks_stays_whole() -> None:
    """A window from day 19 keeps its Incrementals, the Differential under them and the Full, and not what is beside."""
    plan = plan_retention(a_month_of_blocks(), RetentionPolicy(window=9 * DAY), now=START + 28.5 * DAY)
    assert days_kept(plan) == [14, 17, 18, *range(19, 28)]
    reasons = {verdict.backup_id[6:8]: verdict.reason for verdict in plan.verdicts}
    assert reasons["18"] == "needed by 20260119T000000Z-I"
    assert reasons["15"] == "needed by 20260118T000000Z-D"
    assert reasons["16"] == "older than the window of 9d"
    # Expired from the end: what a killed expire leaves is never a chain without its beginning.
    assert plan.deleted == sorted(plan.deleted, reverse=True)


def test_a_pinned_incremental_keeps_its_chain() -> None:
    """Pinning the last member of a chain pins what it is made of."""
    heads = a_month_of_blocks()
    plan = plan_retention(heads, RetentionPolicy(count=1), now=NOW, pinned=frozenset({heads[5].backup_id}))
    assert days_kept(plan) == [0, 3, 4, 5, *range(21, 28)]


def test_a_merged_full_counts_as_one_of_its_time() -> None:
    """What it was merged from goes as soon as it is enough; a window begins at it as at any Full."""
    heads = a_month_of_blocks()[:4]
    newest = heads[-1]
    merged_id = new_backup_id(START, Level.FULL, newest=newest.backup_id)
    merged = msgspec.structs.replace(newest, backup_id=merged_id, level=Level.FULL, base="", files_from=merged_id)
    heads.append(merged)
    heads.append(made(40, Level.INCREMENTAL, heads, mode="pitr_block"))
    assert heads[-1].base == merged_id
    now = START + 41 * DAY
    of_both = [merged_id, heads[-1].backup_id]
    assert plan_retention(heads, RetentionPolicy(count=1), now=now).kept == of_both
    assert plan_retention(heads, RetentionPolicy(window=20 * DAY), now=now).kept == of_both
    assert plan_retention(heads, RetentionPolicy(count=2), now=now).deleted == []


def test_damaged_backups_do_not_count() -> None:
    """When the newest two Fulls are damaged, one Full to keep is the clean one before them."""
    heads: list[RecordHead] = []
    for day, damaged in enumerate([False, False, True, True]):
        heads.append(made(day, Level.FULL, heads, damaged=damaged))
    assert days_kept(plan_retention(heads, RetentionPolicy(count=1), now=NOW)) == [1, 2, 3]
    assert days_kept(plan_retention(heads, RetentionPolicy(count=3), now=NOW)) == [0, 1, 2, 3]


def test_backups_without_all_tablespaces_do_not_count() -> None:
    """What does not bring the whole cluster back is never the reason to delete what does."""
    heads: list[RecordHead] = []
    for day in range(3):
        heads.append(made(day, Level.FULL, heads))
    heads[2].details["left_out"] = [16390]
    by_count = plan_retention(heads, RetentionPolicy(count=1), now=NOW)
    assert days_kept(by_count) == [1, 2]
    assert [verdict.reason for verdict in by_count.verdicts] == [
        "older than the newest clean Full",
        "within the newest clean Full",
        "within the newest clean Full",
    ]
    assert days_kept(plan_retention(heads, RetentionPolicy(window=DAY), now=NOW)) == [1, 2]
    whole = made(4, Level.DIFFERENTIAL, heads)
    assert days_kept(plan_retention([*heads, whole], RetentionPolicy(window=DAY), now=NOW)) == [2, 4]


def test_a_mode_without_any_clean_backup_is_told_of() -> None:
    """Where nothing can expire, the plan says why in one line; it says nothing where something can."""
    heads: list[RecordHead] = []
    for day in range(3):
        heads.append(made(day, Level.FULL, heads))
        heads[-1].details["left_out"] = [16390]
    heads.append(made(3, Level.INCREMENTAL, heads))
    only_partial = (
        "no pitr backup expires, since none of them is clean: 4 without all tablespaces (exclude_tablespace); "
        "a clean Full is what the retention counts"
    )
    for policy in (RetentionPolicy(count=1), RetentionPolicy(window=DAY)):
        plan = plan_retention(heads, policy, now=NOW)
        assert (plan.notes, plan.deleted) == ((only_partial,), [])
    assert plan_retention(heads, RetentionPolicy(), now=NOW).notes == ()
    heads.append(made(4, Level.FULL, heads, damaged=True))
    [note] = plan_retention(heads, RetentionPolicy(count=1), now=NOW).notes
    assert note == (
        "no pitr backup expires, since none of them is clean: 4 without all tablespaces (exclude_tablespace) and "
        "1 with damaged pages; a clean Full is what the retention counts"
    )
    heads.append(made(5, Level.FULL, heads))
    plan = plan_retention(heads, RetentionPolicy(count=1), now=NOW)
    assert (plan.notes, len(plan.deleted)) == ((), 5)


def test_a_differential_of_a_damaged_full_is_not_clean() -> None:
    """A window that only such a one would reach is not reached by it."""
    heads: list[RecordHead] = []
    heads.append(made(0, Level.FULL, heads))
    heads.append(made(5, Level.FULL, heads, damaged=True))
    heads.append(made(6, Level.DIFFERENTIAL, heads))
    plan = plan_retention(heads, RetentionPolicy(window=DAY), now=NOW)
    assert days_kept(plan) == [0, 5, 6]


def test_a_pinned_backup_keeps_its_own_wal_only() -> None:
    """A pinned Full of long ago does not hold all WAL since."""
    heads = a_month()
    plan = plan_retention(heads, RetentionPolicy(count=1), now=NOW, pinned=frozenset({heads[0].backup_id}))
    assert days_kept(plan) == [0, *range(21, 28)]
    assert plan.verdicts[0].reason == "pinned"
    assert plan.keeps_wal(Lsn(100 * MIB), Lsn(101 * MIB))
    assert not plan.keeps_wal(Lsn(110 * MIB), Lsn(111 * MIB))
    assert not plan.keeps_wal(Lsn(2199 * MIB), Lsn(2200 * MIB))
    assert plan.keeps_wal(Lsn(2200 * MIB), Lsn(2201 * MIB))


def test_an_unreadable_record_keeps_what_it_may_need() -> None:
    """Nobody knows what a damaged record refers to, so the Full before it and all WAL stay."""
    heads = a_month()
    lost = heads[3].backup_id
    readable = [head for head in heads if head.backup_id != lost]
    plan = plan_retention(readable, RetentionPolicy(count=1), now=NOW, unreadable=frozenset({lost}))
    assert days_kept(plan) == [0, 1, 2, 3, *range(21, 28)]
    assert plan.verdicts[0].reason == f"may be needed by {lost}, whose record cannot be read"
    assert plan.wal is None


def test_an_unreadable_record_keeps_its_chain_beside_other_modes() -> None:
    """A Full of another mode between is no beginning of the chain that the damaged record ended."""
    heads = a_month_of_blocks()
    dump_id = "20260102T120000Z-F"
    dump = RecordHead(backup_id=dump_id, cluster="main", mode="dump", level=Level.FULL, files_from=dump_id)
    lost = heads[2].backup_id
    readable = [head for head in [*heads, dump] if head.backup_id != lost]
    plan = plan_retention(readable, RetentionPolicy(count=1), now=NOW, unreadable=frozenset({lost}))
    assert {head.backup_id for head in heads[:3]} <= set(plan.kept)


def test_each_mode_is_counted_apart() -> None:
    """A Full of dump is no Full of pitr."""
    heads = a_month()
    dump = RecordHead(
        backup_id="20260105T120000Z-F", cluster="main", mode="dump", level=Level.FULL, files_from="20260105T120000Z-F"
    )
    plan = plan_retention([*heads, dump], RetentionPolicy(count=1), now=NOW)
    assert dump.backup_id in plan.kept
    assert days_kept(plan) == [4, *range(21, 28)]


def test_without_a_policy_nothing_goes() -> None:
    """No retention means keeping everything, and the report says so."""
    plan = plan_retention(a_month(), RetentionPolicy(), now=NOW)
    assert plan.deleted == []
    assert {verdict.reason for verdict in plan.verdicts} == {"no retention is set"}


@pytest.mark.parametrize(
    ("count", "window", "message"),
    [
        (0, None, "retention must keep at least 1 Full, found 0"),
        (None, -DAY, "a retention window cannot be negative, found -1 day, 0:00:00"),
    ],
)
def test_a_policy_that_keeps_nothing_is_refused(count: int | None, window: dt.timedelta | None, message: str) -> None:
    """Deleting everything is never what a retention means."""
    with pytest.raises(UsageError) as caught:
        RetentionPolicy(count, window)
    assert str(caught.value) == message
