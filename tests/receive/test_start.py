"""Where a receiver goes on, and what it refuses to mix."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.errors import ArchiveError, PgkeepError, ServerError
from pgkeep.jobs.receiving.start import Held, Resume, check_not_behind, resume_after
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.pg.timeline import TimelineFork, TimelineHistory
from pgkeep.pg.wal import WalSegment
from pgkeep.spool.segment_file import SegmentFile

SIZE = 1 << 20


def history(timeline: int, *forks: tuple[int, int]) -> TimelineHistory:
    """Return the history of *timeline* that left each timeline of *forks* at that LSN."""
    return TimelineHistory(Timeline(timeline), tuple(TimelineFork(Timeline(t), Lsn(lsn)) for t, lsn in forks))


def held(timeline: int, end: int) -> Held:
    """Return that *timeline* is held up to *end*."""
    return Held(WalPosition(Timeline(timeline), Lsn(end)), Lsn(end - end % 100), "spool")


def at(timeline: int, lsn: int) -> WalPosition:
    """Return a position."""
    return WalPosition(Timeline(timeline), Lsn(lsn))


@pytest.mark.parametrize(
    ("what", "ours", "server", "expected"),
    [
        (held(1, 550), history(1), history(1), Resume(at(1, 500))),
        (held(1, 550), history(1), history(2, (1, 550)), Resume(at(1, 500))),
        (held(1, 550), history(1), history(2, (1, 700)), Resume(at(1, 500))),
        (held(1, 550), history(1), history(3, (1, 700), (2, 900)), Resume(at(1, 500))),
        (held(1, 550), history(1), history(2, (1, 540)), Resume(at(2, 540), branch=at(1, 550))),
        (held(1, 550), history(1), history(3, (1, 300), (2, 400)), Resume(at(2, 300), branch=at(1, 550))),
        (held(2, 850), history(2, (1, 700)), history(3, (1, 700), (2, 850)), Resume(at(2, 800))),
        (held(2, 850), history(2, (1, 700)), history(3, (1, 700)), Resume(at(3, 700), branch=at(2, 850))),
        (held(2, 850), history(2, (1, 700)), history(3, (1, 650)), Resume(at(3, 650), branch=at(2, 850))),
        (held(2, 850), history(2, (1, 700)), history(3, (1, 760)), Resume(at(1, 700), branch=at(2, 850))),
    ],
)
def test_where_to_go_on(what: Held, ours: TimelineHistory, server: TimelineHistory, expected: Resume) -> None:
    """Up to where two histories part their WAL is one; from there on it is the server's that is received."""
    assert resume_after(what, ours, server) == expected


@pytest.mark.parametrize(
    ("ours", "server", "message"),
    [
        (history(2, (1, 700)), history(1), "the server is on timeline 1, but timeline 2 was received already"),
        (
            history(2),
            history(3),
            "the server's timeline 3 has nothing in common with timeline 2, which was received before",
        ),
    ],
)
def test_what_is_not_mixed(ours: TimelineHistory, server: TimelineHistory, message: str) -> None:
    """An old primary, and a history of another origin, are refused."""
    with pytest.raises(ArchiveError) as error:
        resume_after(held(2, 850), ours, server)
    assert error.value.message == message


@pytest.mark.parametrize(("is_standby", "kind"), [(False, ArchiveError), (True, ServerError)])
def test_a_server_that_is_behind(*, is_standby: bool, kind: type[PgkeepError]) -> None:
    """A primary with less WAL than was received has lost it; a standby may yet get there."""
    check_not_behind(held(1, 850), history(1), Lsn(850), is_standby=is_standby)
    check_not_behind(held(1, 850), history(2, (1, 700)), Lsn(700), is_standby=is_standby)
    with pytest.raises(kind) as error:
        check_not_behind(held(1, 850), history(1), Lsn(800), is_standby=is_standby)
    assert type(error.value) is kind
    assert error.value.message.startswith(
        "the server's WAL ends at 0/00000320 on timeline 1, but was received up to 0/00000352"
    )


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a directory."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_segment_is_received_again_over_what_is_there(directory: int, tmp_path: Path) -> None:
    """The same bytes over those that are there, with what a power loss took; then the rest, and its name."""
    segment = WalSegment(Timeline(1), 3, SIZE)
    content = bytes(range(1, 129)) * (SIZE // 128)
    with SegmentFile(directory, segment) as file:
        file.write(memoryview(content[:300_000]))
        assert file.flush()
        assert (file.written, file.durable) == (300_000, 300_000)
    path = tmp_path / f"{segment.name}.partial"
    with path.open("r+b") as torn:
        torn.seek(8192)
        torn.write(bytes(8192))
    with SegmentFile(directory, segment) as file:
        assert (file.written, file.known) == (0, 300_000)
        file.write(memoryview(content[:200_000]))
        file.write(memoryview(content[200_000:]))
        file.complete()
    assert (tmp_path / segment.name).read_bytes() == content
    assert not path.exists()


def test_other_bytes_are_refused(directory: int, tmp_path: Path) -> None:
    """WAL that differs from what was received is not written, and the place is said."""
    segment = WalSegment(Timeline(1), 3, SIZE)
    with SegmentFile(directory, segment) as file:
        file.write(memoryview(b"x" * 10_000))
    before = (tmp_path / f"{segment.name}.partial").read_bytes()
    with SegmentFile(directory, segment) as file, pytest.raises(ArchiveError) as error:
        file.write(memoryview(b"x" * 5_000 + b"y" + b"x" * 9_000))
    assert error.value.message == "the server sends other WAL at 0/00301388 on timeline 1 than was received before"
    assert (tmp_path / f"{segment.name}.partial").read_bytes() == before
