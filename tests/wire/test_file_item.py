"""The lines that announce a file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import WireError
from pgkeep.wire.file_item import FileKind, FileStatus, encode_file, parse_stat, parse_times


def test_announcement_has_the_captured_form() -> None:
    """A directory is announced as captured from the bridge that defined the protocol."""
    status = FileStatus(
        kind=FileKind.DIRECTORY, file_mode=0o755, atime=1_700_000_000, mtime=1_700_000_000, ctime=1_700_000_000
    )
    assert encode_file("/@kubernetes/d/", status) == (
        b"C000022\nFNAME:/@kubernetes/d/\n"
        b"C000022\nSTAT:D 0 0 0 040755 1\n"
        b"C000040\nTSTAMP:1700000000 1700000000 1700000000\n"
        b"F000000\n"
    )


def test_symbolic_link_names_its_target() -> None:
    """A link's target has a line of its own, and its mode says that it is a link."""
    packets = encode_file("/a", FileStatus(kind=FileKind.SYMLINK, link="b", file_mode=0o777))
    assert b"STAT:S 0 0 0 120777 1\n" in packets
    assert b"C000008\nLSTAT:b\n" in packets


numbers = st.integers(0, 4_294_967_295)
sizes = st.integers(-1, (1 << 63) - 1)
times = st.integers(-(1 << 62), 1 << 62)


@given(st.sampled_from(sorted(FileKind)), sizes, numbers, numbers, st.integers(0, 0o7777))
def test_stat_round_trip(kind: FileKind, size: int, uid: int, gid: int, file_mode: int) -> None:
    """What STAT says is read as it was written."""
    status = FileStatus(kind=kind, size=size, uid=uid, gid=gid, file_mode=file_mode)
    assert parse_stat(status.stat_text) == status


@given(times, times, times)
def test_times_round_trip(atime: int, mtime: int, ctime: int) -> None:
    """What TSTAMP says is read as it was written."""
    assert parse_times(FileStatus(atime=atime, mtime=mtime, ctime=ctime).time_text) == (atime, mtime, ctime)


def test_restores_stat_has_a_link_index() -> None:
    """At a restore STAT has one number more, which is passed over."""
    assert parse_stat("STAT:F 10 1 2 100640 1 0") == FileStatus(size=10, uid=1, gid=2, file_mode=0o640)


@pytest.mark.parametrize(
    "text",
    ["STAT:", "STAT:F", "STAT:Q 1 0 0 100600 1", "STAT:F x 0 0 100600 1", "STAT:F 1 0 0 100689 1", "FSTAT:F 1 0 0 1 1",
     "STAT:F 1 -1 0 100600 1", "STAT:F 1 0 0 100600", "STAT:F 1  0 0 100600 1"],
)  # fmt: skip
def test_damaged_stat_is_refused(text: str) -> None:
    """A line that is no STAT is refused with what was found."""
    with pytest.raises(WireError) as caught:
        parse_stat(text)
    assert caught.value.message == f'expected "STAT:<type> <size> <uid> <gid> <mode> <links>", found "{text}"'


@pytest.mark.parametrize("text", ["TSTAMP:", "TSTAMP:1 2", "TSTAMP:1 2 3 4", "TSTAMP:a b c", "STAMP:1 2 3"])
def test_damaged_times_are_refused(text: str) -> None:
    """A line that is no TSTAMP is refused with what was found."""
    with pytest.raises(WireError) as caught:
        parse_times(text)
    assert caught.value.message == f'expected "TSTAMP:<atime> <mtime> <ctime>", found "{text}"'
