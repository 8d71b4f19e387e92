"""
CRC-32C (Castagnoli), the checksum of ``pg_control``, of WAL records and of the files in a backup manifest.

Where ``native/crc32c.c`` was built, it does the work and leaves the other threads alone. Without it a small piece goes
through a loop of Python's, and a large one through numpy: many lanes side by side, which are then folded together.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

Buffer = bytes | bytearray | memoryview

_POLYNOMIAL = 0x82F63B78
_LANE_BYTES = 1 << 7
_LARGE_BYTES = 1 << 16
_SMALL_BYTES = 16


def crc32c(data: Buffer, crc: int = 0) -> int:
    """Return the CRC-32C of *data*, or of what *crc* is the checksum of and *data* after it."""
    if len(data) > _SMALL_BYTES:
        native = native_crc32c()
        if native is not None:
            return native(data, crc)
        if len(data) >= _LARGE_BYTES:
            return crc32c_in_lanes(data, crc)
    return crc32c_by_bytes(data, crc)


def crc32c_by_bytes(data: Buffer, crc: int = 0) -> int:
    """Do as ``crc32c`` does, one byte after the other."""
    table = _table()
    crc ^= 0xFFFFFFFF
    for byte in memoryview(data).cast("B"):
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def crc32c_in_lanes(data: Buffer, crc: int = 0) -> int:
    """Do as ``crc32c`` does, with numpy; *data* of any length."""
    import numpy as np

    view = memoryview(data).cast("B")
    # A power of two, so that folding halves it to the end.
    lanes = 1 << (len(view) // _LANE_BYTES).bit_length() - 1 if len(view) >= _LANE_BYTES else 1
    length = len(view) // lanes
    table = np.array(_table(), np.uint32)
    rows = np.ascontiguousarray(np.frombuffer(view[: length * lanes], np.uint8).reshape(lanes, length).T)
    state = np.zeros(lanes, np.uint32)
    # The register is linear in what it began with: only the first lane carries it on.
    state[0] = crc ^ 0xFFFFFFFF
    for row in rows:
        state = table[(state ^ row) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
    shift = _shift_by(length)
    while len(state) > 1:
        state = _shifted(shift, state[0::2]) ^ state[1::2]
        shift = _shifted(shift, shift)
    return crc32c_by_bytes(view[length * lanes :], int(state[0]) ^ 0xFFFFFFFF)


@cache
def _shift_by(count: int) -> Any:
    """Return what *count* zero bytes make of a register with a single bit, for each of its 32 bits."""
    import numpy as np

    power = np.array([(1 << bit >> 8) ^ _table()[1 << bit & 0xFF] for bit in range(32)], np.uint32)
    result = np.array([1 << bit for bit in range(32)], np.uint32)
    while count:
        if count & 1:
            result = _shifted(power, result)
        power = _shifted(power, power)
        count >>= 1
    return result


def _shifted(shift: Any, states: Any) -> Any:
    """Return *states*, an array of registers, each after the zero bytes of *shift*."""
    import numpy as np

    result = np.zeros(len(states), np.uint32)
    for bit in range(32):
        result ^= np.where(states >> np.uint32(bit) & np.uint32(1), shift[bit], np.uint32(0))
    return result


@cache
def native_crc32c() -> Callable[[Buffer, int], int] | None:
    """Return the twin in C; None where it was not built."""
    try:
        function = ctypes.CDLL(f"{sys.prefix}/lib/pgkeep/crc32c.so").pgkeep_crc32c
    except OSError:
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t]

    def native(data: Buffer, crc: int) -> int:
        if not isinstance(data, bytes):
            view = memoryview(data).cast("B")
            if view.readonly:
                return int(function(crc, bytes(view), len(view)))
            return int(function(crc, (ctypes.c_char * len(view)).from_buffer(view), len(view)))
        return int(function(crc, data, len(data)))

    return native


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)
