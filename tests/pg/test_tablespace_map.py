from __future__ import annotations

import contextlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pgkeep.errors import FormatError, UsageError
from pgkeep.pg.tablespace_map import parse_tablespace_map, remap, render_tablespace_map

oids = st.integers(1, 2**32 - 1)
paths = st.text(
    st.sampled_from("\\\n\r/ a1ä") | st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1
)
majors = st.integers(12, 18)


@given(st.dictionaries(oids, paths), majors)
def test_what_is_rendered_is_parsed_back(entries: dict[int, str], major: int) -> None:
    """A map survives its text, whatever its paths hold."""
    assume(major >= 14 or not any(path.endswith("\\") for path in entries.values()))
    found = parse_tablespace_map(render_tablespace_map(entries, major=major), major=major)
    assert found == entries
    assert list(found) == list(entries)


# What servers of both kinds wrote for the same six tablespaces.
BEFORE_14 = "1 /t/plain\n2 /t/with space\n3 /t/back\\slash\n4 /t/new\\\nline\n5 /t/cr\\\rx\n"
SINCE_14 = "1 /t/plain\n2 /t/with space\n3 /t/back\\\\slash\n4 /t/new\\\nline\n5 /t/cr\\\rx\n6 /t/end\\\\\n"
ENTRIES = {1: "/t/plain", 2: "/t/with space", 3: "/t/back\\slash", 4: "/t/new\nline", 5: "/t/cr\rx"}


@pytest.mark.parametrize(
    ("version", "text", "entries"), [(13, BEFORE_14, ENTRIES), (14, SINCE_14, ENTRIES | {6: "/t/end\\"})]
)
def test_escapes_are_those_of_the_version(version: int, text: str, entries: dict[int, str]) -> None:
    """Line ends are escaped by every version, backslashes from 14 on."""
    assert parse_tablespace_map(text, major=version) == entries
    assert render_tablespace_map(entries, major=version) == text


@given(st.text(), majors)
def test_any_text_is_a_map_or_a_format_error(text: str, major: int) -> None:
    """No text makes the parser fail in another way."""
    with contextlib.suppress(FormatError):
        parse_tablespace_map(text, major=major)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16384 /a", 'tablespace map ends inside a line: "16384 /a"'),
        ("16384 /a\\\n", 'tablespace map ends inside a line: "16384 /a\\\n"'),
        ("16384\n", 'tablespace map: expected OID and path, found "16384"'),
        ("x /a\n", 'tablespace map: expected OID and path, found "x /a"'),
        ("\n", 'tablespace map: expected OID and path, found ""'),
        ("0 /a\n", "tablespace map: OID out of range: 0"),
        ("4294967296 /a\n", "tablespace map: OID out of range: 4294967296"),
        ("16384 /a\n16384 /b\n", "tablespace map names tablespace 16384 twice"),
    ],
)
def test_a_damaged_map_is_refused(text: str, message: str) -> None:
    """Each way to spoil a map has its own message."""
    assert parse_tablespace_map("16384 /a\n", major=18) == {16384: "/a"}
    with pytest.raises(FormatError) as caught:
        parse_tablespace_map(text, major=18)
    assert str(caught.value) == message


def test_a_path_that_13_cannot_read_is_refused() -> None:
    """A backslash before a line's end would swallow the line end in 12 and 13."""
    assert render_tablespace_map({5: "/a\\"}, major=14) == "5 /a\\\\\n"
    with pytest.raises(UsageError) as caught:
        render_tablespace_map({5: "/a\\"}, major=13)
    assert str(caught.value) == 'PostgreSQL 13 cannot read a backslash at the end of a tablespace path: "/a\\"'


@pytest.mark.parametrize("path", ["", "/a\0b"])
def test_a_path_that_no_system_has_is_refused(path: str) -> None:
    """An empty path, or one with a zero byte, is not written."""
    with pytest.raises(UsageError) as caught:
        render_tablespace_map({5: path}, major=18)
    assert str(caught.value) == "tablespace 5 has no usable path"


def test_a_tablespace_can_be_put_elsewhere() -> None:
    """The named tablespaces move, the others stay."""
    assert remap({1: "/a", 2: "/b"}, {2: "/c"}) == {1: "/a", 2: "/c"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({3: "/c"}, "the backup has no tablespace 3, it has 1, 2"),
        ({2: "/a"}, 'tablespaces 1 and 2 would both be put into "/a"'),
    ],
)
def test_an_impossible_move_is_refused(targets: dict[int, str], message: str) -> None:
    """An unknown tablespace, or two in one place, are mistakes of the caller."""
    with pytest.raises(UsageError) as caught:
        remap({1: "/a", 2: "/b"}, targets)
    assert str(caught.value) == message
