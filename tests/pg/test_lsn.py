from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline

lsns = st.integers(0, 2**64 - 1).map(Lsn)


@given(lsns)
def test_what_is_printed_is_parsed_back(lsn: Lsn) -> None:
    """An LSN survives printing and parsing, padded or in the server's own form."""
    assert Lsn.parse(str(lsn)) == lsn
    assert Lsn.parse(f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}") == lsn
    assert Lsn.parse(str(lsn).lower()) == lsn


@given(st.text())
def test_any_text_is_an_lsn_or_a_format_error(text: str) -> None:
    """No text makes the parser fail in another way."""
    with contextlib.suppress(FormatError):
        assert isinstance(Lsn.parse(text), Lsn)


@pytest.mark.parametrize("text", ["", "1", "0x1/2", "1/2/3", "1/123456789", "-1/2", "g/1"])
def test_other_texts_are_no_lsns(text: str) -> None:
    """The message shows what was found."""
    with pytest.raises(FormatError) as caught:
        Lsn.parse(text)
    assert str(caught.value) == f'not an LSN: expected something like 2/04000028, found "{text}"'


def test_the_low_half_is_padded() -> None:
    """The low half is printed with eight digits, so that LSNs of one length sort as text."""
    assert str(Lsn(0x2_0400_0028)) == "2/04000028"
    assert repr(Lsn(0)) == "Lsn(0/00000000)"


@pytest.mark.parametrize("value", [-1, 2**64])
def test_an_lsn_has_64_bits(value: int) -> None:
    """A number beyond 64 bits is refused."""
    with pytest.raises(FormatError) as caught:
        Lsn(value)
    assert str(caught.value) == f"LSN out of range: {value}"


@given(st.integers(1, 2**32 - 1).map(Timeline))
def test_a_timeline_survives_its_file_name(timeline: Timeline) -> None:
    """A timeline's hexadecimal form, as in file names, leads back to it."""
    assert Timeline.parse_hex(timeline.hex) == timeline
    assert timeline.history_file_name == f"{timeline.hex}.history"


@pytest.mark.parametrize("value", [0, -1, 2**32])
def test_a_timeline_has_32_bits_and_is_not_zero(value: int) -> None:
    """Zero is PostgreSQL's word for no timeline, so it is refused like a number that is too large."""
    with pytest.raises(FormatError) as caught:
        Timeline(value)
    assert str(caught.value) == f"timeline out of range: {value}"


@pytest.mark.parametrize("text", ["", "1", "0000000g", "000000001", "0000000a"])
def test_a_timeline_in_a_name_has_eight_upper_case_digits(text: str) -> None:
    """Nothing but the form of file names is taken."""
    with pytest.raises(FormatError) as caught:
        Timeline.parse_hex(text)
    assert str(caught.value) == f'not a timeline: expected 8 hexadecimal digits, found "{text}"'


def test_a_system_identifier_is_unsigned() -> None:
    """The identifier uses all 64 bits."""
    assert SystemIdentifier(2**64 - 1) == 2**64 - 1
    with pytest.raises(FormatError) as caught:
        SystemIdentifier(-1)
    assert str(caught.value) == "system identifier out of range: -1"
