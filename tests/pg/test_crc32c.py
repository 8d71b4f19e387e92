"""CRC-32C: the published check value, and three ways to compute it that agree."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.pg.crc32c import crc32c, crc32c_by_bytes, crc32c_in_lanes, native_crc32c


def test_the_check_value_is_the_published_one() -> None:
    """RFC 3720 and the catalogue of CRCs give E3069283 for the nine digits."""
    assert crc32c(b"123456789") == crc32c_by_bytes(b"123456789") == 0xE3069283


@given(data=st.binary(max_size=300), before=st.binary(max_size=40))
def test_the_twin_in_c_agrees(data: bytes, before: bytes) -> None:
    """Buffers of every kind and length get the same checksum, begun anew or gone on with."""
    native = native_crc32c()
    assert native is not None, "native/crc32c.c was not built: run ./dev setup"
    crc = crc32c_by_bytes(before)
    expected = crc32c_by_bytes(before + data)
    for buffer in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert native(buffer, crc) == expected == crc32c(buffer, crc)


@pytest.mark.parametrize("length", [0, 1, 2047, 2048, 2049, 12_287, 12_288, 12_289, 24_600, 70_000, 200_001])
def test_lanes_agree(length: int) -> None:
    """Those of numpy and those of the twin in C give the same for pieces of any length, in one go and in two."""
    data = os.urandom(length)
    expected = crc32c_by_bytes(data)
    assert crc32c(data) == expected
    assert crc32c(data[length // 3 :], crc32c(data[: length // 3])) == expected
    assert crc32c_in_lanes(data) == expected
    assert crc32c_in_lanes(data[length // 3 :], crc32c_in_lanes(data[: length // 3])) == expected
