from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, Timeline
from pgkeep.pg.timeline import TimelineFork, TimelineHistory

SIZE = 1 << 20

reasons = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs", "Cc", "Z"]))


@st.composite
def histories(draw: st.DrawFn, *, limit: int = 2**64 - 1) -> TimelineHistory:
    """Draw a history of one to six timelines."""
    numbers = sorted(draw(st.sets(st.integers(1, 2**32 - 1), min_size=1, max_size=6)))
    forks = sorted(draw(st.lists(st.integers(1, limit), min_size=len(numbers) - 1, max_size=len(numbers) - 1)))
    entries = [
        TimelineFork(Timeline(number), Lsn(fork), draw(reasons))
        for number, fork in zip(numbers[:-1], forks, strict=True)
    ]
    return TimelineHistory(Timeline(numbers[-1]), tuple(entries))


@given(histories())
def test_what_is_rendered_is_parsed_back(history: TimelineHistory) -> None:
    """A history survives its file, reasons included."""
    found = TimelineHistory.parse(history.render(), timeline=history.timeline)
    assert found == history
    assert [fork.reason for fork in found.entries] == [fork.reason for fork in history.entries]


def test_a_servers_file_is_read() -> None:
    """The form of the server's files is taken: comments, empty lines, blanks before the reason."""
    text = "# history\n1\t0/3000110\tno recovery target specified\n\n2\t0/50000A0\tbefore 2026-11-20 20:48:00+00\n"
    history = TimelineHistory.parse(text.encode(), timeline=Timeline(3))
    assert history.entries == (
        TimelineFork(Timeline(1), Lsn.parse("0/3000110")),
        TimelineFork(Timeline(2), Lsn.parse("0/50000A0")),
    )
    assert history.entries[1].reason == "before 2026-11-20 20:48:00+00"
    assert history.parents == (1, 2)
    assert history.timelines == (1, 2, 3)


@given(st.text() | st.binary())
def test_any_content_is_a_history_or_a_format_error(content: str | bytes) -> None:
    """No content makes the parser fail in another way."""
    with contextlib.suppress(FormatError):
        TimelineHistory.parse(content, timeline=Timeline(9))


GOOD = "1\t0/3000110\twhy\n2\t0/50000A0\twhy\n"
DAMAGE = [
    (
        "no LSN",
        "1\twhy\n",
        'line 1 of the history of timeline 3 is not a timeline switch: expected number, LSN and reason, found "1\twhy"',
    ),
    (
        "garbage in the second line",
        "1\t0/3000110\twhy\n\x00\n",
        'line 2 of the history of timeline 3 is not a timeline switch: expected number, LSN and reason, found "\x00"',
    ),
    (
        "lines swapped",
        "2\t0/50000A0\twhy\n1\t0/3000110\twhy\n",
        "history of timeline 3 is out of order: timeline 1 follows timeline 2",
    ),
    (
        "LSNs descend",
        "1\t0/50000A0\twhy\n2\t0/3000110\twhy\n",
        "history of timeline 3 is out of order: timeline 2 ends at 0/03000110, before it begins at 0/050000A0",
    ),
    (
        "another timeline's file",
        "1\t0/3000110\twhy\n3\t0/50000A0\twhy\n",
        "history of timeline 3 names the later timeline 3",
    ),
    ("timeline 0", "0\t0/3000110\twhy\n", "timeline out of range: 0"),
]


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_damaged_history_is_refused(text: str, message: str) -> None:
    """Each way to spoil a history file has its own message."""
    TimelineHistory.parse(GOOD, timeline=Timeline(3))
    with pytest.raises(FormatError) as caught:
        TimelineHistory.parse(text, timeline=Timeline(3))
    assert str(caught.value) == message


@given(histories(), st.integers(0, 2**64 - 1).map(Lsn))
def test_each_byte_has_one_timeline(history: TimelineHistory, lsn: Lsn) -> None:
    """The timeline at an LSN entered at or before it, is left after it, and contains it."""
    timeline = history.timeline_at(lsn)
    fork = history.fork_of(timeline)
    assert history.begin_of(timeline) <= lsn
    assert fork is None or lsn < fork
    assert history.contains(timeline, lsn)


