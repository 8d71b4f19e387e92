"""CRC-32C (Castagnoli), the checksum of ``pg_control`` and of WAL records. For small pieces: the loop is Python's."""

from __future__ import annotations

from functools import cache

_POLYNOMIAL = 0x82F63B78


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """Return the CRC-32C of *data*, or of what *crc* is the checksum of and *data* after it."""
    table = _table()
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)
