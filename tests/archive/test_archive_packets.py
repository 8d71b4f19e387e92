"""What client and service say to each other, and the restore plan: round trips, and any bytes at all."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.wire.archive_packets import (
    REQUEST_HEAD_BYTES,
    Answer,
    Operation,
    Request,
    Result,
    parse_answer,
    parse_request,
    text_length,
)
from tests.archive.made_wal import MIB, SYSTEM, segment_at

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=60)


@given(operation=st.sampled_from(Operation), directory=TEXT, name=TEXT, path=TEXT)
def test_request_is_what_was_rendered(operation: Operation, directory: str, name: str, path: str) -> None:
    """A request survives its form as bytes."""
    request = Request(operation, f"/{directory}", name, path)
    data = request.render()
    assert parse_request(data[:REQUEST_HEAD_BYTES], data[REQUEST_HEAD_BYTES:]) == request


@given(result=st.sampled_from(Result), status=st.integers(0, 255), message=TEXT, dots=st.integers(0, 5))
def test_answer_is_what_was_rendered(result: Result, status: int, message: str, dots: int) -> None:
    """An answer survives its form as bytes, whatever number of dots comes before it."""
    answer = Answer(result, status, message)
    assert parse_answer(b"." * dots + answer.render()) == answer


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_any_bytes_are_a_packet_or_an_error(head: bytes, text: bytes) -> None:
    """No bytes make the service or a reader of answers fail otherwise than by FormatError."""
    with contextlib.suppress(FormatError):
        parse_request(head, text)
    with contextlib.suppress(FormatError):
        parse_request(Request(Operation.GET, "/", "n", "p").render()[:REQUEST_HEAD_BYTES], text)
    with contextlib.suppress(FormatError):
        parse_answer(head + text)


WRONG_REQUESTS = [
    ("cut short", lambda d: d[:5], "request ends after 5 of 12 bytes"),
    ("other magic", lambda d: b"PGKX" + d[4:], "not a request of pgkeep-wal"),
    ("later protocol", lambda d: d[:4] + b"\2" + d[5:], "request of protocol 2, expected 1"),
    ("unknown operation", lambda d: d[:5] + b"\7" + d[6:], "request with the unknown operation 7"),
    ("too long", lambda d: d[:8] + b"\1\x40\0\0", "request of 16385 bytes, expected at most 16384"),
]


@pytest.mark.parametrize(("hurt", "message"), [row[1:] for row in WRONG_REQUESTS], ids=[r[0] for r in WRONG_REQUESTS])
def test_wrong_request_is_named(hurt: object, message: str) -> None:
    """Each way in which a request is not one has its message."""
    head = Request(Operation.PUSH, "/", "n", "p").render()[:REQUEST_HEAD_BYTES]
    assert text_length(head) == 6
    with pytest.raises(FormatError) as caught:
        text_length(hurt(head))  # type: ignore[operator]
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"/\0n\0", "request with 2 fields, expected 3"),
        (b"/\0n\0p\0q\0", "request with 4 fields, expected 3"),
        (b".\0n\0p\0", "request without an absolute working directory, a name and a path"),
        (b"/\0\0pp\0", "request without an absolute working directory, a name and a path"),
    ],
)
def test_wrong_fields_are_named(text: bytes, message: str) -> None:
    """A request has three fields, and the working directory is absolute."""
    head = Request(Operation.GET, "/", "n", "p").render()[:8] + len(text).to_bytes(4, "little")
    with pytest.raises(FormatError) as caught:
        parse_request(head, text)
    assert caught.value.message == message


@given(
    runs=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 50), st.integers(1, 9)), max_size=4),
    partials=st.lists(st.integers(0, 5000), max_size=2),
    histories=st.lists(st.integers(2, 9), max_size=3),
)
def test_plan_is_what_was_rendered(runs: list[tuple[int, int, int]], partials: list[int], histories: list[int]) -> None:
    """A restore plan survives its form as text, and needs exactly what is in it."""
    plan = WalPlan(
        SystemIdentifier(SYSTEM),
        MIB,
        tuple((segment_at(n, timeline=t).name, segment_at(n + more, timeline=t).name) for n, more, t in runs),
        tuple(f"{timeline:08X}.history" for timeline in histories),
        tuple(segment_at(number).name for number in partials),
    )
    assert WalPlan.parse(plan.render()) == plan
    for number, more, timeline in runs:
        for inside in (number, number + more):
            assert plan.needs(segment_at(inside, timeline=timeline).name)
    assert not plan.needs(segment_at(6000).name)
    assert not plan.needs("0000000A.history")


@given(st.text(max_size=80))
def test_any_text_is_a_plan_or_an_error(text: str) -> None:
    """No text makes the plan's reader fail otherwise than by FormatError."""
    with contextlib.suppress(FormatError):
        WalPlan.parse(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"format": 1', '"format": 2'), "WAL plan has format 2, expected 1"),
        (("00000002.history", "2.history"), 'WAL plan has the unexpected name "2.history"'),
        (
            (segment_at(3).name, segment_at(9).name),
            f"not a run of WAL segments: {segment_at(9).name} to {segment_at(6).name}",
        ),
    ],
)
def test_wrong_plan_is_named(change: tuple[str, str], message: str) -> None:
    """Each way in which a plan is wrong has its message."""
    plan = WalPlan(SYSTEM, MIB, ((segment_at(3).name, segment_at(6).name),), ("00000002.history",))
    with pytest.raises(FormatError) as caught:
        WalPlan.parse(plan.render().replace(*change))
    assert caught.value.message == message


def test_missing_plan_is_an_error(tmp_path: Path) -> None:
    """A plan that was named and is not there is not the same as no plan."""
    with pytest.raises(FormatError) as caught:
        WalPlan.read(tmp_path / "plan")
    assert caught.value.message == f"cannot read the WAL plan {tmp_path / 'plan'}: No such file or directory"