def test_the_byte_at_a_switch_is_the_new_timelines() -> None:
    """WAL written up to the switch is on the history; the byte at the switch belongs to the new timeline."""
    history = TimelineHistory(Timeline(2), (TimelineFork(Timeline(1), Lsn(1000)),))
    assert history.contains(Timeline(1), Lsn(1000))
    assert not history.contains(Timeline(1), Lsn(1001))
    assert not history.contains(Timeline(3), Lsn(1))
    assert history.timeline_at(Lsn(999)) == 1
    assert history.timeline_at(Lsn(1000)) == 2
    assert history.fork_of(Timeline(1)) == 1000
    assert history.fork_of(Timeline(2)) is None


@given(histories(), st.data())
def test_a_history_descends_from_each_of_its_ancestors(history: TimelineHistory, data: st.DataObject) -> None:
    """The history as it was on any of its timelines is an ancestor; an ancestor does not descend."""
    cut = data.draw(st.integers(0, len(history.entries)))
    ancestor = TimelineHistory(history.timelines[cut], history.entries[:cut])
    assert history.descends_from(ancestor)
    assert ancestor.descends_from(history) == (cut == len(history.entries))


def test_a_sibling_is_no_descendant() -> None:
    """Two timelines that left the first one at different places do not descend from one another."""
    second = TimelineHistory(Timeline(2), (TimelineFork(Timeline(1), Lsn(1000)),))
    third = TimelineHistory(Timeline(3), (TimelineFork(Timeline(1), Lsn(2000)),))
    other_cluster = TimelineHistory(Timeline(3), (TimelineFork(Timeline(1), Lsn(7)), TimelineFork(Timeline(2), Lsn(9))))
    assert not third.descends_from(second)
    assert not second.descends_from(third)
    assert not other_cluster.descends_from(second)


@given(histories(limit=20 * SIZE), st.integers(0, 20 * SIZE), st.integers(0, 24 * SIZE))
def test_segments_follow_the_history(history: TimelineHistory, begin: int, stop: int) -> None:
    """The walk is gapless, and each segment bears the newest timeline that has a byte in it or before its end."""
    start = Lsn(begin)
    found = list(history.segments(start, start_timeline=history.timeline_at(start), end=Lsn(stop), size=SIZE))
    if stop <= begin:
        assert found == []
        return
    assert [segment.number for segment in found] == list(range(begin // SIZE, (stop - 1) // SIZE + 1))
    for segment in found:
        assert segment.timeline == history.timeline_at(Lsn(segment.end_lsn - 1))


@given(histories(limit=20 * SIZE), st.integers(0, 22))
def test_a_segments_names_are_those_whose_timelines_have_a_byte_in_it(history: TimelineHistory, number: int) -> None:
    """A segment in which the history switches has one name per timeline that has a byte in it, newest first."""
    found = list(history.segment_timelines(number, size=SIZE))
    first, last = number * SIZE, (number + 1) * SIZE - 1
    expected = [
        timeline
        for timeline in history.timelines
        if history.begin_of(timeline) <= last
        and ((fork := history.fork_of(timeline)) is None or (fork > first and fork > history.begin_of(timeline)))
    ]
    assert [timeline for timeline in found if timeline in expected] == expected[::-1]
    assert found[0] == history.timeline_at(Lsn(last))


def test_a_start_that_is_not_on_the_history_is_refused() -> None:
    """WAL that was written past the fork is another history's."""
    history = TimelineHistory(Timeline(2), (TimelineFork(Timeline(1), Lsn(1000)),))
    with pytest.raises(FormatError) as caught:
        list(history.segments(Lsn(2000), start_timeline=Timeline(1), end=Lsn(3000), size=SIZE))
    assert str(caught.value) == "0/000007D0 on timeline 1 is not in the history of timeline 2"


def test_a_single_timeline_has_no_parents() -> None:
    """Timeline 1 has no history file, and everything on it is on its history."""
    history = TimelineHistory.single(Timeline(1))
    assert history.parents == ()
    assert history.render() == ""
    assert history.contains(Timeline(1), Lsn(2**64 - 1))
    with pytest.raises(FormatError) as caught:
        history.begin_of(Timeline(2))
    assert str(caught.value) == "timeline 2 is not in the history of timeline 1"
