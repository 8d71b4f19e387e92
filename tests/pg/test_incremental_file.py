"""Incremental files: what is read is what was written, damage is named, runs cover every block once."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.incremental_file import (
    MAGIC,
    SEGMENT_BLOCKS,
    IncrementalHeader,
    incremental_path,
    is_incremental,
    parse_header,
    relation_path,
)

BLOCK = 8192

headers = st.builds(
    IncrementalHeader,
    st.integers(0, SEGMENT_BLOCKS),
    st.lists(st.integers(0, SEGMENT_BLOCKS - 1), max_size=200, unique=True).map(tuple),
)


@given(header=headers)
def test_what_is_rendered_is_parsed(header: IncrementalHeader) -> None:
    """Parsing a rendered header gives the same one."""
    assert parse_header(header.render(), size=header.file_bytes) == header
    assert len(header.render()) == header.header_bytes


@given(content=st.binary(max_size=64), size=st.integers(0, 1 << 30))
def test_any_bytes_are_a_header_or_a_format_error(content: bytes, size: int) -> None:
    """Arbitrary bytes behind the right magic never raise anything but FormatError."""
    for candidate in (content, struct.pack("<I", MAGIC) + content):
        try:
            header = parse_header(candidate, size=size)
        except FormatError:
            continue
        assert header.file_bytes == size


@given(header=headers, cuts=st.lists(st.integers(0, 210), max_size=4))
def test_runs_bring_each_block_to_its_place_however_the_file_is_cut(header: IncrementalHeader, cuts: list[int]) -> None:
    """The runs of consecutive pieces together name every block once, in order, at the place of its number."""
    bounds = sorted({0, header.file_bytes, *(min(header.file_bytes, header.header_bytes + c * BLOCK) for c in cuts)})
    placed = []
    for start, stop in itertools.pairwise(bounds):
        for run in header.runs(start, stop):
            assert start <= run.source_offset
            assert run.source_offset + run.length <= stop
            placed += [(run.source_offset + s, run.target_offset + s) for s in range(0, run.length, BLOCK)]
    assert placed == [
        (header.header_bytes + index * BLOCK, number * BLOCK) for index, number in enumerate(header.blocks)
    ]


@given(header=headers)
def test_the_result_ends_behind_the_last_block_of_either(header: IncrementalHeader) -> None:
    """The size of the result is that of pg_combinebackup's find_reconstructed_block_length."""
    length = header.truncation_blocks
    for number in header.blocks:
        if number >= length:
            length = number + 1
    assert header.result_bytes == length * BLOCK


def test_a_relation_cut_off_in_a_later_file_keeps_all_of_this_one() -> None:
    """Servers before 17.8 and 18.2 give a truncation length beyond the file's end; the whole file counts then."""
    content = struct.pack("<III", MAGIC, 0, SEGMENT_BLOCKS + 1)
    header = parse_header(content, size=len(content))
    assert (header.kept_bytes, header.result_bytes) == (1 << 30, 1 << 30)


WHOLE = IncrementalHeader(7, (1, 2, 9)).render() + bytes(3 * BLOCK)


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (WHOLE[:11], 11, "incremental file has 11 bytes, expected at least 12"),
        (b"\0" + WHOLE[1:], len(WHOLE), "incremental file begins with 0xd3ae1f00, expected 0xd3ae1f0d"),
        (
            struct.pack("<III", MAGIC, 131073, 0),
            12,
            "incremental file has 131073 blocks, expected at most 131072",
        ),
        (WHOLE[:20], 20, "incremental file ends within the numbers of its 3 blocks"),
        (
            struct.pack("<IIII", MAGIC, 1, 0, 131072).ljust(2 * BLOCK),
            2 * BLOCK,
            "incremental file has a block number 131072, expected less than 131072",
        ),
        (
            WHOLE,
            len(WHOLE) - 1,
            "incremental file with 3 blocks has 32767 bytes, expected 32768: blocks of 8192 bytes",
        ),
    ],
)
def test_damage_is_named(content: bytes, size: int, message: str) -> None:
    """Each way to hurt a header has its message; undamaged it passes."""
    assert parse_header(WHOLE, size=len(WHOLE)) == IncrementalHeader(7, (1, 2, 9))
    with pytest.raises(FormatError) as error:
        parse_header(content, size=size)
    assert error.value.message == message


def test_names() -> None:
    """The name of an incremental file is the relation file's with a prefix, in the same directory."""
    path = "pgdata/base/5/16384_fsm.1"
    assert incremental_path(path) == "pgdata/base/5/INCREMENTAL.16384_fsm.1"
    assert relation_path(incremental_path(path)) == path == relation_path(path)
    assert is_incremental(incremental_path(path))
    assert not is_incremental(path)
    assert not is_incremental("pgdata/INCREMENTAL.d/16384")
